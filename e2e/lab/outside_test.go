// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"net/netip"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelOutside: what no node translates is answered outside, whoever
// asks, also where nodes drop invalid packets.
func TestKernelOutside(t *testing.T) {
	vips := map[model.Family]netip.Addr{
		model.IPv4: netip.MustParseAddr("203.0.113.10"), model.IPv6: netip.MustParseAddr("2001:db8:f::10"),
	}
	var addrs []netip.Addr
	var routes []netip.Prefix
	for _, a := range vips {
		addrs, routes = append(addrs, a), append(routes, netip.PrefixFrom(a, a.BitLen()))
	}
	l := newLab(t, lab.Config{Nodes: 2, Pods: 1, ClientRoutes: routes})
	needVariant(t, lab.NFT)
	if err := l.AddOutside(t.Context(), "outside", addrs, port); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes {
		for _, f := range model.Families() {
			if err := n.Iptables(t.Context(), lab.NFT, f, "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"); err != nil {
				t.Fatal(err)
			}
		}
	}
	n1, n2 := l.Nodes[0], l.Nodes[1]
	for _, from := range []*lab.NS{n1.NS, n1.Pods[0], n2.NS, n2.Pods[0], l.Client} {
		for _, f := range model.Families() {
			for _, network := range networks() {
				p := lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(vips[f], port)}
				if r := p.Once(t.Context()); r.Server != "outside" || r.Source.Addr() != from.Addr(f) {
					t.Errorf("%s: got %v, want an answer of outside that saw %s", p, r, from.Addr(f))
				}
			}
		}
	}
}

// TestKernelFlushConntrack: a flow that a rule translated goes where the rules
// say now, once the connection is forgotten.
func TestKernelFlushConntrack(t *testing.T) {
	l := newLab(t, lab.Config{Pods: 2})
	needVariant(t, lab.NFT)
	n, f := l.Nodes[0], model.IPv4
	vip := netip.MustParseAddrPort("10.96.0.10:80")
	for _, pod := range n.Pods {
		echo(t, pod)
	}
	point := func(pod *lab.NS) {
		t.Helper()
		to := netip.AddrPortFrom(pod.Addr(f), port).String()
		for _, args := range [][]string{
			{"-t", "nat", "-F", "OUTPUT"},
			{"-t", "nat", "-A", "OUTPUT", "-d", vip.Addr().String(), "-p", "udp", "-j", "DNAT", "--to-destination", to},
		} {
			if err := n.Iptables(t.Context(), lab.NFT, f, args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	point(n.Pods[0])
	h, err := lab.Probe{From: n.NS, Network: "udp", To: vip}.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	point(n.Pods[1])
	if r := h.Ping(t.Context()); r.Server != n.Pods[0].Label {
		t.Errorf("before the flush: got %v, want an answer of %s", r, n.Pods[0].Label)
	}
	if err := n.FlushConntrack(); err != nil {
		t.Fatal(err)
	}
	if r := h.Ping(t.Context()); r.Server != n.Pods[1].Label {
		t.Errorf("after the flush: got %v, want an answer of %s", r, n.Pods[1].Label)
	}
}
