// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"cmp"
	"net/netip"
	"slices"

	"fairlead/iptables/ruleset"
)

// The chains of this package.
var (
	// masqChain sorts out what is from pods, and egressChain where it is for.
	masqChain   = ruleset.ChainKey{Table: ruleset.NAT, Name: Root}
	egressChain = ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-POD-EGRESS"}
	// forwardChain lets through what pods send and get, where everything else is
	// dropped.
	forwardChain = ruleset.ChainKey{Table: ruleset.Filter, Name: "KUBE-POD-FORWARD"}
)

// Root is the name of the chain in table nat that what pods send starts in.
const Root = "KUBE-POD-MASQ"

// Contribution declares the chains and the jumps of this package. The jumps are
// below all others: a source that somebody else has chosen stays, and what somebody
// else drops is dropped.
func Contribution() ruleset.Contribution {
	jump := func(t ruleset.Table, from, match string, to ruleset.ChainKey) ruleset.Jump {
		return ruleset.Jump{ChainKey: ruleset.ChainKey{Table: t, Name: from}, Rule: ruleset.Rule(match + "-j " + to.Name), Last: true}
	}
	return ruleset.Contribution{
		Name: "egress",
		Owns: []ruleset.ChainKey{masqChain, egressChain, forwardChain},
		Jumps: []ruleset.Jump{
			jump(ruleset.NAT, "POSTROUTING", `-m comment --comment "kubernetes pods to the outside" -m addrtype ! --dst-type LOCAL `, masqChain),
			jump(ruleset.Filter, "FORWARD", `-m comment --comment "kubernetes pod forwarding rules" `, forwardChain),
		},
	}
}

// Rules is what the rules of one family depend on.
type Rules struct {
	IPv6 bool
	// Pods are where the pods have their addresses that are masqueraded. Nothing else
	// ever is.
	Pods []netip.Prefix
	// Cluster are further ones of the cluster's pods, of either family.
	Cluster []netip.Prefix
	// Config says which destinations see pods' own addresses; pods always do.
	Config Config
	// Set, where it is not empty, is the name of a set with the exempt
	// destinations.
	Set string
	// RandomFully has the kernel choose source ports at random, all of them.
	RandomFully bool
}

// Same tells whether the chains of r and o are the same.
func (r Rules) Same(o Rules) bool {
	exempt, _ := r.Exempt()
	others, _ := o.Exempt()
	return r.IPv6 == o.IPv6 && slices.Equal(r.Pods, o.Pods) && slices.Equal(r.Cluster, o.Cluster) && r.Set == o.Set && r.RandomFully == o.RandomFully &&
		(r.Set != "" || slices.Equal(exempt, others))
}

// Exempt returns the destinations in the family that see pods' own addresses,
// sorted, without those that others of them contain. all is set where these are
// all.
func (r Rules) Exempt() (_ []netip.Prefix, all bool) {
	multicast, linkLocal, masqLinkLocal := "224.0.0.0/4", "169.254.0.0/16", r.Config.MasqLinkLocal
	if r.IPv6 {
		multicast, linkLocal, masqLinkLocal = "ff00::/8", "fe80::/10", r.Config.MasqLinkLocalIPv6
	}
	list := slices.Concat(r.Pods, r.Cluster, r.Config.NonMasquerade, []netip.Prefix{netip.MustParsePrefix(multicast)})
	if !masqLinkLocal {
		list = append(list, netip.MustParsePrefix(linkLocal))
	}
	list = slices.DeleteFunc(list, func(p netip.Prefix) bool { return p.Addr().Is6() != r.IPv6 })
	// The wider one of two that start alike comes first, and is the last one kept
	// that can contain what follows.
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range list {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out, out[0].Bits() == 0
}

// Chains returns all chains of this package, nil for those that are not wanted.
// Where all destinations are exempt nothing is masqueraded, and pods' packets are
// forwarded all the same.
func (r Rules) Chains() map[ruleset.ChainKey]*ruleset.Chain {
	out := None()
	if len(r.Pods) == 0 {
		return out
	}
	masq, forward := &ruleset.Chain{}, &ruleset.Chain{}
	for _, p := range r.Pods {
		masq.Rules = append(masq.Rules, ruleset.Rule("-s "+p.String()+" -j "+egressChain.Name))
		forward.Rules = append(forward.Rules, ruleset.Rule("-s "+p.String()+" -j ACCEPT"), ruleset.Rule("-d "+p.String()+" -j ACCEPT"))
	}
	out[forwardChain] = forward
	if exempt, all := r.Exempt(); !all {
		out[masqChain], out[egressChain] = masq, r.egress(exempt)
	}
	return out
}

// Forwarding returns all chains of this package, of which only the one is wanted that lets
// through what pods send and get: something else masquerades.
func (r Rules) Forwarding() map[ruleset.ChainKey]*ruleset.Chain {
	out := None()
	out[forwardChain] = r.Chains()[forwardChain]
	return out
}

// egress returns the chain for what pods send.
func (r Rules) egress(exempt []netip.Prefix) *ruleset.Chain {
	c := &ruleset.Chain{}
	if r.Set != "" {
		c.Rules = append(c.Rules, ruleset.Rule("-m set --match-set "+r.Set+" dst -j RETURN"))
	} else {
		for _, p := range exempt {
			c.Rules = append(c.Rules, ruleset.Rule("-d "+p.String()+" -j RETURN"))
		}
	}
	masquerade := ruleset.Rule(`-m comment --comment "kubernetes pods to the outside" -j MASQUERADE`)
	if r.RandomFully {
		masquerade += " --random-fully"
	}
	c.Rules = append(c.Rules, masquerade)
	return c
}

// None are the chains of this package where none is wanted.
func None() map[ruleset.ChainKey]*ruleset.Chain {
	return map[ruleset.ChainKey]*ruleset.Chain{masqChain: nil, egressChain: nil, forwardChain: nil}
}

// Keys are the chains of this package.
func Keys() []ruleset.ChainKey { return []ruleset.ChainKey{masqChain, egressChain, forwardChain} }
