// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// forNftables runs a test in a lab where the kernel has nf_tables.
func forNftables(t *testing.T, test func(ctx context.Context, t *testing.T, l *lab.Lab)) {
	t.Helper()
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	test(ctx, t, newLab(t))
}

// tables returns the tables of nf_tables that a node has.
func tables(ctx context.Context, t *testing.T, n *lab.Node) string {
	t.Helper()
	out, err := n.Run(ctx, "nft", "list", "tables")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKernelModeSwitch: from iptables to nftables mode and back, with either variant,
// not one of the requests of clients that do not retry fails, and nothing of the mode
// before is left.
func TestKernelModeSwitch(t *testing.T) {
	for _, v := range []lab.Variant{lab.NFT, lab.Legacy} {
		t.Run(string(v), func(t *testing.T) {
			forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
				if err := lab.VariantSupported(ctx, v); err != nil {
					t.Skip(err)
				}
				node := l.Nodes[0]
				dir := newDirectory(t)
				dir.write("web.yaml", web(l, node.Pods[0], l.Nodes[1].Pods[0])...)
				var clients *crowd
				for i, mode := range []string{"iptables", "nftables", "iptables", "nftables"} {
					a := startAgent(ctx, t, node, v, "--proxy-mode", mode, "--manifests", dir.path)
					a.waitSynced(ctx, 0)
					if i == 0 {
						clients = startCrowd(ctx, []*lab.NS{node.Pods[1], node.NS}, 10, 0)
						defer clients.stop()
					}
					if mode == "iptables" && i > 0 {
						a.waitLog(ctx, 0, len(families()), "Removed the table of nftables mode")
					}
					clients.settle()
					rules := save(ctx, t, node, v)
					if got, want := strings.Contains(rules, "KUBE-S"), mode == "iptables"; got != want {
						t.Errorf("%s mode: there are rules of iptables mode: %t, want %t:\n%s", mode, got, want, rules)
					}
					if got, want := strings.Contains(tables(ctx, t, node), "fairlead"), mode == "nftables"; got != want {
						t.Errorf("%s mode: there is a table of nftables mode: %t, want %t", mode, got, want)
					}
					a.stop()
				}
				clients.stop()
				if clients.failed > 0 || clients.made < 100 {
					t.Errorf("of %d requests %d failed, the first: %s", clients.made, clients.failed, clients.first)
				}
			})
		})
	}
}

// TestKernelNftablesFlushed: after a foreign flush of all rules Services work again
// within a second; and a restart writes nothing.
func TestKernelNftablesFlushed(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		a := startAgent(ctx, t, node, lab.NFT, "--proxy-mode", "nftables", "--manifests", dir.path, "--iptables-sync-period", "1h")
		a.waitSynced(ctx, 0)
		for range 3 {
			if _, err := node.Run(ctx, "nft", "flush", "ruleset"); err != nil {
				t.Fatal(err)
			}
			flushed := time.Now()
			for _, f := range families() {
				p := webProbe(node.Pods[1], f, "tcp")
				p.Timeout = 100 * time.Millisecond
				for r := p.Once(ctx); r.Outcome != lab.Answered; r = p.Once(ctx) {
					if time.Since(flushed) > 10*time.Second {
						t.Fatalf("%s: still %s", p, r)
					}
				}
			}
			if took := time.Since(flushed); took > time.Second {
				t.Errorf("it took %s", took)
			}
		}
		_, metrics, err := a.get(ctx, "http://127.0.0.1:10249/metrics")
		if want := `kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 0`; err != nil || !strings.Contains(metrics, want) {
			t.Errorf("metrics have no %s: %v", want, err)
		}
		a.stop()
		again := startAgent(ctx, t, node, lab.NFT, "--proxy-mode", "nftables", "--manifests", dir.path)
		again.waitLog(ctx, 0, 2, "Synced", "written=0")
		again.stop()
		cleanUp(ctx, t, node)
		if left := tables(ctx, t, node); strings.Contains(left, "fairlead") {
			t.Errorf("after a clean-up there are tables %s", left)
		}
	})
}

