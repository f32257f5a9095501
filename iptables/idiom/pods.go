// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"net/netip"

	"fairlead/iptables/ruleset"
	"fairlead/nat"
)

// Pods tells the traffic of pods by its source, or by the interface that it arrives
// on, of which "+" at the end stands for any ending. With neither, nobody is known
// to be a pod.
type Pods struct {
	CIDRs     []netip.Prefix
	Interface string
}

// Writable brings CIDRs into the form in which they can be written into rules:
// iptables-save prints networks without host bits, and the nft variant refuses to
// match what is outside of all addresses.
func Writable(cidrs []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range cidrs {
		if c.Bits() == 0 { // nothing comes from elsewhere
			return nil
		}
		out = append(out, c.Masked())
	}
	return out
}

// NotFrom narrows a match to what pods do not send, with the jump to mark it for
// masquerading. ok is false where it is not known who is a pod.
func (p Pods) NotFrom(s Spec) (_ Spec, ok bool) {
	switch {
	case len(p.CIDRs) == 1:
		s.Src = "! " + p.CIDRs[0].String()
	case len(p.CIDRs) > 1:
		return s.Jump(MarkOutside), true
	case p.Interface != "":
		s.In = "! " + p.Interface
	default:
		return s, false
	}
	return s.Jump(nat.MarkMasq), true
}

// From narrows a match to what pods send: one for each way to tell them.
func (p Pods) From(s Spec) []Spec {
	var out []Spec
	for _, c := range p.CIDRs {
		s.Src = c.String()
		out = append(out, s)
	}
	if p.Interface != "" && len(out) == 0 {
		s.In = p.Interface
		out = append(out, s)
	}
	return out
}

// Outside returns the chain MarkOutside, which marks for masquerading what comes
// from outside of all of several pod CIDRs; nil where there are not several.
func (p Pods) Outside() *ruleset.Chain {
	if len(p.CIDRs) < 2 {
		return nil
	}
	var out []ruleset.Rule
	for _, c := range p.CIDRs {
		out = append(out, Spec{Src: c.String()}.Jump("RETURN").Rule())
	}
	return &ruleset.Chain{Rules: append(out, Spec{}.Jump(nat.MarkMasq).Rule())}
}
