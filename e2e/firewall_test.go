// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelDropPolicies: on a node that drops what no rule accepts, clients
// outside reach node ports and health check ports, and nothing else.
func TestKernelDropPolicies(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, server := l.Nodes[0], l.Nodes[1].Pods[0]
		dir := newDirectory(t)
		balanced := exposed(l, server)
		svc := service("balanced", 20)
		svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		svc.Spec.HealthCheckNodePort = healthPort
		dir.write("web.yaml", append(balanced, svc)...)
		startAgent(ctx, t, node, v, "--manifests", dir.path).waitSynced(ctx, 0)
		for _, f := range families() {
			for _, chain := range []string{"INPUT", "FORWARD"} {
				if err := node.Iptables(ctx, v, f, "-P", chain, "DROP"); err != nil {
					t.Fatal(err)
				}
			}
			// Neighbours find each other by packets of ICMPv6.
			if f == model.IPv6 {
				if err := node.Iptables(ctx, v, f, "-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT"); err != nil {
					t.Fatal(err)
				}
			}
		}
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			at := uint16(30080)
			if network == "udp" {
				at = dnsNodePort
			}
			p := lab.Probe{From: l.Client, Network: network, To: netip.AddrPortFrom(node.Addr(f), at)}
			if r := p.Once(ctx); r.Server != server.Label {
				t.Errorf("node port: %s", r)
			}
			if network == "udp" {
				return
			}
			if !connects(ctx, t, l.Client, netip.AddrPortFrom(node.Addr(f), healthPort)) {
				t.Errorf("%s: health check port refuses", f)
			}
			p.To = netip.AddrPortFrom(node.Addr(f), 10256)
			if r := p.Once(ctx); r.Outcome != lab.TimedOut {
				t.Errorf("another port of the node: %s, want no answer", r)
			}
		})
	})
}

// TestKernelSourceRangesAreForNewConnections: a connection goes on when its
// client is not in the source ranges any more, and there is no new one.
func TestKernelSourceRangesAreForNewConnections(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		if err := l.RouteClient(node, netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:f::/64")); err != nil {
			t.Fatal(err)
		}
		dir := newDirectory(t)
		objects := exposed(l, node.Pods[0])
		dir.write("web.yaml", objects...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		var probes []lab.Probe
		var held []*lab.Held
		for _, ip := range []string{"203.0.113.80", "2001:db8:f::80"} {
			p := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(netip.MustParseAddr(ip), httpPort)}
			h, err := p.Hold(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			probes, held = append(probes, p), append(held, h)
		}
		objects[0].(*corev1.Service).Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", "2001:db8:e::/48"}
		from := len(a.log())
		dir.write("web.yaml", objects...)
		a.waitSynced(ctx, from)
		for i, h := range held {
			if r := h.Ping(ctx); r.Outcome != lab.Answered {
				t.Errorf("%s, made before: %s", probes[i], r)
			}
			if r := probes[i].Once(ctx); r.Outcome != lab.TimedOut {
				t.Errorf("%s, a new one: %s, want no answer", probes[i], r)
			}
		}
	})
}