// TestKernelNftablesAffinity: clients keep their endpoints, through a restart too; those
// of an endpoint that goes have another, and keep that when the first is back.
func TestKernelNftablesAffinity(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		node, other := l.Nodes[0], l.Nodes[1].Pods[0]
		var clients []netip.Addr
		for i := range 60 {
			a := netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})
			clients = append(clients, a)
			if err := l.Client.AddAddr("eth0", netip.PrefixFrom(a, 32)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := node.Run(ctx, "ip", "route", "add", "198.18.0.0/15", "via", l.Client.Addr(model.IPv4).String()); err != nil {
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
		dir.write("web.yaml", sticky(l, node.Pods[0], other)...)
		start := func() *agent {
			a := startAgent(ctx, t, node, lab.NFT, "--proxy-mode", "nftables", "--manifests", dir.path)
			a.waitSynced(ctx, 0)
			return a
		}
		change := func(a *agent, pods ...*lab.NS) {
			from := len(a.log())
			dir.write("web.yaml", sticky(l, pods...)...)
			a.waitLog(ctx, from, 2, "Synced", "changed=3")
		}
		a := start()
		first := ask()
		if !slices.Contains(first, node.Pods[0].Label) || !slices.Contains(first, other.Label) {
			t.Fatalf("all of %d clients have one endpoint", len(first))
		}
		if again := ask(); !slices.Equal(first, again) {
			t.Error("clients changed their endpoints")
		}
		a.stop()
		a = start()
		if again := ask(); !slices.Equal(first, again) {
			t.Error("clients changed their endpoints with a restart")
		}
		change(a, node.Pods[0])
		alone := ask()
		if slices.Contains(alone, other.Label) {
			t.Error("clients reach an endpoint that is gone")
		}
		change(a, node.Pods[0], other)
		if again := ask(); !slices.Equal(alone, again) {
			t.Error("clients changed their endpoints when another one came")
		}
		a.stop()
	})
}

// TestKernelNftablesMaglev: two nodes choose the same endpoint for a client, and not the
// same for all.
func TestKernelNftablesMaglev(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		dir := newDirectory(t)
		objs := web(l, l.Nodes[0].Pods[0], l.Nodes[0].Pods[1], l.Nodes[1].Pods[0], l.Nodes[1].Pods[1])
		objs[0].(*corev1.Service).Spec.Type = corev1.ServiceTypeNodePort
		objs[0].(*corev1.Service).Spec.Ports[0].NodePort = 30080
		dir.write("web.yaml", objs...)
		var agents []*agent
		for _, n := range l.Nodes {
			a := startAgent(ctx, t, n, lab.NFT, "--proxy-mode", "nftables", "--manifests", dir.path, "--load-balancing", "maglev")
			a.waitSynced(ctx, 0)
			agents = append(agents, a)
			if _, err := n.Run(ctx, "ip", "route", "add", "198.18.0.0/15", "via", l.Client.Addr(model.IPv4).String()); err != nil {
				t.Fatal(err)
			}
		}
		chosen := map[string]bool{}
		for i := range 20 {
			client := netip.AddrFrom4([4]byte{198, 18, 1, byte(i)})
			if err := l.Client.AddAddr("eth0", netip.PrefixFrom(client, 32)); err != nil {
				t.Fatal(err)
			}
			var by []string
			for _, n := range l.Nodes {
				p := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(n.Addr(model.IPv4), 30080), Source: client}
				r := p.Once(ctx)
				if r.Outcome != lab.Answered {
					t.Fatalf("%s: %s", p, r)
				}
				by = append(by, r.Server)
			}
			if chosen[by[0]] = true; by[0] != by[1] {
				t.Errorf("client %s: one node chooses %s, the other %s", client, by[0], by[1])
			}
		}
		if len(chosen) < 3 {
			t.Errorf("20 clients have %d of 4 endpoints", len(chosen))
		}
		for _, a := range agents {
			a.stop()
		}
	})
}

