// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
)

// portRules is what one port of a Service needs.
type portRules struct {
	// names are the chains of the port's own, in table nat, and chains what is
	// in them.
	names  []string
	chains []ruleset.Chain
	// shared are its rules in chains that all Services share.
	shared []idiom.Place
	// sets are the sets of client addresses that the chains name.
	sets map[string]bool
}

// portText collects the rules of a port. The text of its chains is one string in
// the end, as there are many rules and they come and go together. Shared rules,
// which may stay when these go, are strings of their own.
type portText struct {
	*scratch
	names  []string
	shared []idiom.Place
}

// scratch is memory for the work on one port after another. Of what is rendered
// nothing is in it.
type scratch struct {
	buf    []byte
	index  map[string]int // of portText.names
	rules  []rulePlace
	chains map[netip.AddrPort]string // of endpoints
}

func newScratch() *scratch {
	return &scratch{index: map[string]int{}, chains: map[netip.AddrPort]string{}}
}

// clear makes s ready for the next port.
func (s *scratch) clear() {
	s.buf, s.rules = s.buf[:0], s.rules[:0]
	clear(s.index)
	clear(s.chains)
}

// rulePlace is a rule of a chain, an index of names, in the text.
type rulePlace struct{ from, to, chain int }

// has tells whether a chain has been added.
func (t *portText) has(chain string) bool {
	_, ok := t.index[chain]
	return ok
}

// add adds a rule to a chain of the port's own.
func (t *portText) add(chain string, s idiom.Spec) {
	i, ok := t.index[chain]
	if !ok {
		i = len(t.names)
		t.names, t.index[chain] = append(t.names, chain), i
	}
	from := len(t.buf)
	t.buf = s.Append(t.buf)
	t.rules = append(t.rules, rulePlace{from, len(t.buf), i})
}

// share adds a rule to the shared chains.
func (t *portText) share(in int, k dispatch.Key, s idiom.Spec) {
	i := t.hold(in, k)
	t.shared[i].Rules = append(t.shared[i].Rules, s.Rule())
}

// hold keeps a place in the shared chains, with or without rules. It returns
// the index of the place.
func (t *portText) hold(in int, k dispatch.Key) int {
	for i := range t.shared {
		if t.shared[i].In == in && t.shared[i].Key == k {
			return i
		}
	}
	t.shared = append(t.shared, idiom.Place{In: in, Key: k})
	return len(t.shared) - 1
}

// portRules returns what has been added; the chains belong to unit, and those
// that are patient may be so.
func (t *portText) portRules(unit string, patient map[string]bool) portRules {
	text := string(t.buf)
	out := portRules{names: t.names, chains: make([]ruleset.Chain, len(t.names)), shared: t.shared}
	count := make([]int, len(t.names))
	for _, r := range t.rules {
		count[r.chain]++
	}
	all := make([]ruleset.Rule, len(t.rules))
	for i, name := range t.names {
		out.chains[i] = ruleset.Chain{Unit: unit, Patient: patient[name], Rules: all[:0:count[i]]}
		all = all[count[i]:]
	}
	for _, r := range t.rules {
		c := &out.chains[r.chain]
		c.Rules = append(c.Rules, ruleset.Rule(text[r.from:r.to]))
	}
	return out
}
