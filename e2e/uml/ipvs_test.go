// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

const (
	backendPort = 8080
	// dummy is the device that has the virtual addresses.
	dummy = "kube-ipvs0"
)

// balancer is a node with virtual servers and two pods behind them.
type balancer struct {
	*lab.Lab
	node *lab.Node
}

// newBalancer skips where the kernel has no IPVS, and fails where it lacks
// anything else.
func newBalancer(t *testing.T) balancer {
	t.Helper()
	ctx := testContext(t)
	if err := lab.Supported(ctx); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("/proc/net/ip_vs"); errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel has no IPVS")
	}
	vips := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:f::/64")}
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Pods: 2, ClientRoutes: vips})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	b := balancer{Lab: l, node: l.Nodes[0]}
	b.run(t, "ip", "link", "add", dummy, "type", "dummy")
	for _, f := range model.Families() {
		b.run(t, "ip", "addr", "add", bits(cluster(f)), "dev", dummy, "nodad")
		b.run(t, "ip", "addr", "add", bits(external(f)), "dev", dummy, "nodad")
	}
	for _, pod := range b.node.Pods {
		if _, err := pod.EchoPort(ctx, backendPort); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (b balancer) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := b.node.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// cluster and external are the virtual addresses.
func cluster(f model.Family) netip.Addr {
	return map[model.Family]netip.Addr{
		model.IPv4: netip.MustParseAddr("10.96.0.10"), model.IPv6: netip.MustParseAddr("fd00:10:96::10"),
	}[f]
}

func external(f model.Family) netip.Addr {
	return map[model.Family]netip.Addr{
		model.IPv4: netip.MustParseAddr("203.0.113.20"), model.IPv6: netip.MustParseAddr("2001:db8:f::20"),
	}[f]
}

func bits(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// serve makes virtual servers of both protocols with the pods as real servers.
func (b balancer) serve(t *testing.T, at netip.AddrPort, f model.Family) {
	t.Helper()
	for _, protocol := range []string{"-t", "-u"} {
		b.run(t, "ipvsadm", "-A", protocol, at.String(), "-s", "rr")
		for _, pod := range b.node.Pods {
			b.run(t, "ipvsadm", "-a", protocol, at.String(), "-r", netip.AddrPortFrom(pod.Addr(f), backendPort).String(), "-m")
		}
	}
}

// expect asks twice, which round robin sends to either pod, and wants each of
// them to have seen the request come from an address.
func (b balancer) expect(t *testing.T, from *lab.NS, network string, to netip.AddrPort, saw func(pod *lab.NS) netip.Addr) {
	t.Helper()
	got, want := map[string]bool{}, map[string]bool{}
	for _, pod := range b.node.Pods {
		r := (lab.Probe{From: from, Network: network, To: to}).Once(t.Context())
		if r.Outcome != lab.Answered {
			t.Errorf("%s → %s/%s: %s", from.Label, to, network, r)
			return
		}
		got[r.Server+" saw "+r.Source.Addr().String()] = true
		want[pod.Label+" saw "+saw(pod).String()] = true
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s → %s/%s: got %v, want %v", from.Label, to, network, got, want)
	}
}

func networks() []string { return []string{"tcp", "udp"} }

// TestKernelIPVS: a connection to a virtual server reaches its real servers.
func TestKernelIPVS(t *testing.T) {
	b := newBalancer(t)
	for _, f := range model.Families() {
		vip := cluster(f)
		at := netip.AddrPortFrom(vip, 80)
		b.serve(t, at, f)
		for _, network := range networks() {
			b.expect(t, b.Client, network, at, func(*lab.NS) netip.Addr { return b.Client.Addr(f) })
			b.expect(t, b.node.NS, network, at, func(*lab.NS) netip.Addr { return vip })
		}
	}
}

// TestKernelIPVSPieces: what else the mode needs of a kernel.
func TestKernelIPVSPieces(t *testing.T) {
	b := newBalancer(t)
	for _, setType := range []string{"hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net", "hash:ip", "bitmap:port range 0-65535"} {
		name := strings.NewReplacer(":", "-", ",", "-", " ", "-").Replace(setType)
		args := append([]string{"create", name}, strings.Fields(setType)...)
		if _, err := b.node.Run(t.Context(), "ipset", args...); err != nil {
			t.Errorf("set of type %s: %v", setType, err)
		}
	}
	for _, scheduler := range []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq", "fo", "ovf"} {
		if _, err := b.node.Run(t.Context(), "ipvsadm", "-A", "-t", "10.96.0.11:80", "-s", scheduler); err != nil {
			t.Errorf("scheduler %s: %v", scheduler, err)
			continue
		}
		b.run(t, "ipvsadm", "-D", "-t", "10.96.0.11:80")
	}
	b.run(t, "iptables-legacy", "-A", "OUTPUT", "-m", "ipvs", "--vaddr", "10.96.0.10", "-j", "DROP")
	const file = "/proc/sys/net/ipv4/vs/conntrack"
	b.run(t, "sysctl", "-qw", "net.ipv4.vs.conntrack=1")
	if got := strings.TrimSpace(b.run(t, "cat", file)); got != "1" {
		t.Errorf("%s is %s after it was set to 1", file, got)
	}
	if got, err := b.Client.Run(t.Context(), "cat", file); err != nil || strings.TrimSpace(got) != "0" {
		t.Errorf("%s is %s (%v) in a namespace where nobody has set it, want 0", file, got, err)
	}
}

// TestKernelIPVSAfterDNAT holds the kernel to what the IPVS mode relies on: what
// table nat has translated to a virtual server is balanced by that, from
// everywhere, masqueraded or not, and answers come back from the address that was
// asked, if vs/conntrack is on.
func TestKernelIPVSAfterDNAT(t *testing.T) {
	b := newBalancer(t)
	b.run(t, "sysctl", "-qw", "net.ipv4.vs.conntrack=1")
	for _, f := range model.Families() {
		asked, hidden := netip.AddrPortFrom(external(f), 80), netip.AddrPortFrom(cluster(f), 31000)
		b.serve(t, hidden, f)
		for _, network := range networks() {
			for _, chain := range []string{"PREROUTING", "OUTPUT"} {
				b.iptables(t, f, "-t", "nat", "-A", chain, "-p", network, "-d", asked.Addr().String(), "--dport", "80",
					"-j", "DNAT", "--to-destination", hidden.String())
			}
		}
		for _, network := range networks() {
			b.expect(t, b.Client, network, asked, func(*lab.NS) netip.Addr { return b.Client.Addr(f) })
			b.expect(t, b.node.NS, network, asked, func(*lab.NS) netip.Addr { return asked.Addr() })
		}
		for _, chain := range []string{"PREROUTING", "OUTPUT"} {
			b.iptables(t, f, "-t", "mangle", "-A", chain, "-d", asked.Addr().String(), "-j", "MARK", "--set-mark", "0x4000")
		}
		b.iptables(t, f, "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE")
		gateway := b.node.PodCIDR(f).Addr().Next()
		for _, network := range networks() {
			for _, from := range []*lab.NS{b.Client, b.node.NS, b.node.Pods[0]} {
				b.expect(t, from, network, asked, func(*lab.NS) netip.Addr { return gateway })
			}
		}
	}
}

func (b balancer) iptables(t *testing.T, f model.Family, args ...string) {
	t.Helper()
	if err := b.node.Iptables(t.Context(), lab.Legacy, f, args...); err != nil {
		t.Fatal(err)
	}
}
