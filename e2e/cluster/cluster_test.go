// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"fairlead/e2e/cluster"
)

// start starts a cluster that is stopped at the end of the test.
func start(t *testing.T, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestServiceSurvivesRestart(t *testing.T) {
	c := start(t, cluster.Config{})
	services := c.Clientset().CoreV1().Services(metav1.NamespaceDefault)
	policy := corev1.IPFamilyPolicyRequireDualStack
	created, err := services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &policy,
			Ports:          []corev1.ServicePort{{Port: 80}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ips := created.Spec.ClusterIPs
	if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.96.") || !strings.HasPrefix(ips[1], "fd00:10:96::") {
		t.Errorf("got cluster IPs %v, want one of each default range", ips)
	}

	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := dial(c); err == nil {
		t.Errorf("connected to %s after the API server was stopped", c.URL())
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := services.Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(created.Spec, got.Spec); diff != "" {
		t.Errorf("Service after restart (-want +got):\n%s", diff)
	}
}

func TestPause(t *testing.T) {
	c := start(t, cluster.Config{})
	if err := c.PauseAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := dial(c); err != nil {
		t.Errorf("connect to paused API server: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Clientset().CoreV1().Services("").List(ctx, metav1.ListOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("list from paused API server: got error %v, want a timeout", err)
	}
	if err := c.ResumeAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Clientset().CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("list from resumed API server: %v", err)
	}
}

func TestKubeconfig(t *testing.T) {
	c := start(t, cluster.Config{Dir: t.TempDir()})
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(c.Dir(), "kube-apiserver.log")); err != nil {
		t.Errorf("log after Stop: %v", err)
	}
}

func TestStopRemovesEverything(t *testing.T) {
	c := start(t, cluster.Config{})
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary directory after Stop: got error %v, want none such", err)
	}
	if err := dial(c); err == nil {
		t.Errorf("connected to %s after Stop", c.URL())
	}
	if err := c.StartAPIServer(t.Context()); err == nil {
		t.Error("API server started after Stop")
	}
}

func TestStartErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  cluster.Config
		want []string
	}{
		{
			name: "no programs",
			cfg:  cluster.Config{BinDir: t.TempDir()},
			want: []string{"/etcd: no such file", "make tools"},
		},
		{
			name: "program ends",
			cfg:  cluster.Config{APIServerFlags: []string{"--no-such-flag"}},
			want: []string{"kube-apiserver ended by itself (exit status 1)", "last lines", "unknown flag: --no-such-flag"},
		},
		{
			name: "never ready",
			cfg: cluster.Config{
				EtcdFlags:    []string{"--listen-client-urls=unix://elsewhere:0"},
				ReadyTimeout: 300 * time.Millisecond,
			},
			want: []string{"wait for etcd", "last lines"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := cluster.Start(t.Context(), tt.cfg)
			if err == nil {
				t.Fatal("started", c.Stop())
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %q, want %q in it", err, want)
				}
			}
		})
	}
}

// dial makes a TCP connection to the API server.
func dial(c *cluster.Cluster) error {
	u, err := url.Parse(c.URL())
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return err
	}
	return conn.Close()
}
