// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/proxier/model"
)

// deepest returns ports whose rules have as many chains in a row as there can
// be: addresses, and node ports, that are made to part at every digit, source
// ranges, and endpoints in groups.
func deepest(f model.Family) []*model.ServicePort {
	cfg, bytes, source := v4(), 4, "192.0.2.0/24"
	if f == model.IPv6 {
		cfg, bytes, source = v6(), 16, "2001:db8::/64"
	}
	var addrs []netip.Addr
	for digit := range 2 * min(bytes, 12) { // IPv4-compatible addresses are refused
		raw := make([]byte, bytes)
		raw[digit/2] = 1 << (4 * (1 - digit%2))
		a, _ := netip.AddrFromSlice(raw)
		addrs = append(addrs, a)
	}
	var out []*model.ServicePort
	add := func(proto model.Protocol, change func(*model.ServicePort)) {
		p := with(many(cfg, 130), change)
		p.Name, p.Port = portName("deep", fmt.Sprint("svc", len(out)), "", proto), uint16(1+len(out))
		if len(out)%10 > 0 { // a few with endpoints are enough
			p.Endpoints, p.Usable = nil, false
		}
		out = append(out, p)
	}
	for range 33 { // more than a chain has room for, at each address
		add(model.TCP, func(p *model.ServicePort) {
			p.LoadBalancerIPs, p.Restricted = addrs, true
			p.SourceRanges = []netip.Prefix{netip.MustParsePrefix(source)}
		})
	}
	for i := range uint16(40) {
		add(model.TCP, func(p *model.ServicePort) { p.NodePort = 0x7530 + i })
	}
	for _, n := range []uint16{0x1000, 0x7000, 0x7800} { // that part from those
		add(model.TCP, func(p *model.ServicePort) { p.NodePort = n })
	}
	add(model.UDP, func(p *model.ServicePort) { p.NodePort = 0x7530 })
	return out
}

// depth returns how many jumps a packet makes in a row at most, from a chain on.
func depth(chains map[string][]ruleset.Rule, from string) int {
	deepest := 0
	for _, r := range chains[from] {
		if _, ok := chains[r.Target()]; ok {
			deepest = max(deepest, 1+depth(chains, r.Target()))
		}
	}
	return deepest
}

// TestKernelDepth: the most chains in a row that there can be are not more than
// the kernel takes, which refuses rules with more than 15 jumps
// (NFT_JUMP_STACK_SIZE, linux/netfilter/nf_tables.h).
func TestKernelDepth(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		cfg, f := v4(), model.IPv4
		if s.IPv6 {
			cfg, f = v6(), model.IPv6
		}
		ports := deepest(f)
		a := kernelAgent(t, s, h, cfg)
		a.sync(ports...)
		got, want := map[string]int{}, map[string]int{
			"nat":        14, // 1 root, 7 of the tree, KUBE-FW, KUBE-EXT, KUBE-SVC, group, KUBE-SEP, KUBE-MARK-MASQ
			"node ports": 9,  // 4 of the tree, and the last five
			"filter":     8,  // 1 root, 7 of the tree
		}
		for _, table := range h.Save(s) {
			chains := map[string][]ruleset.Rule{}
			for _, c := range table.Chains {
				chains[c.Name] = c.Rules
			}
			got[string(table.Name)] = max(depth(chains, "PREROUTING"), depth(chains, "FORWARD"))
			if table.Name == ruleset.NAT {
				got["node ports"] = depth(chains, nodePorts)
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("jumps in a row (-want +got):\n%s", diff)
		}
		checkStable(t, s, h, cfg, ports...)
		checkClean(t, a, s, h, "")
	})
}