// TestKernelNftablesRefuses: what is sent to a ServiceCIDR and is for no port of a
// Service is refused: another address, another port, a ping.
func TestKernelNftablesRefuses(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		a := startAgent(ctx, t, node, lab.NFT, "--proxy-mode", "nftables", "--manifests", dir.path,
			"--service-cidrs", vip(model.IPv4, 0).String()+"/24,"+vip(model.IPv6, 0).String()+"/120")
		a.waitSynced(ctx, 0)
		defer a.stop()
		for _, from := range []*lab.NS{node.Pods[1], node.NS} {
			for _, f := range families() {
				for _, network := range []string{"tcp", "udp"} {
					unallocated, otherPort := webProbe(from, f, network), webProbe(from, f, network)
					unallocated.To = netip.AddrPortFrom(vip(f, 99), httpPort)
					otherPort.To = netip.AddrPortFrom(vip(f, 10), 9999)
					for what, p := range map[string]lab.Probe{"an address that nobody has": unallocated, "another port": otherPort} {
						if r := p.Once(ctx); r.Outcome != lab.Refused {
							t.Errorf("%s: %s: %s, want a refusal", what, p, r)
						}
					}
				}
				if err := from.Do(func() error { return pingUnreachable(vip(f, 10)) }); err != nil {
					t.Errorf("ping of a cluster IP from %s: %v", from.Label, err)
				}
			}
		}
	})
}

// pingUnreachable pings an address, and returns nil once an ICMP message says that it
// cannot be reached.
func pingUnreachable(to netip.Addr) error {
	network, unreachable := "ip4:icmp", byte(3)
	echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // with the checksum of nothing else
	if to.Is6() {
		network, unreachable = "ip6:ipv6-icmp", 1
		echo = []byte{128, 0, 0, 0, 0, 0, 0, 0} // of which the kernel makes the checksum
	}
	c, err := net.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.WriteTo(echo, &net.IPAddr{IP: to.AsSlice()}); errors.Is(err, unix.EPERM) {
		return nil // the node itself is told at once
	} else if err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n > 0 && buf[0] == unreachable {
			return nil
		}
	}
}

// withoutIptables is an environment in which there is no iptables command.
func withoutIptables(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(nsenter, filepath.Join(bin, "nsenter")); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + bin
}

// TestKernelNftablesAlone: the mode needs no iptables for Services, for host ports and
// for what pods send to the outside, and says what there is not without.
func TestKernelNftablesAlone(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		node, server := l.Nodes[0], l.Nodes[0].Pods[0]
		dir := newDirectory(t)
		dir.write("web.yaml", append(web(l, server), podObject("web", server, publish(hostPort)))...)
		for _, f := range families() {
			if _, err := l.Client.Echo(ctx, l.Client.Label, netip.AddrPortFrom(l.Client.Addr(f), outsidePort)); err != nil {
				t.Fatal(err)
			}
		}
		a := startAgentEnv(ctx, t, node, lab.NFT, []string{withoutIptables(t)}, "--proxy-mode", "nftables", "--manifests", dir.path,
			"--pod-masquerade", "auto", "--host-ports-localhost")
		a.waitSynced(ctx, 0)
		a.waitLog(ctx, 0, 2, "Without iptables")
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			if r := webProbe(node.Pods[1], f, network).Once(ctx); r.Server != server.Label {
				t.Errorf("%s, want an answer of %s", r, server.Label)
			}
			outside := lab.Probe{From: node.Pods[1], Network: network, To: netip.AddrPortFrom(l.Client.Addr(f), outsidePort)}
			checkSource(ctx, t, "pod to the outside", outside, node.Addr(f))
		})
		checkHostPort(ctx, t, l, server, func(f model.Family) netip.Addr { return node.Pods[1].Addr(f) })
		if r := ask(node.NS, "tcp", loopback4).Once(ctx); r.Server != server.Label {
			t.Errorf("at %s: %s, want an answer of %s", loopback4, r, server.Label)
		}
		a.stop()
	})
}

