// SPDX-License-Identifier: Apache-2.0

// Package trace follows packets through rules without a kernel: what becomes of
// the first packet of a connection, along every random branch. It knows the
// matches and targets that Fairlead and kube-proxy write, and returns an error
// at any other: a tracer that guesses proves nothing.
package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"fairlead/iptables/ruleset"
)

// maxDepth is how deep chains may jump: nf_tables takes 16 chains, the built-in
// one counted (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// Tracer follows packets through the rules of one node and family.
type Tracer struct {
	rules map[ruleset.ChainKey][]rule
	// local are the node's own addresses.
	local []netip.Addr
	// sets are those of destinations and sources.
	sets map[string]SetOf
}

// SetOf tells what is in a set of destinations and sources.
type SetOf func(proto string, dst netip.AddrPort, src netip.Addr) bool

// Packet is the first of a connection.
type Packet struct {
	Src netip.Addr
	Dst netip.AddrPort
	// Proto is "tcp", "udp" or "sctp".
	Proto string
	// FromNode is set if the node itself sends it, rather than a pod or
	// somebody outside.
	FromNode bool
	// Known are the sets, and the lists of xt_recent, that Src is in. What they
	// hold is as fresh as any rule asks for.
	Known []string
}

// Fate is one thing that may become of a packet.
type Fate struct {
	// To is where it goes in the end.
	To netip.AddrPort
	// Masqueraded is set where it leaves with the node's address.
	Masqueraded bool
	// Verdict is the filter table's: "ACCEPT", "DROP" or "REJECT".
	Verdict string
	// Learned is the set or list that Src has been added to on the way, empty
	// if there was none.
	Learned string
}

// New returns a Tracer over the rules of a node that has the local addresses,
// besides those of the loopback interface.
func New(d ruleset.Dump, local ...netip.Addr) *Tracer {
	tr := &Tracer{
		rules: map[ruleset.ChainKey][]rule{},
		sets:  map[string]SetOf{},
		local: append(slices.Clone(local), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()),
	}
	for _, table := range d {
		for _, c := range table.Chains {
			rules := make([]rule, len(c.Rules))
			for i, text := range c.Rules {
				rules[i] = parse(text)
			}
			tr.rules[ruleset.ChainKey{Table: table.Name, Name: c.Name}] = rules
		}
	}
	return tr
}

// Set tells what is in a set of that name. Rules that match by a set of which
// nothing is told cannot be followed.
func (tr *Tracer) Set(name string, has SetOf) { tr.sets[name] = has }

// state is a packet on its way, with the probability that it comes this way.
type state struct {
	src, dst netip.Addr
	proto    string
	dport    uint16
	known    []string
	learned  string
	mark     uint32
	masq     bool
	// dnat is set once it is translated.
	dnat bool
	// verdict is empty while no rule has decided.
	verdict string
	p       float64
}

// Trace returns all fates of a packet with their probabilities.
func (tr *Tracer) Trace(pkt Packet) (map[Fate]float64, error) {
	s := state{src: pkt.Src, dst: pkt.Dst.Addr(), proto: pkt.Proto, dport: pkt.Dst.Port(), known: pkt.Known, p: 1}
	hook := "PREROUTING"
	if pkt.FromNode {
		hook = "OUTPUT"
	}
	translated, err := tr.base(ruleset.NAT, hook, []state{s})
	if err != nil {
		return nil, err
	}
	out := map[Fate]float64{}
	for _, s := range translated {
		ends, err := tr.onward(s, pkt.FromNode)
		if err != nil {
			return nil, err
		}
		for _, s := range ends {
			out[Fate{netip.AddrPortFrom(s.dst, s.dport), s.masq, s.verdict, s.learned}] += s.p
		}
	}
	return out, nil
}

// onward takes a packet from its translation to where it leaves the rules.
func (tr *Tracer) onward(s state, fromNode bool) ([]state, error) {
	in := []state{s}
	for _, k := range tr.hooks(s.dst, fromNode) {
		var passed, stopped []state
		for _, s := range in {
			if s.verdict != accept {
				stopped = append(stopped, s)
			} else {
				passed = append(passed, s)
			}
		}
		out, err := tr.base(k.Table, k.Name, passed)
		if err != nil {
			return nil, err
		}
		in = append(stopped, out...)
	}
	return in, nil
}

