// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Contribution declares the chains and the jumps of this mode. The jumps'
// order, matches and comments are kube-proxy's.
func Contribution(cfg RenderConfig) ruleset.Contribution {
	const newOnly = "-m conntrack --ctstate NEW "
	jump := func(t ruleset.Table, from, match, comment, to string) ruleset.Jump {
		return ruleset.Jump{
			ChainKey: ruleset.ChainKey{Table: t, Name: from},
			Rule:     ruleset.Rule(match + commented(comment) + "-j " + to),
		}
	}
	const (
		firewall = "kubernetes load balancer firewall"
		portals  = "kubernetes service portals"
		external = "kubernetes externally-visible service portals"
	)
	return ruleset.Contribution{
		Name: "iptables",
		Owns: owned(),
		Jumps: []ruleset.Jump{
			jump(ruleset.Filter, "INPUT", newOnly, firewall, proxyFirewall),
			jump(ruleset.Filter, "INPUT", "", "kubernetes health check service ports", nodePorts),
			jump(ruleset.Filter, "INPUT", newOnly, external, externalServices),
			jump(ruleset.Filter, "FORWARD", newOnly, firewall, proxyFirewall),
			jump(ruleset.Filter, "FORWARD", "", "kubernetes forwarding rules", forward),
			jump(ruleset.Filter, "FORWARD", newOnly, portals, services),
			jump(ruleset.Filter, "FORWARD", newOnly, external, externalServices),
			jump(ruleset.Filter, "OUTPUT", newOnly, firewall, proxyFirewall),
			jump(ruleset.Filter, "OUTPUT", newOnly, portals, services),
			jump(ruleset.NAT, "PREROUTING", "", portals, services),
			jump(ruleset.NAT, "OUTPUT", "", portals, services),
		},
		Guests: guests(cfg),
		Relics: relics(),
	}
}

// guests returns the rule that keeps the neighbours away from what listens on
// 127.0.0.1. Node ports on localhost need the kernel to route such packets
// (route_localnet), and then would the neighbours' too (CVE-2020-8558).
func guests(cfg RenderConfig) []ruleset.Guest {
	loopback := "127.0.0.0/8"
	if cfg.Family == model.IPv6 {
		loopback = "::1/128" // for Clean: kube-proxy makes the chain there too
	}
	filter := func(name string) ruleset.ChainKey { return ruleset.ChainKey{Table: ruleset.Filter, Name: name} }
	rule := func(comment string) ruleset.Rule {
		return spec{
			src: "! " + loopback, dst: loopback, comment: comment,
			more: "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT ",
		}.jump("DROP").rule()
	}
	return []ruleset.Guest{{
		Rule: ruleset.Jump{ChainKey: filter(kubeFirewall), Rule: rule("block incoming localnet connections for node ports")},
		Same: rule("block incoming localnet connections"), // kubelet's and kube-proxy's
		Jumps: []ruleset.Jump{
			{ChainKey: filter("INPUT"), Rule: "-j " + kubeFirewall},
			{ChainKey: filter("OUTPUT"), Rule: "-j " + kubeFirewall},
		},
		Others: ruleset.ChainKey{Table: ruleset.Mangle, Name: "KUBE-KUBELET-CANARY"},
		Wanted: cfg.LocalhostNodePorts && cfg.Family == model.IPv4,
	}}
}

// fixedChains returns the chains that do not depend on any Service.
func (r renderer) fixedChains() map[ruleset.ChainKey]*ruleset.Chain {
	var forwarding []ruleset.Rule
	if !r.KeepInvalid {
		// A packet that conntrack finds invalid would leave untranslated, and
		// its receiver would reset the connection
		// (kubernetes/kubernetes#74839).
		forwarding = append(forwarding, spec{more: "-m conntrack --ctstate INVALID " + counted(r.InvalidCounter)}.jump("DROP").rule())
	}
	forwarding = append(forwarding,
		spec{comment: "kubernetes forwarding rules", more: "-m mark --mark " + nat.Mark(r.MasqueradeBit) + " "}.jump("ACCEPT").rule(),
		spec{comment: "kubernetes forwarding conntrack rule", more: "-m conntrack --ctstate RELATED,ESTABLISHED "}.jump("ACCEPT").rule())
	out := map[ruleset.ChainKey]*ruleset.Chain{
		{Table: ruleset.Filter, Name: forward}: {Rules: forwarding},
	}
	if len(r.PodCIDRs) > 1 {
		out[ruleset.ChainKey{Table: ruleset.NAT, Name: markOutside}] = &ruleset.Chain{Rules: r.outside()}
	}
	return out
}

// toNode matches what is for an address of this node.
const toNode = "-m addrtype --dst-type LOCAL "

// nodePortRules end the dispatch: what is for an address of this node may be
// for a node port.
func (r renderer) nodePortRules(n proxier.NodePorts) []ruleset.Rule {
	s := spec{comment: "kubernetes service nodeports; NOTE: this must be the last rule in this chain"}
	if !n.All {
		var out []ruleset.Rule
		for _, ip := range n.Addrs {
			if ip.IsLoopback() && !(r.LocalhostNodePorts && ip.Is4()) {
				continue
			}
			s.dst = host(ip)
			out = append(out, s.jump(nodePorts).rule())
		}
		return out
	}
	s.more = toNode
	switch {
	case r.Family == model.IPv6:
		s.dst = "! ::1/128" // a packet from ::1 cannot leave the node
	case !r.LocalhostNodePorts:
		s.dst = "! 127.0.0.0/8"
	}
	return []ruleset.Rule{s.jump(nodePorts).rule()}
}
