// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// sticky is the Service "web" with session affinity.
func sticky(l *lab.Lab, pods ...*lab.NS) []runtime.Object {
	objs := web(l, pods...)
	objs[0].(*corev1.Service).Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	return objs
}

// setsOn returns the names of the node's sets.
func setsOn(ctx context.Context, t *testing.T, n *lab.Node) []string {
	t.Helper()
	out, err := n.Run(ctx, "ipset", "list", "-n")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(out)
}

// awaitNoSets waits until the node has no set but one. The kernel frees rules
// after they have gone, and the agent tries again when it checks.
func awaitNoSets(ctx context.Context, t *testing.T, n *lab.Node, but string) {
	t.Helper()
	for {
		sets := setsOn(ctx, t, n)
		if len(sets) == 1 && sets[0] == but {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("sets %q are left, want %s alone", sets, but)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestKernelAffinity: 300 clients keep their endpoints, more than lists of 100
// could know, and through a restart; the sets that they are in go with the
// Service, and with a clean-up.
func TestKernelAffinity(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		var clients []netip.Addr
		for i := range 300 {
			a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			clients = append(clients, a)
			if err := l.Client.AddAddr("eth0", netip.PrefixFrom(a, 32)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := node.Run(ctx, "ip", "route", "add", "198.18.0.0/15", "via", l.Client.Addr(model.IPv4).String()); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Run(ctx, "ipset", "create", "OTHERS", "hash:ip", "timeout", "60"); err != nil {
			t.Fatal(err)
		}
		ask := func() (servers []string) {
			t.Helper()
			for _, c := range clients {
				p := webProbe(l.Client, model.IPv4, "tcp")
				p.Source = c
				r := p.Once(ctx)
				if r.Outcome != lab.Answered {
					t.Fatalf("from %s: %s", c, r)
				}
				servers = append(servers, r.Server)
			}
			return servers
		}
		dir := newDirectory(t)
		dir.write("web.yaml", sticky(l, node.Pods[0], l.Nodes[1].Pods[0])...)
		a := startAgent(ctx, t, node, v, iptablesMode, "--manifests", dir.path, "--iptables-sync-period", "1s")
		a.waitSynced(ctx, 0)
		first := ask()
		check := func(when string) {
			t.Helper()
			moved := 0
			for i, s := range ask() {
				if s != first[i] {
					moved++
				}
			}
			if moved > 0 {
				t.Errorf("%s: %d of %d clients changed their endpoint, want none", when, moved, len(clients))
			}
		}
		check("again")
		a.stop()
		a = startAgent(ctx, t, node, v, iptablesMode, "--manifests", dir.path, "--iptables-sync-period", "1s")
		a.waitSynced(ctx, 0)
		check("after a restart")
		from := len(a.log())
		dir.remove("web.yaml")
		a.waitSynced(ctx, from)
		awaitNoSets(ctx, t, node, "OTHERS")
		from = len(a.log())
		dir.write("web.yaml", sticky(l, node.Pods[0])...)
		a.waitSynced(ctx, from)
		if n := len(setsOn(ctx, t, node)); n != 1+2*3 { // three ports in two families
			t.Errorf("%d sets %q, want 6 besides OTHERS", n, setsOn(ctx, t, node))
		}
		a.stop()
		cleanUp(ctx, t, node)
		awaitNoSets(ctx, t, node, "OTHERS")
	})
}

// TestKernelAffinityScope: by whatever address of a port a client comes, it has
// the same endpoint, and by another port of the Service perhaps another one.
func TestKernelAffinityScope(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		if err := l.RouteClient(node, netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:f::/64")); err != nil {
			t.Fatal(err)
		}
		dir := newDirectory(t)
		objects := exposed(l, node.Pods[0], l.Nodes[1].Pods[0])
		svc := objects[0].(*corev1.Service)
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		dir.write("web.yaml", objects...)
		startAgent(ctx, t, node, v, iptablesMode, "--manifests", dir.path).waitSynced(ctx, 0)
		const clients = 20 // chance makes all choose alike once in 2²⁰
		others := 0
		for i := range clients {
			source := netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)})
			if err := l.Client.AddAddr("eth0", netip.PrefixFrom(source, 24)); err != nil {
				t.Fatal(err)
			}
			ask := func(network string, to netip.AddrPort) string {
				p := lab.Probe{From: l.Client, Network: network, To: to, Source: source}
				r := p.Once(ctx)
				if r.Outcome != lab.Answered {
					t.Fatalf("%s from %s: %s", p, source, r)
				}
				return r.Server
			}
			first := ask("tcp", netip.AddrPortFrom(vip(model.IPv4, 10), httpPort))
			for kind, at := range udpAddrs(l, model.IPv4) {
				port := uint16(httpPort)
				if kind == "node port" {
					port = 30080
				}
				if got := ask("tcp", netip.AddrPortFrom(at.Addr(), port)); got != first {
					t.Errorf("client %s reaches %s by the %s, and %s by the cluster IP", source, got, kind, first)
				}
			}
			if ask("udp", netip.AddrPortFrom(vip(model.IPv4, 10), dnsPort)) != first {
				others++
			}
		}
		if others == 0 {
			t.Error("every client has the same endpoint by both ports")
		}
	})
}

// TestKernelAffinityWithoutSets: where iptables cannot use sets, the agent says
// so, goes on with lists, and makes no set.
func TestKernelAffinityWithoutSets(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", sticky(l, node.Pods[0])...)
		commands := newLoggedCommands(t)
		for _, f := range families() {
			commands.wrap(v.Tool(f, "-restore"), `case "$*" in *--test*) echo "no match set" >&2; exit 2;; esac`)
		}
		a := startAgentEnv(ctx, t, node, v, []string{commands.path()}, iptablesMode, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		a.waitLog(ctx, 0, len(families()), "at most 100 clients", "no match set")
		if rules := save(ctx, t, node, v); !strings.Contains(rules, "-m recent --rcheck") || strings.Contains(rules, "--match-set") {
			t.Errorf("rules, want lists and no sets:\n%s", rules)
		}
		if sets := setsOn(ctx, t, node); len(sets) > 0 {
			t.Errorf("sets %q are left", sets)
		}
	})
}