// hooks are the built-in chains behind the translation. What a node sends to
// itself goes out and comes in.
func (tr *Tracer) hooks(dst netip.Addr, fromNode bool) []ruleset.ChainKey {
	output := ruleset.ChainKey{Table: ruleset.Filter, Name: "OUTPUT"}
	input := ruleset.ChainKey{Table: ruleset.Filter, Name: "INPUT"}
	leave := ruleset.ChainKey{Table: ruleset.NAT, Name: "POSTROUTING"}
	switch local := slices.Contains(tr.local, dst); {
	case fromNode && local:
		return []ruleset.ChainKey{output, leave, input}
	case fromNode:
		return []ruleset.ChainKey{output, leave}
	case local:
		return []ruleset.ChainKey{input}
	}
	return []ruleset.ChainKey{{Table: ruleset.Filter, Name: "FORWARD"}, leave}
}

// base runs a built-in chain, whose policy is ACCEPT.
func (tr *Tracer) base(t ruleset.Table, chain string, in []state) ([]state, error) {
	for i := range in {
		in[i].verdict = ""
	}
	out, undecided, err := tr.run(ruleset.ChainKey{Table: t, Name: chain}, in, 1)
	for _, s := range undecided {
		s.verdict = accept
		out = append(out, s)
	}
	return out, err
}

// run sends states through a chain. It returns those that a rule has decided
// about, and those that come out at its end.
func (tr *Tracer) run(k ruleset.ChainKey, in []state, depth int) (decided, end []state, err error) {
	rules, ok := tr.rules[k]
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("jump to %s, which is not there", k)
	case depth > maxDepth:
		return nil, nil, fmt.Errorf("jump to %s, %d chains deep", k, depth)
	}
	for i := range rules {
		r := &rules[i]
		if r.err != nil {
			return nil, nil, fmt.Errorf("%s: %w", k, r.err)
		}
		if r.set != "" && tr.sets[r.set] == nil {
			return nil, nil, fmt.Errorf("%s: what is in the set %s is not known", k, r.set)
		}
		var next []state
		for _, s := range in {
			p := r.match(tr, &s)
			if p < 1 {
				miss := s
				miss.p *= 1 - p
				next = append(next, miss)
			}
			if p == 0 {
				continue
			}
			s.p *= p
			out, err := tr.apply(r, k.Table, s, depth)
			if err != nil {
				return nil, nil, err
			}
			decided, end, next = append(decided, out.decided...), append(end, out.end...), append(next, out.next...)
		}
		in = next
	}
	return decided, append(end, in...), nil
}

// ends are where a rule leaves packets: decided about, at the end of the chain
// that it is in, or at the next rule.
type ends struct{ decided, end, next []state }

// apply does with a state what a rule's target says.
func (tr *Tracer) apply(r *rule, t ruleset.Table, s state, depth int) (ends, error) {
	if err := s.learn(r.addTo); err != nil {
		return ends{}, err
	}
	one := []state{s}
	switch r.target {
	case "", "SET":
		return ends{next: one}, nil
	case "RETURN":
		return ends{end: one}, nil
	case accept, "DROP", "REJECT":
		one[0].verdict = r.target
		return ends{decided: one}, nil
	case "DNAT":
		one[0].dst, one[0].dport, one[0].dnat, one[0].verdict = r.to.Addr(), r.to.Port(), true, accept
		return ends{decided: one}, nil
	case "MASQUERADE":
		one[0].masq, one[0].verdict = true, accept
		return ends{decided: one}, nil
	case "MARK":
		one[0].mark = s.mark&^r.mask ^ r.value
		return ends{next: one}, nil
	}
	decided, back, err := tr.run(ruleset.ChainKey{Table: t, Name: r.target}, one, depth+1)
	if r.leaves {
		return ends{decided: decided, end: back}, err
	}
	return ends{decided: decided, next: back}, err
}

// knows tells whether the source is in a set or on a list.
func (s *state) knows(name string) bool { return s.learned == name || slices.Contains(s.known, name) }

// learn adds the source to a set or a list, if that has a name. With a second
// one it would be a client of two endpoints.
func (s *state) learn(name string) error {
	if s.learned != "" && name != "" && s.learned != name {
		return fmt.Errorf("a packet is added to %s and to %s", s.learned, name)
	}
	s.learned = cmp.Or(s.learned, name)
	return nil
}
