// SPDX-License-Identifier: Apache-2.0

// Package nat owns the chains by which Fairlead masquerades: a contributor that
// wants a packet to leave with the node's address jumps to KUBE-MARK-MASQ,
// which marks it, and KUBE-POSTROUTING rewrites the source of what is marked.
package nat

import (
	"fmt"
	"slices"

	"fairlead/iptables/ruleset"
)

// MarkMasq is the chain to jump to for a packet that is to be masqueraded. CNI
// plugins and kubelet know it by this name.
const MarkMasq = "KUBE-MARK-MASQ"

const (
	postrouting = "KUBE-POSTROUTING"
	masquerade  = "-j MASQUERADE --random-fully"
)

// Mark returns the packet mark of a bit, as iptables-save prints it in a
// match: "0x4000/0x4000" for bit 14.
func Mark(bit int) string {
	m := uint32(1) << bit
	return fmt.Sprintf("%#x/%#x", m, m)
}

// Contribution declares the chains and the jump of this package.
func Contribution() ruleset.Contribution {
	return ruleset.Contribution{
		Name: "nat",
		Owns: []ruleset.ChainKey{
			{Table: ruleset.NAT, Name: MarkMasq},
			{Table: ruleset.NAT, Name: postrouting},
		},
		Jumps: []ruleset.Jump{{
			ChainKey: ruleset.ChainKey{Table: ruleset.NAT, Name: "POSTROUTING"},
			Rule:     `-m comment --comment "kubernetes postrouting rules" -j ` + postrouting,
		}},
	}
}

// LoopBack returns the name of the set of endpoints that reach themselves, which
// is that of kube-proxy's IPVS mode.
func LoopBack(ipv6 bool) string {
	if ipv6 {
		return "KUBE-6-LOOP-BACK"
	}
	return "KUBE-LOOP-BACK"
}

// ReachesItself matches translated packets from an address to itself, of which a
// set has address, protocol and port. What a node sends to itself without a Service
// is not translated, and keeps its source.
func ReachesItself(set string) string {
	return "-m conntrack --ctstate DNAT " + isItself(set)
}

func isItself(set string) string { return "-m set --match-set " + set + " dst,dst,src " }

// Chains returns the chains for a mark bit from 0 to 31. What is from and to an
// endpoint in the set loopBack is masqueraded without a mark; an empty name means
// that there is no such set. Rules of counts, which have no target, count what is marked.
//
// The mark is taken off before masquerading: it would otherwise stay on the
// packet through encapsulation, and the outer packet of a VXLAN would be
// masqueraded too. MASQUERADE picks ports fully at random, which makes it
// unlikely that two flows race for the same one (kubernetes/kubernetes#56903).
func Chains(masqueradeBit int, loopBack string, counts ...ruleset.Rule) map[ruleset.ChainKey]*ruleset.Chain {
	if loopBack == "" {
		return chains(masqueradeBit, "", counts...)
	}
	return chains(masqueradeBit, ReachesItself(loopBack), counts...)
}

// IPVSChains returns the chains for IPVS mode. What IPVS translates, connection
// tracking does not know to be translated, so the set must not have endpoints that
// send to themselves without a Service and past this chain: the node's own.
func IPVSChains(masqueradeBit int, loopBack string) map[ruleset.ChainKey]*ruleset.Chain {
	return chains(masqueradeBit, isItself(loopBack))
}

// chains masquerades what matches itself, unless that is empty, and what is marked.
func chains(masqueradeBit int, itself string, counts ...ruleset.Rule) map[ruleset.ChainKey]*ruleset.Chain {
	mark, clear := Mark(masqueradeBit), fmt.Sprintf("%#x/0x0", uint32(1)<<masqueradeBit)
	var rules []ruleset.Rule
	if itself != "" {
		rules = append(rules, ruleset.Rule(`-m comment --comment "kubernetes endpoint that reaches itself" `+
			itself+masquerade))
	}
	return map[ruleset.ChainKey]*ruleset.Chain{
		{Table: ruleset.NAT, Name: MarkMasq}: {Rules: []ruleset.Rule{
			ruleset.Rule("-j MARK --set-xmark " + mark),
		}},
		{Table: ruleset.NAT, Name: postrouting}: {Rules: slices.Concat(rules,
			[]ruleset.Rule{ruleset.Rule("-m mark ! --mark " + mark + " -j RETURN")},
			counts,
			[]ruleset.Rule{
				ruleset.Rule("-j MARK --set-xmark " + clear),
				`-m comment --comment "kubernetes service traffic requiring SNAT" ` + masquerade,
			})},
	}
}