// TestKernelNftablesInitAlone: without iptables, too, the rule that keeps neighbours from
// 127.0.0.1 is there before the kernel routes packets for it; the agent takes it over.
func TestKernelNftablesInitAlone(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		node, dir, env := l.Nodes[0], newDirectory(t), withoutIptables(t)
		dir.write("web.yaml", append(web(l, node.Pods[0]), podObject("web", node.Pods[0], publish(hostPort)))...)
		init := node.Command(ctx, binary, "--init-only", "--proxy-mode", "nftables", "--host-ports-localhost", "--conntrack-max-per-core", "0")
		init.Env = append(init.Environ(), env)
		if out, err := init.CombinedOutput(); err != nil {
			t.Fatalf("--init-only: %v: %s", err, out)
		}
		if got := routeLocalnet(t, node); got != "1" {
			t.Errorf("route_localnet is %s, want 1", got)
		}
		if _, err := node.Echo(ctx, "private", netip.MustParseAddrPort("127.0.0.1:4000")); err != nil {
			t.Fatal(err)
		}
		sendLoopbackTo(ctx, t, l.Client, node)
		check := func(when string) {
			t.Helper()
			p := lab.Probe{From: l.Client, Network: "tcp", Source: l.Client.Addr(model.IPv4), To: netip.MustParseAddrPort("127.0.0.1:4000")}
			if r := p.Once(ctx); r.Outcome != lab.TimedOut {
				t.Errorf("%s: %s: %s, want no answer", when, p, r)
			}
		}
		check("after --init-only")
		a := startAgentEnv(ctx, t, node, lab.NFT, []string{env}, "--proxy-mode", "nftables", "--manifests", dir.path, "--host-ports-localhost")
		a.waitSynced(ctx, 0)
		check("with the agent")
		if r := ask(node.NS, "tcp", loopback4).Once(ctx); r.Server != node.Pods[0].Label {
			t.Errorf("at %s: %s, want an answer of %s", loopback4, r, node.Pods[0].Label)
		}
		a.stop()
	})
}

// TestKernelNftablesCleanupAlone: without iptables cleanup removes the table, and fails
// only where there are rules of iptables to remove.
func TestKernelNftablesCleanupAlone(t *testing.T) {
	forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
		node, dir, env := l.Nodes[0], newDirectory(t), withoutIptables(t)
		dir.write("web.yaml", append(web(l, node.Pods[0]), podObject("web", node.Pods[0], publish(hostPort)))...)
		cleanup := func(args ...string) *exec.Cmd {
			cmd := node.Command(ctx, binary, append([]string{"cleanup"}, args...)...)
			cmd.Env = append(cmd.Environ(), env)
			return cmd
		}
		start := func() {
			t.Helper()
			a := startAgentEnv(ctx, t, node, lab.NFT, []string{env}, "--proxy-mode", "nftables", "--manifests", dir.path, "--pod-masquerade", "auto")
			a.waitSynced(ctx, 0)
			a.stop()
		}
		start()
		if out, err := cleanup().CombinedOutput(); err != nil {
			t.Errorf("cleanup: %v: %s", err, out)
		}
		if left := tables(ctx, t, node); strings.Contains(left, "fairlead") {
			t.Errorf("after cleanup there are tables %s", left)
		}
		if got := routeLocalnet(t, node); got != "0" {
			t.Errorf("after cleanup: route_localnet is %s", got)
		}
		start()
		addForeign(t, node, lab.NFT, foreignRule{"nat", "KUBE-SERVICES", "-j RETURN"})
		out, err := cleanup().CombinedOutput()
		if err == nil || !strings.Contains(string(out), "chain KUBE-SERVICES") || !strings.Contains(string(out), "install the iptables package") {
			t.Errorf("cleanup with rules of iptables: %v: %s, want an error that names them and the remedy", err, out)
		}
		if left := tables(ctx, t, node); strings.Contains(left, "fairlead") {
			t.Errorf("after a cleanup that failed for iptables there are tables %s", left)
		}
		if out, err := cleanup("--only=nat").CombinedOutput(); err != nil {
			t.Errorf("cleanup of what there is not: %v: %s", err, out)
		}
	})
}

