// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
)

// tracer follows the first packet of a connection through a node's rules, along
// every random branch. It knows the matches and targets that this mode uses,
// and fails the test on any other: a tracer that guesses proves nothing.
type tracer struct {
	t     *testing.T
	rules map[ruleset.ChainKey][]ruleset.Rule
	// local are the node's own addresses.
	local []netip.Addr
}

// packet is the first of a connection. It comes from the node itself, or else
// from a pod or from outside.
type packet struct {
	src, dst string
	proto    string
	dport    uint16
	fromNode bool
}

// fate is one thing that may become of a packet.
type fate struct {
	// to is where it goes in the end, with its port.
	to string
	// masqueraded is set where it leaves with the node's address.
	masqueraded bool
	// verdict is the filter table's: "ACCEPT", "DROP" or "REJECT".
	verdict string
}

func newTracer(t *testing.T, save string, local ...string) *tracer {
	t.Helper()
	d, err := ruleset.Parse(strings.NewReader(save))
	if err != nil {
		t.Fatal(err)
	}
	tr := &tracer{t: t, rules: map[ruleset.ChainKey][]ruleset.Rule{}}
	for _, table := range d {
		for _, c := range table.Chains {
			tr.rules[ruleset.ChainKey{Table: table.Name, Name: c.Name}] = c.Rules
		}
	}
	for _, a := range append(local, "127.0.0.1", "::1") {
		tr.local = append(tr.local, netip.MustParseAddr(a))
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
	// verdict is empty while no rule has decided.
	verdict string
	p       float64
}

// trace returns all fates with their probabilities.
func (tr *tracer) trace(pkt packet) map[fate]float64 {
	tr.t.Helper()
	s := state{
		src: netip.MustParseAddr(pkt.src), dst: netip.MustParseAddr(pkt.dst),
		proto: pkt.proto, dport: pkt.dport, p: 1,
	}
	hook := "PREROUTING"
	if pkt.fromNode {
		hook = "OUTPUT"
	}
	out := map[fate]float64{}
	for _, s := range tr.base(ruleset.NAT, hook, []state{s}) {
		where := "FORWARD"
		if pkt.fromNode {
			where = "OUTPUT"
		} else if slices.Contains(tr.local, s.dst) {
			where = "INPUT"
		}
		for _, s := range tr.base(ruleset.Filter, where, []state{s}) {
			f := fate{to: netip.AddrPortFrom(s.dst, s.dport).String(), verdict: s.verdict}
			if s.verdict == "ACCEPT" && where != "INPUT" {
				for _, s := range tr.base(ruleset.NAT, "POSTROUTING", []state{s}) {
					f.masqueraded = s.masq
					out[f] += s.p
				}
				continue
			}
			out[f] += s.p
		}
	}
	return out
}

// base runs a built-in chain, whose policy is ACCEPT.
func (tr *tracer) base(t ruleset.Table, chain string, in []state) []state {
	for i := range in {
		in[i].verdict = ""
	}
	out, undecided := tr.run(ruleset.ChainKey{Table: t, Name: chain}, in)
	for _, s := range undecided {
		s.verdict = "ACCEPT"
		out = append(out, s)
	}
	return out
}

// run sends states through a chain. It returns those that a rule has decided
// about, and those that come out at its end.
func (tr *tracer) run(k ruleset.ChainKey, in []state) (decided, end []state) {
	rules, ok := tr.rules[k]
	if !ok {
		tr.t.Fatalf("trace: jump to %s, which is not there", k)
	}
	for _, text := range rules {
		r := tr.parse(text)
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
				s.dst, s.dport, s.verdict = r.to.Addr(), r.to.Port(), "ACCEPT"
				decided = append(decided, s)
			case "MASQUERADE":
				s.masq, s.verdict = true, "ACCEPT"
				decided = append(decided, s)
			case "MARK":
				s.mark = s.mark&^r.mask ^ r.value
				next = append(next, s)
			default:
				d, e := tr.run(ruleset.ChainKey{Table: k.Table, Name: r.target}, []state{s})
				decided, next = append(decided, d...), append(next, e...)
			}
		}
		in = next
	}
	return decided, append(end, in...)
}

// rule is a parsed rule.
type rule struct {
	matches     []func(*tracer, state) bool
	probability float64
	target      string
	to          netip.AddrPort
	value, mask uint32
}

// match returns the probability that the rule takes the state.
func (r *rule) match(tr *tracer, s state) float64 {
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

func (tr *tracer) parse(text ruleset.Rule) *rule {
	r := &rule{probability: 1}
	w := words(text)
	for len(w) > 0 {
		not := w[0] == "!"
		if not {
			w = w[1:]
		}
		if len(w) == 0 {
			tr.t.Fatalf("trace: rule %q ends early", text)
		}
		option, arg := w[0], ""
		if w = w[1:]; option != "--random-fully" {
			if len(w) == 0 {
				tr.t.Fatalf("trace: rule %q ends early", text)
			}
			arg, w = w[0], w[1:]
		}
		if err := r.option(option, arg, not); err != nil {
			tr.t.Fatalf("trace: rule %q: %v", text, err)
		}
	}
	return r
}

// option adds one option of a rule.
func (r *rule) option(option, arg string, not bool) error {
	var err error
	add := func(m func(*tracer, state) bool) {
		r.matches = append(r.matches, func(tr *tracer, s state) bool { return m(tr, s) != not })
	}
	switch option {
	case "-m", "--comment", "--mode", "--random-fully", "--reject-with":
	case "-s", "-d":
		prefix, perr := netip.ParsePrefix(arg)
		err = perr
		add(func(_ *tracer, s state) bool {
			return option == "-s" && prefix.Contains(s.src) || option == "-d" && prefix.Contains(s.dst)
		})
	case "-p":
		add(func(_ *tracer, s state) bool { return s.proto == arg })
	case "--dport":
		add(func(_ *tracer, s state) bool { return strconv.Itoa(int(s.dport)) == arg })
	case "--ctstate":
		add(func(*tracer, state) bool { return slices.Contains(strings.Split(arg, ","), "NEW") })
	case "--dst-type":
		add(func(tr *tracer, s state) bool { return arg == "LOCAL" && slices.Contains(tr.local, s.dst) })
	case "--mark":
		var value, mask uint32
		_, err = fmt.Sscanf(arg, "0x%x/0x%x", &value, &mask)
		add(func(_ *tracer, s state) bool { return s.mark&mask == value })
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
