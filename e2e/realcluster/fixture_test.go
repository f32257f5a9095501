// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// fixture is a cluster, as far as it has been started.
type fixture struct {
	*cluster.Cluster
	t     *testing.T
	lab   *lab.Lab
	audit cluster.AuditLog
}

// newFixture starts etcd and an API server on the client of a lab with two nodes.
func newFixture(ctx context.Context, t *testing.T) *fixture {
	t.Helper()
	if err := lab.Supported(ctx); err != nil {
		t.Fatal(err) // who asks for a cluster wants to know
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 2, ClientRoutes: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	audit, err := cluster.NewAuditLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(ctx, cluster.Config{
		BinDir:          tools(),
		Address:         l.Client.Addr(model.IPv4),
		Prefix:          []string{"nsenter", "--net=" + l.Client.Path()},
		Dial:            l.Client.Dial,
		ServiceAccounts: true,
		APIServerFlags:  append(audit.Flags(), "--kubelet-preferred-address-types=InternalIP"),
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Cluster: c, t: t, lab: l, audit: audit}
	t.Cleanup(func() {
		if t.Failed() {
			f.logs()
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		removeCgroups(t)
	})
	return f
}

// startControllers starts what makes pods of Deployments, and endpoints of pods.
func (f *fixture) startControllers(ctx context.Context) {
	f.t.Helper()
	config, err := clientcmd.LoadFromFile(f.Kubeconfig())
	if err != nil {
		f.t.Fatal(err)
	}
	ca := filepath.Join(f.Dir(), "ca.crt")
	for _, cl := range config.Clusters {
		if err := os.WriteFile(ca, cl.CertificateAuthorityData, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, argv := range [][]string{
		{"kube-controller-manager", "--kubeconfig=" + f.Kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1",
			"--service-account-private-key-file=" + filepath.Join(f.Dir(), "service-account.key"), "--root-ca-file=" + ca,
			// While the API server is away, nodes cannot say that they are there: they
			// would be given up when it is back, and the endpoints on them taken away.
			"--node-monitor-grace-period=1h"},
		{"kube-scheduler", "--kubeconfig=" + f.Kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1"},
	} {
		if _, err := f.Launch(ctx, cluster.Program{Argv: argv}); err != nil {
			f.t.Fatal(err)
		}
	}
	await(ctx, f.t, "the namespace kube-system", func() error {
		_, err := f.Clientset().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		return err
	})
}

// startAll starts the rest of a cluster on which no service proxy runs.
func (f *fixture) startAll(ctx context.Context) {
	f.t.Helper()
	f.startControllers(ctx)
	f.startNodes(ctx)
	f.wirePods(ctx)
}

// tools is the directory of the cluster's programs.
func tools() string {
	if dir := os.Getenv("FAIRLEAD_TOOLS_BIN"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs(filepath.Join("..", "..", ".cache", "bin"))
	if err != nil {
		panic(err)
	}
	return dir
}

func run(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
	}
	return out
}

// await asks until there is no error.
func await(ctx context.Context, t *testing.T, what string, ask func() error) {
	t.Helper()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("wait for %s: %v", what, err)
		}
	}
}

// logs shows what the pods are about, and the ends of the nodes' logs.
func (f *fixture) logs() {
	pods, err := f.Clientset().CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
	if err == nil {
		for _, p := range pods.Items {
			f.t.Logf("pod %s on %s: %s %+v %+v", p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
		}
	}
	files, _ := filepath.Glob(filepath.Join(f.Dir(), "*", "*.log"))
	for _, n := range f.lab.Nodes {
		pods, _ := filepath.Glob(filepath.Join(f.nodeDir(n), "pods", "*", "*", "*.log"))
		files = append(files, pods...)
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			f.t.Logf("%s:\n%s", file, text[max(0, len(text)-6000):])
		}
	}
}

// removeCgroups removes what is left of the containers' cgroups, once all of their
// processes have gone with the nodes.
func removeCgroups(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	await(ctx, t, "the end of all containers", func() (err error) {
		roots, _ := filepath.Glob("/sys/fs/cgroup/*/k8s.io")
		for _, root := range roots {
			children, _ := filepath.Glob(filepath.Join(root, "*"))
			for _, dir := range append(children, root) {
				if info, statErr := os.Stat(dir); statErr == nil && info.IsDir() {
					err = errors.Join(err, os.Remove(dir))
				}
			}
		}
		return err
	})
}
