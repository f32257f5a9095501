// SPDX-License-Identifier: Apache-2.0

// Package trace follows packets through rules without a kernel: what becomes of
// the first packet of a connection, along every random branch. It knows the
// matches and targets that Fairlead and kube-proxy write, and returns an error
// at any other: a tracer that guesses proves nothing.
package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fairlead/iptables/ruleset"
)

// Tracer follows packets through the rules of one node and family.
type Tracer struct {
	rules map[ruleset.ChainKey][]ruleset.Rule
	// local are the node's own addresses.
	local []netip.Addr
}

// Packet is the first of a connection.
type Packet struct {
	Src netip.Addr
	Dst netip.AddrPort
	// Proto is "tcp", "udp" or "sctp".
	Proto string
	// FromNode is set if the node itself sends it, rather than a pod or
	// somebody outside.
	FromNode bool
}

// Fate is one thing that may become of a packet.
type Fate struct {
	// To is where it goes in the end.
	To netip.AddrPort
	// Masqueraded is set where it leaves with the node's address.
	Masqueraded bool
	// Verdict is the filter table's: "ACCEPT", "DROP" or "REJECT".
	Verdict string
}

// New returns a Tracer over the rules of a node that has the local addresses,
// besides those of the loopback interface.
func New(d ruleset.Dump, local ...netip.Addr) *Tracer {
	tr := &Tracer{
		rules: map[ruleset.ChainKey][]ruleset.Rule{},
		local: append(slices.Clone(local), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()),
	}
	for _, table := range d {
		for _, c := range table.Chains {
			tr.rules[ruleset.ChainKey{Table: table.Name, Name: c.Name}] = c.Rules
		}
	}
	return tr
}

// state is a packet on its way, with the probability that it comes this way.
type state struct {
	src, dst netip.Addr
	proto    string
	dport    uint16
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
	s := state{src: pkt.Src, dst: pkt.Dst.Addr(), proto: pkt.Proto, dport: pkt.Dst.Port(), p: 1}
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
			out[Fate{netip.AddrPortFrom(s.dst, s.dport), s.masq, s.verdict}] += s.p
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
			if s.verdict != "ACCEPT" {
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
	out, undecided, err := tr.run(ruleset.ChainKey{Table: t, Name: chain}, in)
	for _, s := range undecided {
		s.verdict = "ACCEPT"
		out = append(out, s)
	}
	return out, err
}

// run sends states through a chain. It returns those that a rule has decided
// about, and those that come out at its end.
func (tr *Tracer) run(k ruleset.ChainKey, in []state) (decided, end []state, err error) {
	rules, ok := tr.rules[k]
	if !ok {
		return nil, nil, fmt.Errorf("jump to %s, which is not there", k)
	}
	for _, text := range rules {
		r, err := parse(text)
		if err != nil {
			return nil, nil, err
		}
		var next []state
		for _, s := range in {
			p := r.match(tr, s)
			if p < 1 {
				miss := s
				miss.p *= 1 - p
				next = append(next, miss)
			}
			if p == 0 {
				continue
			}
			s.p *= p
			switch r.target {
			case "":
				next = append(next, s)
			case "RETURN":
				end = append(end, s)
			case "ACCEPT", "DROP", "REJECT":
				s.verdict = r.target
				decided = append(decided, s)
			case "DNAT":
				s.dst, s.dport, s.dnat, s.verdict = r.to.Addr(), r.to.Port(), true, "ACCEPT"
				decided = append(decided, s)
			case "MASQUERADE":
				s.masq, s.verdict = true, "ACCEPT"
				decided = append(decided, s)
			case "MARK":
				s.mark = s.mark&^r.mask ^ r.value
				next = append(next, s)
			default:
				d, e, err := tr.run(ruleset.ChainKey{Table: k.Table, Name: r.target}, []state{s})
				if err != nil {
					return nil, nil, err
				}
				decided, next = append(decided, d...), append(next, e...)
			}
		}
		in = next
	}
	return decided, append(end, in...), nil
}

// rule is a parsed rule.
type rule struct {
	matches     []func(*Tracer, state) bool
	probability float64
	target      string
	to          netip.AddrPort
	value, mask uint32
}

// match returns the probability that the rule takes the state.
func (r *rule) match(tr *Tracer, s state) float64 {
	for _, m := range r.matches {
		if !m(tr, s) {
			return 0
		}
	}
	return r.probability
}

// words splits a rule's text; a quoted word is one.
func words(r ruleset.Rule) []string {
	var out []string
	quoted := false
	for _, part := range strings.Fields(string(r)) {
		if quoted {
			out[len(out)-1] += " " + part
		} else {
			out = append(out, part)
		}
		if strings.Count(part, `"`)%2 == 1 {
			quoted = !quoted
		}
	}
	return out
}

// parse reads a rule as iptables-save prints it.
func parse(text ruleset.Rule) (*rule, error) {
	r := &rule{probability: 1}
	w := words(text)
	for len(w) > 0 {
		not := w[0] == "!"
		if not {
			w = w[1:]
		}
		if len(w) == 0 {
			return nil, fmt.Errorf("rule %q ends early", text)
		}
		option, arg := w[0], ""
		if w = w[1:]; option != "--random-fully" {
			if len(w) == 0 {
				return nil, fmt.Errorf("rule %q ends early", text)
			}
			arg, w = w[0], w[1:]
		}
		if err := r.option(option, arg, not); err != nil {
			return nil, fmt.Errorf("rule %q: %w", text, err)
		}
	}
	return r, nil
}

// option adds one option of a rule.
func (r *rule) option(option, arg string, not bool) error {
	var err error
	add := func(m func(*Tracer, state) bool) {
		r.matches = append(r.matches, func(tr *Tracer, s state) bool { return m(tr, s) != not })
	}
	switch option {
	case "-m", "--comment", "--mode", "--random-fully", "--reject-with":
	case "-s", "-d":
		prefix, perr := netip.ParsePrefix(arg)
		err = perr
		add(func(_ *Tracer, s state) bool {
			return option == "-s" && prefix.Contains(s.src) || option == "-d" && prefix.Contains(s.dst)
		})
	case "-p":
		add(func(_ *Tracer, s state) bool { return s.proto == arg })
	case "--dport":
		add(func(_ *Tracer, s state) bool { return strconv.Itoa(int(s.dport)) == arg })
	case "--ctstate":
		states := strings.Split(arg, ",")
		add(func(_ *Tracer, s state) bool {
			return slices.Contains(states, "NEW") || s.dnat && slices.Contains(states, "DNAT")
		})
	case "--dst-type":
		add(func(tr *Tracer, s state) bool { return arg == "LOCAL" && slices.Contains(tr.local, s.dst) })
	case "--src-type":
		add(func(tr *Tracer, s state) bool { return arg == "LOCAL" && slices.Contains(tr.local, s.src) })
	case "--mark":
		var value, mask uint32
		_, err = fmt.Sscanf(arg, "0x%x/0x%x", &value, &mask)
		add(func(_ *Tracer, s state) bool { return s.mark&mask == value })
	case "--set-xmark":
		_, err = fmt.Sscanf(arg, "0x%x/0x%x", &r.value, &r.mask)
	case "--probability":
		r.probability, err = strconv.ParseFloat(arg, 64)
	case "--to-destination":
		r.to, err = netip.ParseAddrPort(arg)
	case "-j":
		r.target = arg
	default:
		err = fmt.Errorf("unknown option %s", option)
	}
	return err
}
