// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"slices"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// The chains that Services share.
var (
	natServices    = ruleset.ChainKey{Table: ruleset.NAT, Name: services}
	natNodePorts   = ruleset.ChainKey{Table: ruleset.NAT, Name: nodePorts}
	filterServices = ruleset.ChainKey{Table: ruleset.Filter, Name: services}
	filterExternal = ruleset.ChainKey{Table: ruleset.Filter, Name: externalServices}
	filterFirewall = ruleset.ChainKey{Table: ruleset.Filter, Name: proxyFirewall}
	filterHealth   = ruleset.ChainKey{Table: ruleset.Filter, Name: nodePorts}
)

// portal is a kind of destination that has rules in a shared chain.
type portal int

// The portals, in the order in which those of one chain are in it.
const (
	translatedAddrs  portal = iota // addresses that are translated
	translatedPorts                // node ports that are
	refusedClusterIP               // cluster IPs that are rejected or dropped
	refusedExternal                // external addresses that are
	refusedPorts                   // node ports that are
	guardedAddrs                   // load balancers' addresses with source ranges
	healthPorts                    // health check node ports
	portalCount
)

// portals are the rules of all Services in the chains that they share: the
// chain of each kind, and what is below it, is a tree.
type portals struct {
	trees [portalCount]*dispatch.Tree
}

// rootOf returns the chain that a portal starts in.
func rootOf(p portal) ruleset.ChainKey {
	return [portalCount]ruleset.ChainKey{
		natServices, natNodePorts, filterServices, filterExternal, filterExternal, filterFirewall, filterHealth,
	}[p]
}

// prefixOf returns how the names of a portal's chains below the root start: as
// chains do that kube-proxy removes in its clean-up, in table nat.
func prefixOf(p portal) string {
	return [portalCount]string{
		servicePrefix, servicePrefix, servicePrefix, externalPrefix, externalPrefix, firewallPrefix, healthPrefix,
	}[p]
}

func newPortals(f model.Family) *portals {
	bits := 32
	if f == model.IPv6 {
		bits = 128
	}
	out := &portals{}
	for p := range portalCount {
		addrBits, match := bits, ""
		switch p {
		case translatedPorts, healthPorts:
			addrBits = 0
		case refusedPorts:
			addrBits, match = 0, toNode
		}
		out.trees[p] = dispatch.New(addrBits, prefixOf(p), match)
	}
	return out
}

// replace puts what an owner has now in the place of what it had.
func (s *portals) replace(owner string, old, now []sharedRules) {
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n sharedRules) bool { return n.in == o.in && n.key == o.key }) {
			s.trees[o.in].Remove(o.key, owner)
		}
	}
	for _, n := range now {
		s.trees[n.in].Put(n.key, owner, n.rules)
	}
}

// stage stages the chains that have changed, and the roots in again. last
// returns the rules that end a root.
func (s *portals) stage(staged map[ruleset.ChainKey]*ruleset.Chain, again map[ruleset.ChainKey]bool, last func(ruleset.ChainKey) []ruleset.Rule) {
	for p, tree := range s.trees {
		root := rootOf(portal(p))
		tree.Changed(func(name string, rules []ruleset.Rule, ok bool) {
			switch key := (ruleset.ChainKey{Table: root.Table, Name: name}); {
			case name == "":
				again[root] = true
			case ok:
				staged[key] = &ruleset.Chain{Rules: rules}
			default:
				staged[key] = nil
			}
		})
	}
	for root := range again {
		c := &ruleset.Chain{}
		for p, tree := range s.trees {
			if rootOf(portal(p)) == root {
				c.Rules = append(c.Rules, tree.Root()...)
			}
		}
		c.Rules = append(c.Rules, last(root)...)
		staged[root] = c
	}
}
