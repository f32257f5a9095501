// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"testing"

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
	for digit := range 2 * bytes {
		raw := make([]byte, bytes)
		raw[digit/2] = 1 << (4 * (1 - digit%2))
		a, _ := netip.AddrFromSlice(raw)
		addrs = append(addrs, a)
	}
	eps := many(cfg, 130)
	var out []*model.ServicePort
	add := func(name string, number uint16, change func(*model.ServicePort)) {
		p := with(eps, change)
		p.Name, p.Port = portName("deep", name, "", model.TCP), number
		if len(out)%10 > 0 { // a few with endpoints are enough
			p.Endpoints, p.Usable = nil, false
		}
		out = append(out, p)
	}
	for i := range 33 {
		add(fmt.Sprint("lb", i), uint16(i+1), func(p *model.ServicePort) {
			p.LoadBalancerIPs, p.Restricted = addrs, true
			p.SourceRanges = []netip.Prefix{netip.MustParsePrefix(source)}
		})
	}
	for shift := 12; shift >= 0; shift -= 4 { // more than fit, which part from the rest at this digit
		for i := range 33 {
			n := uint16(1+i%15)<<shift | uint16(i/15)<<max(0, shift-4)
			if shift == 0 {
				n = uint16(i)
			}
			add(fmt.Sprint("np", shift, "-", i), 80, func(p *model.ServicePort) { p.NodePort, p.Port = n+1, uint16(1000+len(out)) })
		}
	}
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
		got := map[string]int{}
		for _, table := range h.Save(s) {
			chains := map[string][]ruleset.Rule{}
			for _, c := range table.Chains {
				chains[c.Name] = c.Rules
			}
			got[string(table.Name)] = depth(chains, "OUTPUT")
			if table.Name == ruleset.NAT {
				got["node ports"] = depth(chains, nodePorts)
			}
		}
		t.Log(got)
		checkStable(t, s, h, cfg, ports...)
		checkClean(t, a, s, h, "")
	})
}
