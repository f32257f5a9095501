// SPDX-License-Identifier: Apache-2.0

// Package nat owns the chains by which Fairlead masquerades: a contributor that
// wants a packet to leave with the node's address jumps to KUBE-MARK-MASQ,
// which marks it, and KUBE-POSTROUTING rewrites the source of what is marked.
package nat

import (
	"fmt"

	"fairlead/iptables/ruleset"
)

// MarkMasq is the chain to jump to for a packet that is to be masqueraded. CNI
// plugins and kubelet know it by this name.
const MarkMasq = "KUBE-MARK-MASQ"

const postrouting = "KUBE-POSTROUTING"

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

// Chains returns the chains for a mark bit from 0 to 31.
//
// The mark is taken off before masquerading: it would otherwise stay on the
// packet through encapsulation, and the outer packet of a VXLAN would be
// masqueraded too. MASQUERADE picks ports fully at random, which makes it
// unlikely that two flows race for the same one (kubernetes/kubernetes#56903).
func Chains(masqueradeBit int) map[ruleset.ChainKey]*ruleset.Chain {
	mark, clear := Mark(masqueradeBit), fmt.Sprintf("%#x/0x0", uint32(1)<<masqueradeBit)
	return map[ruleset.ChainKey]*ruleset.Chain{
		{Table: ruleset.NAT, Name: MarkMasq}: {Rules: []ruleset.Rule{
			ruleset.Rule("-j MARK --set-xmark " + mark),
		}},
		{Table: ruleset.NAT, Name: postrouting}: {Rules: []ruleset.Rule{
			ruleset.Rule("-m mark ! --mark " + mark + " -j RETURN"),
			ruleset.Rule("-j MARK --set-xmark " + clear),
			`-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully`,
		}},
	}
}
