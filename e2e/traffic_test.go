// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

func families() []model.Family { return model.Families() }

// webProbe asks the Service "web" from somewhere.
func webProbe(from *lab.NS, f model.Family, network string) lab.Probe {
	port := uint16(httpPort)
	if network == "udp" {
		port = dnsPort
	}
	return lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(vip(f, 10), port)}
}

// forFlows runs check for both protocols of both families.
func forFlows(t *testing.T, check func(t *testing.T, f model.Family, network string)) {
	for _, f := range families() {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s %s", f, network), func(t *testing.T) { check(t, f, network) })
		}
	}
}

// TestKernelClusterIP: everyone reaches every endpoint of a cluster IP; the
// endpoint sees a pod's own address, and of those outside the pods' CIDR the
// node's address on the route to it.
func TestKernelClusterIP(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, client := l.Nodes[0], l.Nodes[0].Pods[1]
		local, remote := node.Pods[0], l.Nodes[1].Pods[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, local, remote)...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)

		forFlows(t, func(t *testing.T, f model.Family, network string) {
			bridge := node.PodCIDR(f).Addr().Next() // the node's address towards its pods
			for _, c := range []struct {
				name                  string
				from                  *lab.NS
				fromLocal, fromRemote netip.Addr
			}{
				{"pod", client, client.Addr(f), client.Addr(f)},
				{"node", node.NS, bridge, node.Addr(f)},
				{"client outside", l.Client, bridge, node.Addr(f)},
			} {
				t.Run(c.name, func(t *testing.T) {
					want := map[string]netip.Addr{local.Label: c.fromLocal, remote.Label: c.fromRemote}
					checkSpread(ctx, t, webProbe(c.from, f, network), want)
				})
			}
		})
	})
}

// checkSpread makes requests until every server of want has answered, and
// checks the source that each saw. Of 60 fair choices between two, one is
// missed once in 10¹⁷.
func checkSpread(ctx context.Context, t *testing.T, p lab.Probe, want map[string]netip.Addr) {
	t.Helper()
	seen := map[string]bool{}
	for range 60 {
		r := p.Once(ctx)
		if r.Outcome != lab.Answered {
			t.Fatalf("%s: got %s, want an answer", p, r)
		}
		source, ok := want[r.Server]
		if !ok {
			t.Fatalf("%s: answered by %s, want one of %v", p, r.Server, want)
		}
		if r.Source.Addr() != source {
			t.Fatalf("%s: %s saw the source %s, want %s", p, r.Server, r.Source.Addr(), source)
		}
		if seen[r.Server] = true; len(seen) == len(want) {
			return
		}
	}
	t.Errorf("%s: only %v answered, want all of %v", p, seen, want)
}

// TestKernelHairpin: a pod that is an endpoint of its own Service reaches
// itself through it.
func TestKernelHairpin(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		pod := l.Nodes[0].Pods[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, pod)...)
		startAgent(ctx, t, l.Nodes[0], v, "--manifests", dir.path).waitSynced(ctx, 0)
		checkHairpin(ctx, t, l.Nodes[0], pod)
	})
}

// checkHairpin checks that a pod, its Service's only endpoint, reaches itself as
// the node.
func checkHairpin(ctx context.Context, t *testing.T, n *lab.Node, pod *lab.NS) {
	t.Helper()
	forFlows(t, func(t *testing.T, f model.Family, network string) {
		bridge := n.PodCIDR(f).Addr().Next()
		checkSpread(ctx, t, webProbe(pod, f, network), map[string]netip.Addr{pod.Label: bridge})
	})
}

// TestKernelEndpointsChange: a Service without endpoints refuses at once, a
// new endpoint takes connections, and one that goes takes no new ones.
func TestKernelEndpointsChange(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		first, second := node.Pods[0], l.Nodes[1].Pods[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l)...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)

		step := func(name string, pods []*lab.NS, want func(t *testing.T, p lab.Probe)) {
			t.Run(name, func(t *testing.T) {
				if pods != nil {
					from := len(a.log())
					dir.write("web.yaml", web(l, pods...)...)
					a.waitSynced(ctx, from)
				}
				forFlows(t, func(t *testing.T, f model.Family, network string) {
					for _, client := range []*lab.NS{node.Pods[1], node.NS} {
						want(t, webProbe(client, f, network))
					}
				})
			})
		}
		refused := func(t *testing.T, p lab.Probe) {
			t.Helper()
			if r := p.Once(ctx); r.Outcome != lab.Refused || r.Took > 500*time.Millisecond {
				t.Errorf("%s: got %s after %s, want refused at once", p, r, r.Took)
			}
		}
		only := func(pod *lab.NS) func(t *testing.T, p lab.Probe) {
			return func(t *testing.T, p lab.Probe) {
				t.Helper()
				tally := p.Spread(ctx, 20)
				if tally.Servers[pod.Label] != 20 {
					t.Errorf("%s: got %+v, want 20 answers of %s", p, tally, pod.Label)
				}
			}
		}
		step("no endpoints", nil, refused)
		step("one endpoint", []*lab.NS{first}, only(first))
		step("replaced", []*lab.NS{second}, only(second))
		step("gone again", []*lab.NS{}, refused)
	})
}

// TestKernelChangeIsQuick: a change of a manifest is effective within 100 ms
// and the sync. The bound here is far above, as machines differ; the figure is
// logged.
func TestKernelChangeIsQuick(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l)...)
		startAgent(ctx, t, node, v, "--manifests", dir.path).waitSynced(ctx, 0)

		dir.write("web.yaml", web(l, node.Pods[0])...)
		took, err := webProbe(node.Pods[1], model.IPv4, "tcp").WaitUntil(ctx, lab.Answered)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("from rename to the first answer: %s", took)
		if took > 2*time.Second {
			t.Errorf("the change took %s to take effect", took)
		}
	})
}
