// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

var transition = flag.Duration("transition", time.Minute, "how long clients ask during each transition, at least")

// perSecond is how many requests there are in a second, to all addresses together.
const perSecond = 200

// TestKernelTransitions: clients at the cluster IP, the node port and the host port notice
// nothing of a change from kube-proxy to Fairlead, of its restart, of an update of the
// DaemonSet, and of a change back; but they do of a flushed chain.
func TestKernelTransitions(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute+5**transition)
	defer cancel()
	l, c := startNodes(ctx, t)
	svc := web(ctx, t, c, len(l.Nodes))
	var ends []func() error
	kubeProxy := func() {
		ends = nil
		for _, n := range l.Nodes {
			ends = append(ends, startKubeProxy(ctx, t, c, n))
		}
	}
	kubeProxy()
	for _, n := range l.Nodes {
		awaitBoth(ctx, t, n, svc)
	}
	node := l.Nodes[0]
	addr := node.Addr(model.IPv4).String()
	addrs := []string{
		net.JoinHostPort(svc.Spec.ClusterIP, "80"),
		net.JoinHostPort(addr, strconv.Itoa(int(svc.Spec.Ports[0].NodePort))),
		net.JoinHostPort(addr, strconv.Itoa(hostPort)),
	}
	clients := startLoad(ctx, l.Client, perSecond/len(addrs), addrs...)
	defer func() {
		clients.stop()
		clients.done.Wait()
	}()
	step := func(what string, do func()) {
		t.Helper()
		since := time.Now()
		do()
		clients.check(ctx, t, what, since, *transition, perSecond)
	}
	step("kube-proxy alone", func() {})
	step("from kube-proxy to Fairlead", func() {
		for _, end := range ends {
			if err := end(); err != nil {
				t.Fatal(err)
			}
		}
		deploy(ctx, t, c)
		await(ctx, t, "the DaemonSet", func() error { return daemonSetReady(ctx, c) })
	})
	step("a restart of all agents at once", func() {
		restarted(ctx, t, c)
	})
	step("an update of the DaemonSet", func() {
		patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"updated":%q}}}}}`, time.Now())
		if _, err := c.Clientset().AppsV1().DaemonSets("kube-system").Patch(ctx, "fairlead", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		await(ctx, t, "the update", func() error { return daemonSetReady(ctx, c) })
	})
	step("from Fairlead to kube-proxy", func() {
		if err := c.Clientset().AppsV1().DaemonSets("kube-system").Delete(ctx, "fairlead", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		await(ctx, t, "the end of all agents", func() error { return agents(ctx, c, 0) })
		kubeProxy()
	})

	if err := node.Iptables(ctx, lab.NFT, model.IPv4, "-t", "nat", "-F", "KUBE-SERVICES"); err != nil {
		t.Fatal(err)
	}
	await(ctx, t, "failures after the chain KUBE-SERVICES was flushed", func() error {
		if _, failed := clients.take(); len(failed) == 0 {
			return fmt.Errorf("nothing has failed")
		}
		return nil
	})
}

// restarted deletes all agents' pods and waits until there are others.
func restarted(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	const ours = "app.kubernetes.io/name=fairlead"
	pods := c.Clientset().CoreV1().Pods("kube-system")
	old, err := pods.List(ctx, metav1.ListOptions{LabelSelector: ours})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range old.Items {
		if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	await(ctx, t, "other agents", func() error {
		now, err := pods.List(ctx, metav1.ListOptions{LabelSelector: ours})
		if err != nil {
			return err
		}
		for _, p := range now.Items {
			for _, o := range old.Items {
				if p.UID == o.UID {
					return fmt.Errorf("%s is still there", p.Name)
				}
			}
		}
		return daemonSetReady(ctx, c)
	})
}

// agents fails unless there are so many agents' pods.
func agents(ctx context.Context, c *cluster.Cluster, want int) error {
	pods, err := c.Clientset().CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=fairlead"})
	if err == nil && len(pods.Items) != want {
		err = fmt.Errorf("there are %d pods, want %d", len(pods.Items), want)
	}
	return err
}

// startKubeProxy starts kube-proxy on a node, beside the kubelet, and waits until it is
// healthy.
func startKubeProxy(ctx context.Context, t *testing.T, c *cluster.Cluster, n *lab.Node) func() error {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return n.Dial(ctx, network, addr)
	}}}
	end, err := c.Launch(ctx, cluster.Program{
		Argv: []string{"kube-proxy", "--kubeconfig=" + c.Kubeconfig(), "--hostname-override=" + n.Label, "--cluster-cidr=10.244.0.0/16",
			"--proxy-mode=iptables", "--conntrack-max-per-core=0", "--conntrack-min=0"},
		Prefix: []string{"nsenter", "--net=" + n.Path(), "--"},
		Dir:    n.Label,
		Ready: func(context.Context) error {
			resp, err := client.Get("http://127.0.0.1:10256/healthz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("kube-proxy answers %s", resp.Status)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return end
}
