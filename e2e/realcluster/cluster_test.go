// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

// Package realcluster tests the DaemonSet of deploy/ in a cluster: API server, controller
// manager, scheduler, and two nodes with containerd and kubelet in namespaces. "make
// e2e-cluster" runs it.
package realcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelCluster: the DaemonSet as it is in deploy/base becomes ready on both nodes,
// and a Service whose pods are on both answers from the nodes.
func TestKernelCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	l, c := startNodes(ctx, t)
	deploy(ctx, t, c)
	await(ctx, t, "the DaemonSet", func() error { return daemonSetReady(ctx, c) })
	svc := web(ctx, t, c, len(l.Nodes))
	for _, n := range l.Nodes {
		awaitBoth(ctx, t, n, svc)
	}
}

// awaitBoth waits until both pods of a Service have answered at its cluster IP, asked
// from a node.
func awaitBoth(ctx context.Context, t *testing.T, n *lab.Node, svc *corev1.Service) {
	t.Helper()
	seen := map[string]bool{}
	await(ctx, t, "answers of both pods on "+n.Label, func() error {
		name, err := get(ctx, n, "http://"+net.JoinHostPort(svc.Spec.ClusterIP, "80"))
		if err != nil {
			return err
		}
		if seen[name] = true; len(seen) < 2 {
			return fmt.Errorf("%v have answered", seen)
		}
		return nil
	})
}

