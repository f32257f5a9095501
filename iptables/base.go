// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Contribution declares the chains and the jumps of this mode.
func Contribution(cfg RenderConfig) ruleset.Contribution {
	return ruleset.Contribution{
		Name:   "iptables",
		Owns:   idiom.Owned(),
		Jumps:  append(idiom.CountTraffic(), idiom.ServiceJumps()...),
		Guests: []ruleset.Guest{idiom.Localnet(cfg.Family, cfg.LocalhostNodePorts || cfg.LocalhostHostPorts)},
		Former: idiom.Former(),
		Relics: idiom.Relics(),
	}
}

// fixedChains returns the chains that do not depend on any Service.
func (r renderer) fixedChains() map[ruleset.ChainKey]*ruleset.Chain {
	out := map[ruleset.ChainKey]*ruleset.Chain{
		{Table: ruleset.Filter, Name: forward}: idiom.Forwarding(r.MasqueradeBit, r.KeepInvalid, r.InvalidCounter),
	}
	if outside := r.pods().Outside(); outside != nil {
		out[ruleset.ChainKey{Table: ruleset.NAT, Name: idiom.MarkOutside}] = outside
	}
	return out
}

// nodePortRules end the dispatch: what is for an address of this node may be
// for a node port.
func (r renderer) nodePortRules(n proxier.NodePorts) []ruleset.Rule {
	s := idiom.Spec{Comment: "kubernetes service nodeports; NOTE: this must be the last rule in this chain"}
	if !n.All {
		var out []ruleset.Rule
		for _, ip := range n.Addrs {
			if ip.IsLoopback() && !(r.LocalhostNodePorts && ip.Is4()) {
				continue
			}
			s.Dst = idiom.Host(ip)
			out = append(out, s.Jump(nodePorts).Rule())
		}
		return out
	}
	s.More = idiom.ToNode
	switch {
	case r.Family == model.IPv6:
		s.Dst = "! ::1/128" // a packet from ::1 cannot leave the node
	case !r.LocalhostNodePorts:
		s.Dst = "! 127.0.0.0/8"
	}
	return []ruleset.Rule{s.Jump(nodePorts).Rule()}
}
