// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/nat/conntrack"
	"fairlead/nat/egress"
	"fairlead/nat/ipset"
	"fairlead/proxier/model"
)

// outsidePort is what hosts and pods listen on that are asked from pods directly.
const outsidePort = 9000

// nodesExempt has the lab's nodes in it, and not its client.
const nodesExempt = "10.0.0.0/8,192.0.2.8/29,2001:db8::10/124"

// startEgress starts an agent that masquerades what pods send, and servers for what
// is asked.
func startEgress(ctx context.Context, t *testing.T, l *lab.Lab, v lab.Variant, args ...string) *agent {
	t.Helper()
	for _, ns := range []*lab.NS{l.Client, l.Nodes[0].NS, l.Nodes[1].NS, l.Nodes[1].Pods[0]} {
		for _, f := range families() { // or a node would answer a pod by UDP from its address on the bridge
			if _, err := ns.Echo(ctx, ns.Label, netip.AddrPortFrom(ns.Addr(f), outsidePort)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range families() { // else nobody outside could answer a pod's own address
		if err := l.RouteClient(l.Nodes[0], l.Nodes[0].PodCIDR(f)); err != nil {
			t.Fatal(err)
		}
	}
	a := startAgent(ctx, t, l.Nodes[0], v, append([]string{"--pod-masquerade", "auto"}, args...)...)
	a.waitSynced(ctx, 0)
	return a
}

// checkSource checks which address a server sees.
func checkSource(ctx context.Context, t *testing.T, when string, p lab.Probe, want netip.Addr) lab.Result {
	t.Helper()
	r := p.Once(ctx)
	if r.Outcome != lab.Answered || r.Source.Addr() != want {
		t.Errorf("%s: %s: %s, want an answer to %s", when, p, r, want)
	}
	return r
}

// forwardDrop drops what no rule accepts on its way through a node, as Docker has it.
func forwardDrop(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) {
	t.Helper()
	for _, f := range families() {
		if err := n.Iptables(ctx, v, f, "-P", "FORWARD", "DROP"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernelPodMasquerade: pods come to the outside with the node's address, from a
// port chosen at random, and with their own to pods and to nodes; nothing else is
// masqueraded. So it is where everything is dropped that nobody accepts.
func TestKernelPodMasquerade(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, client := l.Nodes[0], l.Nodes[0].Pods[0], l.Client
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, client)...)
		for _, port := range []uint16{httpTarget, dnsTarget} {
			if _, err := client.EchoPort(ctx, port); err != nil {
				t.Fatal(err)
			}
		}
		forwardDrop(ctx, t, node, v)
		startEgress(ctx, t, l, v, "--manifests", dir.path, "--non-masquerade-cidrs", nodesExempt)
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			ask := func(from, to *lab.NS) lab.Probe {
				return lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(to.Addr(f), outsidePort)}
			}
			same := 0
			for range 4 {
				r := checkSource(ctx, t, "pod to the outside", ask(pod, client), node.Addr(f))
				if r.Source.Port() == r.Local.Port() {
					same++
				}
			}
			if same == 4 {
				t.Error("pod to the outside: source ports are the pod's own, want them random")
			}
			checkSource(ctx, t, "pod to a pod elsewhere", ask(pod, l.Nodes[1].Pods[0]), pod.Addr(f))
			checkSource(ctx, t, "pod to its node", ask(pod, node.NS), pod.Addr(f))
			checkSource(ctx, t, "pod to another node, which is exempt", ask(pod, l.Nodes[1].NS), pod.Addr(f))
			if r := checkSource(ctx, t, "node to the outside", ask(node.NS, client), node.Addr(f)); r.Source.Port() != r.Local.Port() {
				t.Errorf("node to the outside: from port %d, want its own %d", r.Source.Port(), r.Local.Port())
			}
			checkSource(ctx, t, "pod to a Service whose endpoint is outside", webProbe(pod, f, network), node.Addr(f))
			checkSource(ctx, t, "outside to a pod", lab.Probe{From: client, Network: network, To: netip.AddrPortFrom(pod.Addr(f), httpTarget)}, client.Addr(f))
		})
	})
}