// startNodes starts a cluster of two nodes, on which no service proxy runs.
func startNodes(ctx context.Context, t *testing.T) (*lab.Lab, *cluster.Cluster) {
	t.Helper()
	if err := lab.Supported(ctx); err != nil {
		t.Skip(err)
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
	c := startCluster(ctx, t, l)
	image, pause := filepath.Join("..", "..", "bin", "fairlead-image.tar"), buildPause(t)
	image, err = filepath.Abs(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes {
		startNode(ctx, t, c, n, filepath.Join(tools(), "kubelet"), image, pause)
	}
	return l, c
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

// startCluster starts everything that is no node, on the client of a lab.
func startCluster(ctx context.Context, t *testing.T, l *lab.Lab) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Start(ctx, cluster.Config{
		BinDir:          tools(),
		Address:         l.Client.Addr(model.IPv4),
		Prefix:          []string{"nsenter", "--net=" + l.Client.Path()},
		Dial:            l.Client.Dial,
		ServiceAccounts: true,
		APIServerFlags:  []string{"--kubelet-preferred-address-types=InternalIP"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs(t, c)
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		removeCgroups(t)
	})
	config, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(c.Dir(), "ca.crt")
	for _, cl := range config.Clusters {
		if err := os.WriteFile(ca, cl.CertificateAuthorityData, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, argv := range [][]string{
		{"kube-controller-manager", "--kubeconfig=" + c.Kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1",
			"--service-account-private-key-file=" + filepath.Join(c.Dir(), "service-account.key"), "--root-ca-file=" + ca},
		{"kube-scheduler", "--kubeconfig=" + c.Kubeconfig(), "--leader-elect=false", "--bind-address=127.0.0.1"},
	} {
		if _, err := c.Launch(ctx, cluster.Program{Argv: argv}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// buildPause makes the archive of the image of e2e/realcluster/pod.
func buildPause(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "root", "pod")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./pod")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	run(t, cmd)
	layout, archive := filepath.Join(dir, "layout"), filepath.Join(dir, "pause.tar")
	run(t, exec.Command("tar", "-C", filepath.Join(dir, "root"), "-cf", filepath.Join(dir, "layer.tar"), "pod"))
	run(t, exec.Command("umoci", "init", "--layout", layout))
	run(t, exec.Command("umoci", "new", "--image", layout+":v1"))
	run(t, exec.Command("umoci", "raw", "add-layer", "--image", layout+":v1", filepath.Join(dir, "layer.tar")))
	run(t, exec.Command("umoci", "config", "--image", layout+":v1", "--config.entrypoint", "/pod"))
	index := filepath.Join(layout, "index.json")
	text, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	const ref = `"org.opencontainers.image.ref.name":"v1"`
	named := bytes.Replace(text, []byte(ref), []byte(ref+`,"io.containerd.image.name":"`+pauseImage+`"`), 1)
	if err := os.WriteFile(index, named, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command("tar", "-C", layout, "-cf", archive, "."))
	return archive
}

func run(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
	}
	return out
}

// deploy applies kubeadm's ConfigMap and the base, with the image that was imported.
func deploy(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	await(ctx, t, "the namespace kube-system", func() error {
		_, err := c.Clientset().CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		return err
	})
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy", Namespace: "kube-system"}, Data: map[string]string{
		"config.conf":     kubeProxyConfig,
		"kubeconfig.conf": fmt.Sprintf(kubeProxyKubeconfig, c.URL()),
	}}
	if _, err := c.Clientset().CoreV1().ConfigMaps("kube-system").Create(ctx, cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	out := run(t, exec.Command(filepath.Join(tools(), "kustomize"), "build", filepath.Join("..", "..", "deploy", "base")))
	out = bytes.ReplaceAll(out, []byte("image: fairlead:dev"), []byte("image: fairlead:"+imageTag(t)))
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096); ; {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = apply(ctx, client, o)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func apply(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured) error {
	gv, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil {
		return err
	}
	var r dynamic.ResourceInterface = client.Resource(gv.WithResource(strings.ToLower(o.GetKind()) + "s"))
	if o.GetNamespace() != "" {
		r = client.Resource(gv.WithResource(strings.ToLower(o.GetKind()) + "s")).Namespace(o.GetNamespace())
	}
	_, err = r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
	return err
}

// imageTag is the tag of the image of "make image".
func imageTag(t *testing.T) string {
	t.Helper()
	index := run(t, exec.Command("tar", "-xOf", filepath.Join("..", "..", "bin", "fairlead-image.tar"), "index.json"))
	_, rest, found := strings.Cut(string(index), `"io.containerd.image.name":"docker.io/library/fairlead:`)
	tag, _, _ := strings.Cut(rest, `"`)
	if !found || tag == "" {
		t.Fatalf("the image has no name: %s", index)
	}
	return tag
}

func daemonSetReady(ctx context.Context, c *cluster.Cluster) error {
	d, err := c.Clientset().AppsV1().DaemonSets("kube-system").Get(ctx, "fairlead", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s := d.Status; s.ObservedGeneration < d.Generation || s.NumberReady != 2 || s.DesiredNumberScheduled != 2 {
		return fmt.Errorf("%d of %d pods are ready", s.NumberReady, s.DesiredNumberScheduled)
	}
	return nil
}

// hostPort is the port of the nodes that leads to the pods of web.
const hostPort = 8088

// web makes a Deployment with a pod on each node, which has a host port, and its Service.
func web(ctx context.Context, t *testing.T, c *cluster.Cluster, nodes int) *corev1.Service {
	t.Helper()
	labels, replicas := map[string]string{"app": "web"}, int32(nodes)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "web", Image: pauseImage, ImagePullPolicy: corev1.PullNever, Args: []string{":8080"},
				Ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: hostPort}}}},
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
				MaxSkew: 1, TopologyKey: "kubernetes.io/hostname", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
			}},
		}},
	}}
	if _, err := c.Clientset().AppsV1().Deployments("default").Create(ctx, d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}}
	svc, err := c.Clientset().CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// get asks a URL from a node.
func get(ctx context.Context, n *lab.Node, url string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return n.Dial(ctx, network, addr)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
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
func logs(t *testing.T, c *cluster.Cluster) {
	pods, err := c.Clientset().CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
	if err == nil {
		for _, p := range pods.Items {
			t.Logf("pod %s on %s: %s %+v %+v", p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
		}
	}
	files, _ := filepath.Glob(filepath.Join(c.Dir(), "*", "*.log"))
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			t.Logf("%s:\n%s", file, text[max(0, len(text)-6000):])
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

const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
clusterCIDR: 10.244.0.0/16
mode: ""
`

const kubeProxyKubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: default
  cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: %s
users:
- name: default
  user: {tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}
contexts:
- name: default
  context: {cluster: default, namespace: default, user: default}
current-context: default
`
