// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// Contribution declares the chains and the jumps of this mode. The jumps'
// order, matches and comments are kube-proxy's.
func Contribution() ruleset.Contribution {
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
	}
}

// fixedChains returns the chains that do not depend on any Service.
func (r renderer) fixedChains() map[ruleset.ChainKey]*ruleset.Chain {
	return map[ruleset.ChainKey]*ruleset.Chain{
		{Table: ruleset.NAT, Name: nodePorts}:           {},
		{Table: ruleset.Filter, Name: nodePorts}:        {},
		{Table: ruleset.Filter, Name: externalServices}: {},
		{Table: ruleset.Filter, Name: proxyFirewall}:    {},
		{Table: ruleset.Filter, Name: forward}: {Rules: []ruleset.Rule{
			// A packet that conntrack finds invalid would leave untranslated,
			// and its receiver would reset the connection
			// (kubernetes/kubernetes#74839).
			"-m conntrack --ctstate INVALID -j DROP",
			ruleset.Rule(commented("kubernetes forwarding rules") + "-m mark --mark " + nat.Mark(r.MasqueradeBit) + " -j ACCEPT"),
			ruleset.Rule(commented("kubernetes forwarding conntrack rule") + "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
		}},
	}
}

// nodePortRule ends the dispatch: what is for an address of this node may be
// for a node port.
func (r renderer) nodePortRule() ruleset.Rule {
	rule := commented("kubernetes service nodeports; NOTE: this must be the last rule in this chain") +
		"-m addrtype --dst-type LOCAL -j " + nodePorts
	if r.Family == model.IPv6 {
		rule = "! -d ::1/128 " + rule // a packet from ::1 cannot leave the node
	}
	return ruleset.Rule(rule)
}

// commented returns a comment match, followed by a space.
func commented(text string) string {
	return "-m comment --comment " + ruleset.Quote(text) + " "
}