// TestKernelModeSwitchBeside: host ports and pods to the outside, too, go over from
// iptables to nftables mode and back without a request that fails, and leave nothing.
func TestKernelModeSwitchBeside(t *testing.T) {
	for _, v := range []lab.Variant{lab.NFT, lab.Legacy} {
		t.Run(string(v), func(t *testing.T) {
			forNftables(t, func(ctx context.Context, t *testing.T, l *lab.Lab) {
				if err := lab.VariantSupported(ctx, v); err != nil {
					t.Skip(err)
				}
				node, pod := l.Nodes[0], l.Nodes[0].Pods[0]
				dir := newDirectory(t)
				dir.write("pod.yaml", podObject("web", pod, publish(hostPort)))
				for _, f := range families() {
					if _, err := l.Client.Echo(ctx, l.Client.Label, netip.AddrPortFrom(l.Client.Addr(f), outsidePort)); err != nil {
						t.Fatal(err)
					}
				}
				var probes []lab.Probe
				for _, f := range families() {
					probes = append(probes, ask(l.Client, "tcp", node.Addr(f)), ask(node.NS, "tcp", node.Addr(f)), ask(pod, "tcp", node.Addr(f)),
						lab.Probe{From: node.Pods[1], Network: "tcp", To: netip.AddrPortFrom(l.Client.Addr(f), outsidePort)})
				}
				var asked *asking
				for i, mode := range []string{"iptables", "nftables", "iptables", "nftables"} {
					from := 0
					a := startAgent(ctx, t, node, v, "--proxy-mode", mode, "--manifests", dir.path, "--pod-masquerade", "on", "--host-ports", "on")
					a.waitSynced(ctx, from)
					if i == 0 {
						asked = askOn(ctx, probes)
						defer asked.stop()
					}
					asked.round()
					if mode == "iptables" && i > 0 {
						a.waitLog(ctx, 0, len(families()), "Removed the table of nftables mode")
					}
					rules := save(ctx, t, node, v)
					for _, chain := range []string{"KUBE-HOSTPORTS", "KUBE-POD-MASQ", "KUBE-POD-EGRESS"} {
						if got, want := strings.Contains(rules, chain), mode == "iptables"; got != want {
							t.Errorf("%s mode: there is %s: %t, want %t:\n%s", mode, chain, got, want, rules)
						}
					}
					for _, set := range []string{"host-ports", "masqueraded-pods"} {
						if got, want := inTable(ctx, t, node, set), mode == "nftables"; got != want {
							t.Errorf("%s mode: there is something in %s: %t, want %t", mode, set, got, want)
						}
					}
					a.stop()
				}
				if made, failed := asked.stop(); len(failed) > 0 || made < 100 {
					t.Errorf("of %d requests %d failed: %q", made, len(failed), failed[:min(len(failed), 3)])
				}
			})
		})
	}
}

// asking asks the same again and again.
type asking struct {
	cancel context.CancelFunc
	wait   func()
	rounds chan struct{}
	made   int
	failed []string
}

// askOn asks until it is stopped.
func askOn(ctx context.Context, probes []lab.Probe) *asking {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	a := &asking{cancel: cancel, wait: func() { <-done }, rounds: make(chan struct{})}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for _, p := range probes {
				r := p.Once(ctx)
				if ctx.Err() != nil {
					return
				}
				if a.made++; r.Outcome != lab.Answered {
					a.failed = append(a.failed, p.String()+": "+r.String())
				}
			}
			select {
			case a.rounds <- struct{}{}:
			default:
			}
		}
	}()
	return a
}

// round waits until all has been asked twice, once of it from the beginning.
func (a *asking) round() {
	for range 2 {
		<-a.rounds
	}
}

// stop ends it, and returns how many requests there were and which failed.
func (a *asking) stop() (made int, failed []string) {
	a.cancel()
	a.wait()
	return a.made, a.failed
}
