// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// startCluster runs a real API server on the lab's client, which the nodes
// reach, and returns it with the kubeconfig for them.
func startCluster(ctx context.Context, t *testing.T, l *lab.Lab, flags ...string) (*cluster.Cluster, string) {
	t.Helper()
	c, err := cluster.Start(ctx, cluster.Config{
		Address: l.Client.Addr(model.IPv4),
		Prefix:  []string{"nsenter", "--net=" + l.Client.Path()},
		Dial:    l.Client.Dial,

		APIServerFlags: flags,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	awaitOwnEndpoint(ctx, t, c)
	return c, c.Kubeconfig()
}

// clusterLab is a lab with an API server, for what is the same with either variant.
func clusterLab(t *testing.T) (context.Context, *lab.Lab, *cluster.Cluster, string) {
	t.Helper()
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	c, kubeconfig := startCluster(ctx, t, l)
	return ctx, l, c, kubeconfig
}

// awaitOwnEndpoint waits until the API server has written the endpoint of its
// own Service, which it does a moment after it serves.
func awaitOwnEndpoint(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	slices := c.Clientset().DiscoveryV1().EndpointSlices("default")
	w, err := slices.Watch(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if s, ok := event.Object.(*discoveryv1.EndpointSlice); ok && len(s.Endpoints) > 0 {
			return
		}
	}
	t.Fatal("the API server did not write the endpoint of its own Service")
}

// TestKernelSameStateFromBothSources: the same objects give the same rules
// whether they come from an API server or from a directory.
func TestKernelSameStateFromBothSources(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		c, kubeconfig := startCluster(ctx, t, l)
		objs := append(web(l, node.Pods[0], l.Nodes[1].Pods[0]), nodeObject(node), service("idle", 20))
		create(ctx, t, c.Clientset(), objs...)

		a := startAgent(ctx, t, node, v, "--kubeconfig", kubeconfig)
		a.waitSynced(ctx, 0)
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			pods := []*lab.NS{node.Pods[0], l.Nodes[1].Pods[0]}
			want := map[string]netip.Addr{}
			for _, p := range pods {
				want[p.Label] = node.Pods[1].Addr(f)
			}
			checkSpread(ctx, t, webProbe(node.Pods[1], f, network), want)
		})
		a.stop()
		fromAPI := save(ctx, t, node, v)
		cleanUp(ctx, t, node)

		dir := newDirectory(t)
		dir.write("all.yaml", allObjects(ctx, t, c)...)
		startAgent(ctx, t, node, v, "--manifests", dir.path, "--kubeconfig", "/nonexistent").waitSynced(ctx, 0)
		if diff := cmp.Diff(fromAPI, save(ctx, t, node, v)); diff != "" {
			t.Errorf("rules differ (-API server +directory):\n%s", diff)
		}
	})
}

// allObjects lists what the API server has, its own Service included.
func allObjects(ctx context.Context, t *testing.T, c *cluster.Cluster) []runtime.Object {
	t.Helper()
	services, err := c.Clientset().CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slices, err := c.Clientset().DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cidrs, err := c.Clientset().NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []runtime.Object
	for _, s := range cidrs.Items {
		s.APIVersion, s.Kind = "networking.k8s.io/v1", "ServiceCIDR"
		out = append(out, &s)
	}
	for _, s := range services.Items {
		s.APIVersion, s.Kind = "v1", "Service"
		out = append(out, &s)
	}
	for _, s := range slices.Items {
		s.APIVersion, s.Kind = "discovery.k8s.io/v1", "EndpointSlice"
		out = append(out, &s)
	}
	return out
}

