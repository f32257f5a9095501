// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
	"fairlead/nat/nfacct"
	"fairlead/proxier/model"
)

// TestKernelLocalhostNodePorts: node ports answer on 127.0.0.1 if asked to, by
// a setting that is made after the rule that keeps neighbours away from the
// node's loopback, and taken back before that rule goes.
func TestKernelLocalhostNodePorts(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", exposed(l, node.Pods[0])...)
		local := lab.Probe{From: node.NS, Network: "tcp", To: netip.MustParseAddrPort("127.0.0.1:30080")}
		check := func(when, setting string, answered, rule bool) {
			t.Helper()
			if got := routeLocalnet(t, node); got != setting {
				t.Errorf("%s: route_localnet is %s, want %s", when, got, setting)
			}
			if got := local.Once(ctx).Outcome == lab.Answered; got != answered {
				t.Errorf("%s: node port on 127.0.0.1 answered: %v, want %v", when, got, answered)
			}
			if got := strings.Contains(save(ctx, t, node, v), loopbackGuard()); got != rule {
				t.Errorf("%s: rule that drops neighbours' packets: %v, want %v", when, got, rule)
			}
		}
		// In nftables mode the rule is always there.
		always := *proxyMode == "nftables"
		check("before", "0", false, false)
		off := startAgent(ctx, t, node, v, "--manifests", dir.path, "--iptables-localhost-nodeports=false")
		off.waitSynced(ctx, 0)
		check("not asked for", "0", false, always)
		off.stop()
		on := startAgent(ctx, t, node, v, "--manifests", dir.path)
		on.waitSynced(ctx, 0)
		check("asked for", "1", true, true)
		for range 2 { // and who asks the node's own address is not counted
			local.Once(ctx)
		}
		direct := local
		direct.To = netip.AddrPortFrom(node.Addr(model.IPv4), 30080)
		if r := direct.Once(ctx); r.Outcome != lab.Answered {
			t.Error(r)
		}
		if *proxyMode == "iptables" {
			if got := metric(ctx, t, on, "kubeproxy_iptables_localhost_nodeports_accepted_packets_total"); got != "3" {
				t.Errorf("%s connections to node ports on 127.0.0.1 are counted, want 3", got)
			}
		}
		on.stop()
		cleanUp(ctx, t, node)
		if err := node.Do(func() error { _, err := nfacct.Packets(nfacct.LocalhostAccepted); return err }); !errors.Is(err, unix.ENOENT) {
			t.Errorf("after cleanup: read the counter: %v, want %v", err, unix.ENOENT)
		}
		check("after cleanup", "0", false, false)
	})
}

// TestKernelLoopbackOutOfReach: where node ports answer on 127.0.0.1 the kernel
// routes packets for it that come from the link, and yet a neighbour that sends
// such to the node does not reach what listens there (CVE-2020-8558). Without the
// rule that drops them it does.
func TestKernelLoopbackOutOfReach(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, neighbour := l.Nodes[0], l.Client
		dir := newDirectory(t)
		dir.write("web.yaml", exposed(l, node.Pods[0])...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		if got := routeLocalnet(t, node); got != "1" {
			t.Fatalf("route_localnet is %s, want 1", got)
		}
		private := netip.MustParseAddrPort("127.0.0.1:4000")
		if _, err := node.Echo(ctx, "private", private); err != nil {
			t.Fatal(err)
		}
		sendLoopbackTo(ctx, t, neighbour, node)
		check := func(when string, want lab.Outcome) {
			t.Helper()
			for _, network := range []string{"tcp", "udp"} {
				p := lab.Probe{From: neighbour, Network: network, To: private, Source: neighbour.Addr(model.IPv4)}
				if r := p.Once(ctx); r.Outcome != want {
					t.Errorf("%s: %s: got %s, want %s", when, p, r, want)
				}
			}
		}
		check("with the rule", lab.TimedOut)
		a.stop() // which would repair it
		if *proxyMode == "nftables" {
			if _, err := node.Run(ctx, "nft", "flush", "chain", "ip", "fairlead", "filter-prerouting"); err != nil {
				t.Fatal(err)
			}
		} else if err := node.Iptables(ctx, v, model.IPv4, "-F", "KUBE-FIREWALL"); err != nil {
			t.Fatal(err)
		}
		check("without the rule", lab.Answered)
	})
}

// loopbackGuard is the comment of the rule that keeps neighbours from 127.0.0.1.
func loopbackGuard() string {
	if *proxyMode == "nftables" {
		return "neighbours have no business with 127.0.0.1"
	}
	return "block incoming localnet connections"
}

// sendLoopbackTo makes a host send packets for 127.0.0.1 to a node on its link,
// and take the answers from that address.
func sendLoopbackTo(ctx context.Context, t *testing.T, host *lab.NS, node *lab.Node) {
	t.Helper()
	if err := host.SetSysctl("net/ipv4/conf/all/route_localnet", "1"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"addr", "del", "127.0.0.1/8", "dev", "lo"}, // and with it the local routes
		{"route", "add", "127.0.0.1", "via", node.Addr(model.IPv4).String(), "dev", "eth0"},
	} {
		if _, err := host.Run(ctx, "ip", args...); err != nil {
			t.Fatal(err)
		}
	}
}

// routeLocalnet reads the setting in a node.
func routeLocalnet(t *testing.T, n *lab.Node) string {
	t.Helper()
	var text []byte
	err := n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/ipv4/conf/all/route_localnet")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