// TestKernelPodMasqueradeFile: the file of ip-masq-agent says which destinations see
// pods' own addresses. A change takes effect at once, and a file that makes no sense
// none, not even for an agent that starts with it.
func TestKernelPodMasqueradeFile(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, client := l.Nodes[0], l.Nodes[0].Pods[0], l.Client
		dir, file := newDirectory(t), newDirectory(t)
		const exempt = "nonMasqueradeCIDRs: [192.0.2.100/32, '2001:db8::100/128']\nresyncInterval: 1h\n"
		file.writeText("config", exempt)
		args := []string{"--manifests", dir.path, "--ip-masq-config", filepath.Join(file.path, "config")}
		a := startEgress(ctx, t, l, v, args...)
		check := func(when string, own bool) {
			t.Helper()
			for _, f := range families() {
				want := node.Addr(f)
				if own {
					want = pod.Addr(f)
				}
				checkSource(ctx, t, when, lab.Probe{From: pod, Network: "tcp", To: netip.AddrPortFrom(client.Addr(f), outsidePort)}, want)
			}
		}
		change := func(text string, want ...string) {
			t.Helper()
			from := len(a.log())
			file.writeText("config", text)
			a.waitLog(ctx, from, 1, want...)
			if len(want) == 1 {
				a.waitSynced(ctx, from)
			}
		}
		check("exempt at first", true)
		change("nonMasqueradeCIDRs: [192.0.2.8/29]\n", "Read what to masquerade")
		check("exempt no more", false)
		change("nonMasqueradeCIDRs: [192.0.2.100/24]\n", "Refused the file", "192.0.2.0/24")
		check("an unaligned CIDR", false)
		var many []string
		for i := range 65 {
			many = append(many, fmt.Sprintf("203.0.%d.0/24", i))
		}
		change("nonMasqueradeCIDRs: ["+strings.Join(many, ", ")+"]\n", "Refused the file", "65 CIDRs")
		check("65 CIDRs", false)
		before := save(ctx, t, node, v)
		a.stop()
		a = startAgent(ctx, t, node, v, append([]string{"--pod-masquerade", "on"}, args...)...)
		a.waitSynced(ctx, 0)
		if diff := cmp.Diff(before, save(ctx, t, node, v)); diff != "" {
			t.Errorf("a start with a file that makes no sense (-before +after):\n%s", diff)
		}
		change(exempt, "Read what to masquerade")
		check("exempt again", true)
		a.stop()
		cleanUp(ctx, t, node)
		if got := everything(ctx, t, node, v); len(got) > 0 {
			t.Errorf("after cleanup: %q", got)
		}
	})
}

// TestKernelPodMasqueradeOfOthers: where others masquerade what pods send, the agent
// leaves it to them, unless told not to, and says so in its file.
func TestKernelPodMasqueradeOfOthers(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, dir := l.Nodes[0], newDirectory(t)
		addForeign(t, node, v,
			foreignRule{"nat", "FLANNEL-POSTRTG", "-m mark --mark 0x4000/0x4000 -j RETURN"},
			foreignRule{"nat", "FLANNEL-POSTRTG", "-m addrtype ! --dst-type MULTICAST -j MASQUERADE --random-fully"},
			foreignRule{"nat", "POSTROUTING", "-j FLANNEL-POSTRTG"})
		state := filepath.Join(t.TempDir(), "fairlead", "state.json")
		args := []string{"--manifests", dir.path, "--state-file", state, "--iptables-sync-period", "1s", "--ipvs-sync-period", "1s"}
		check := func(owned bool, reason string) {
			t.Helper()
			if got := masquerades(ctx, t, node, v); got != owned {
				t.Errorf("pods are masqueraded: %v, want %v", got, owned)
			}
			for _, f := range families() {
				if got := readState(t, state)[f.String()]["podMasquerade"]; got.Owned != owned || !strings.Contains(got.Reason, reason) {
					t.Errorf("%s: state %+v, want owned: %v, for %q", f, got, owned, reason)
				}
				if !readState(t, state)[f.String()]["services"].Owned {
					t.Errorf("%s: Services are not owned", f)
				}
			}
		}
		a := startEgress(ctx, t, l, v, args...)
		a.waitLog(ctx, 0, 2, "part=\"services\"")
		check(false, "flannel (chain FLANNEL-POSTRTG)")
		from := len(a.log())
		for _, f := range families() {
			if err := node.Iptables(ctx, v, f, "-t", "nat", "-F", "FLANNEL-POSTRTG"); err != nil {
				t.Fatal(err)
			}
		}
		a.waitLog(ctx, from, 2, "part=\"podMasquerade\"", "does=true")
		a.waitSynced(ctx, len(a.log()))
		check(true, "")
		a.stop()
		addForeign(t, node, v, foreignRule{"nat", "FLANNEL-POSTRTG", "-j MASQUERADE"})
		a = startAgent(ctx, t, node, v, append([]string{"--pod-masquerade", "on"}, args...)...)
		a.waitLog(ctx, 0, 2, "part=\"services\"")
		check(true, "")
		a.stop()
		a = startAgent(ctx, t, node, v, append([]string{"--pod-masquerade", "off"}, args...)...)
		a.waitLog(ctx, 0, 2, "part=\"services\"")
		check(false, "--pod-masquerade=off")
	})
}

// part is what the agent's file says of a part.
type part struct {
	Owned  bool
	Reason string
}

// readState reads the agent's file: family, part.
func readState(t *testing.T, path string) map[string]map[string]part {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Families map[string]map[string]part
	}
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return state.Families
}