// TestKernelAPIServerAway: while the API server is away the rules stay and
// work, an agent that starts then touches nothing, and once it is back changes
// take effect.
func TestKernelAPIServerAway(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		c, kubeconfig := startCluster(ctx, t, l)
		create(ctx, t, c.Clientset(), append(web(l, node.Pods[0]), nodeObject(node))...)
		a := startAgent(ctx, t, node, v, "--kubeconfig", kubeconfig)
		a.waitSynced(ctx, 0)
		before := save(ctx, t, node, v)

		if err := c.StopAPIServer(); err != nil {
			t.Fatal(err)
		}
		a.waitLog(ctx, 0, 1, c.URL(), "stay")
		a.stop()
		logged := newLoggedCommands(t)
		a = startAgentEnv(ctx, t, node, v, []string{logged.path()}, "--kubeconfig", kubeconfig)
		a.waitLog(ctx, 0, 1, c.URL(), "stay")
		if diff := cmp.Diff(before, save(ctx, t, node, v)); diff != "" {
			t.Errorf("rules changed while the API server was away (-before +after):\n%s", diff)
		}
		if got := logged.matching("--noflush"); len(got) > 0 {
			t.Errorf("with the API server away the agent ran %q", got)
		}
		probe := webProbe(node.Pods[1], model.IPv4, "tcp")
		if r := probe.Once(ctx); r.Server != node.Pods[0].Label {
			t.Errorf("with the API server away: %s", r)
		}

		if err := c.StartAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
		other := l.Nodes[1].Pods[0]
		create(ctx, t, c.Clientset(), endpoints(l, other)...)
		if _, _, err := probe.WaitFor(ctx, func(r lab.Result) bool { return r.Server == other.Label }); err != nil {
			t.Errorf("after the API server came back: %v", err)
		}
	})
}

// endpoints are the EndpointSlices of web.
func endpoints(l *lab.Lab, pods ...*lab.NS) []runtime.Object { return web(l, pods...)[1:] }

// TestKernelManifestNeverParsed: while a file has never parsed since the
// start, nothing is removed, not even for objects of other files.
func TestKernelManifestNeverParsed(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		dir.write("idle.yaml", service("idle", 20))
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		a.stop()
		before := save(ctx, t, node, v)

		dir.writeText("web.yaml", "kind: Service\n  apiVersion: broken\n")
		a = startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitLog(ctx, 0, 1, filepath.Join(dir.path, "web.yaml")+":")
		a.waitSynced(ctx, 0)
		if diff := cmp.Diff(before, save(ctx, t, node, v)); diff != "" {
			t.Errorf("with a broken file at start rules changed (-before +after):\n%s", diff)
		}
		from := len(a.log())
		dir.write("more.yaml", service("more", 30))
		a.waitSynced(ctx, from)
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			if r := webProbe(node.Pods[1], f, network).Once(ctx); r.Server != node.Pods[0].Label {
				t.Errorf("with a broken file: %s", r)
			}
			p := webProbe(node.Pods[1], f, network)
			p.To = netip.AddrPortFrom(vip(f, 30), p.To.Port())
			if r := p.Once(ctx); r.Outcome != lab.Refused {
				t.Errorf("a Service added beside a broken file: %s, want refused", r)
			}
		})

		from = len(a.log())
		dir.remove("web.yaml")
		a.waitSynced(ctx, from)
		// In IPVS mode its address may be there a while longer, for connections that end.
		if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Outcome != lab.TimedOut && (r.Outcome != lab.Refused || *proxyMode != "ipvs") {
			t.Errorf("after the broken file was removed its Service answers: %s", r)
		}
	})
}

// TestKernelStopWithoutAPIServer: an agent that has never reached its API
// server stops as quickly as any.
func TestKernelStopWithoutAPIServer(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	node := newLab(t).Nodes[0]
	a := startAgent(ctx, t, node, lab.NFT, "--master", "http://127.0.0.1:1")
	a.waitLog(ctx, 0, 1, "http://127.0.0.1:1", "stays")
	// Nothing tells when client-go has come to pauses of seconds.
	select {
	case <-time.After(6 * time.Second):
	case <-a.done:
		t.Fatal("the agent ended by itself")
	}
	if took := a.stop(); took > time.Second {
		t.Errorf("stopping took %s, want at most a second", took)
	}
}