// TestKernelPodMasqueradeTunnel: what is masqueraded on its way into a tunnel is so
// once: the tunnel's own packets keep their port, by which the kernel at the other
// end tells flows apart.
func TestKernelPodMasqueradeTunnel(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, remote := l.Nodes[0], l.Nodes[0].Pods[0], l.Nodes[1].Pods[0]
		for i, n := range l.Nodes[:2] {
			other := l.Nodes[1-i]
			for _, args := range [][]string{
				{"link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "local", n.Addr(model.IPv4).String(), "nolearning"},
				{"addr", "add", n.PodCIDR(model.IPv4).Addr().String() + "/32", "dev", "flannel.1"},
				{"link", "set", "flannel.1", "address", fmt.Sprintf("0a:58:0a:f4:0%d:00", i), "up"},
				{"neigh", "replace", other.PodCIDR(model.IPv4).Addr().String(), "lladdr", fmt.Sprintf("0a:58:0a:f4:0%d:00", 1-i), "dev", "flannel.1", "nud", "permanent"},
				{"route", "replace", other.PodCIDR(model.IPv4).String(), "via", other.PodCIDR(model.IPv4).Addr().String(), "dev", "flannel.1", "onlink"},
			} {
				if _, err := n.Run(ctx, "ip", args...); err != nil {
					t.Fatal(err)
				}
			}
			_, err := n.Run(ctx, "bridge", "fdb", "replace", fmt.Sprintf("0a:58:0a:f4:0%d:00", 1-i), "dev", "flannel.1", "dst", other.Addr(model.IPv4).String(), "self", "permanent")
			if err != nil {
				t.Fatal(err)
			}
		}
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, remote)...)
		startEgress(ctx, t, l, v, "--manifests", dir.path)
		checkSource(ctx, t, "pod through the tunnel", webProbe(pod, model.IPv4, "tcp"), pod.Addr(model.IPv4))
		checkSource(ctx, t, "node through the tunnel, masqueraded", webProbe(node.NS, model.IPv4, "tcp"), node.PodCIDR(model.IPv4).Addr())
		tunnels := 0
		err := node.Do(func() error {
			return conntrack.Netlink{}.Flows(ctx, model.IPv4, func(f conntrack.Flow) bool {
				if f.Dst.Port() == 8472 {
					tunnels++
					if f.ReplyDst != f.Src {
						t.Errorf("the tunnel's packets from %v come from %v", f.Src, f.ReplyDst)
					}
				}
				return true
			})
		})
		if err != nil || tunnels == 0 {
			t.Errorf("%d flows of the tunnel (%v)", tunnels, err)
		}
	})
}

// TestKernelManyExempt: many destinations that see pods' own addresses are in a set, one
// more of them is no rule, and few are rules again.
func TestKernelManyExempt(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod := l.Nodes[0], l.Nodes[0].Pods[0]
		list := func(n int, more ...string) string {
			for i := range n {
				more = append(more, fmt.Sprintf("11.%d.%d.0/24", i/256, i%256), fmt.Sprintf("'2001:db8:11:%x::/64'", i))
			}
			return "cidrLimit: 100000\nnonMasqueradeCIDRs: [" + strings.Join(more, ", ") + "]\n"
		}
		exempt := []string{"192.0.2.100/32", "'2001:db8::100/128'"}
		dir, file := newDirectory(t), newDirectory(t)
		file.writeText("config", list(10_000))
		a := startEgress(ctx, t, l, v, "--manifests", dir.path, "--ip-masq-config", filepath.Join(file.path, "config"))
		change := func(text string) {
			t.Helper()
			from := len(a.log())
			file.writeText("config", text)
			a.waitSynced(ctx, from)
		}
		check := func(when string, own, set bool) {
			t.Helper()
			for _, f := range families() {
				want := node.Addr(f)
				if own {
					want = pod.Addr(f)
				}
				checkSource(ctx, t, when, lab.Probe{From: pod, Network: "tcp", To: netip.AddrPortFrom(l.Client.Addr(f), outsidePort)}, want)
				if *proxyMode == "nftables" { // where it always is
					continue
				}
				rules, err := node.Save(ctx, v, f)
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Contains(rules, "NON-MASQ dst -j RETURN"); got != set {
					t.Errorf("%s: %s rules go by a set: %v, want %v", when, f, got, set)
				}
			}
		}
		check("10,000", false, true)
		rules := everything(ctx, t, node, v)
		change(list(10_000, exempt...))
		check("one more", true, true)
		if diff := cmp.Diff(rules, everything(ctx, t, node, v)); diff != "" {
			t.Errorf("one more (-before +after):\n%s", diff)
		}
		a.stop()
		a = startAgent(ctx, t, node, v, "--manifests", dir.path, "--pod-masquerade", "on", "--ip-masq-config", filepath.Join(file.path, "config"))
		a.waitLog(ctx, 0, 2, "Synced", "written=0")
		check("after a restart", true, true)
		change(list(1, exempt...))
		check("few", true, false)
		change(list(100))
		check("many again", false, true)
		a.stop()
		cleanUp(ctx, t, node)
		for _, ipv6 := range []bool{false, true} {
			err := node.Do(func() error {
				_, found, err := ipset.NewSet(egress.SetName(ipv6), ipset.HashNet, ipv6).List()
				if found {
					t.Errorf("after cleanup: set %s is there", egress.SetName(ipv6))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}
