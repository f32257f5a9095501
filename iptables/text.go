// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fairlead/iptables/dispatch"
	"fairlead/iptables/ruleset"
)

// portRules is what one port of a Service needs.
type portRules struct {
	// names are the chains of the port's own, in table nat, and chains what is
	// in them.
	names  []string
	chains []ruleset.Chain
	// shared are its rules in chains that all Services share.
	shared []sharedRules
	// sets are the sets of client addresses that the chains name.
	sets map[string]bool
}

// sharedRules are the rules of a port for one destination.
type sharedRules struct {
	in    portal
	key   dispatch.Key
	rules []ruleset.Rule
}

// portText collects the rules of a port. All their text is one string in the
// end, as there are many rules and they come and go together.
type portText struct {
	buf    []byte
	names  []string
	index  map[string]int // of names
	shared []sharedRules
	rules  []rulePlace
}

// rulePlace is a rule in the text.
type rulePlace struct {
	from, to int
	// chain is an index of names, or less than 0: ^chain is one of shared.
	chain int
}

// has tells whether a chain has been added.
func (t *portText) has(chain string) bool {
	_, ok := t.index[chain]
	return ok
}

// add adds a rule to a chain of the port's own.
func (t *portText) add(chain string, s spec) {
	i, ok := t.index[chain]
	if !ok {
		i = len(t.names)
		t.names, t.index[chain] = append(t.names, chain), i
	}
	t.append(s, i)
}

// share adds a rule to the shared chains.
func (t *portText) share(in portal, k dispatch.Key, s spec) { t.append(s, ^t.hold(in, k)) }

// hold keeps a place in the shared chains, with or without rules. It returns
// the index of the place.
func (t *portText) hold(in portal, k dispatch.Key) int {
	for i := range t.shared {
		if t.shared[i].in == in && t.shared[i].key == k {
			return i
		}
	}
	t.shared = append(t.shared, sharedRules{in: in, key: k})
	return len(t.shared) - 1
}

func (t *portText) append(s spec, chain int) {
	from := len(t.buf)
	t.buf = s.append(t.buf)
	t.rules = append(t.rules, rulePlace{from, len(t.buf), chain})
}

// portRules returns what has been added; the chains belong to unit, and those
// that are patient may be so.
func (t *portText) portRules(unit string, patient map[string]bool) portRules {
	text := string(t.buf)
	out := portRules{names: t.names, chains: make([]ruleset.Chain, len(t.names)), shared: t.shared}
	count := make([]int, len(t.names)+len(t.shared))
	at := func(r rulePlace) *int {
		if r.chain < 0 {
			return &count[len(t.names)+^r.chain]
		}
		return &count[r.chain]
	}
	for _, r := range t.rules {
		*at(r)++
	}
	all := make([]ruleset.Rule, len(t.rules))
	room := func(n int) (part []ruleset.Rule) {
		part, all = all[:0:n], all[n:]
		return part
	}
	for i, name := range t.names {
		out.chains[i] = ruleset.Chain{Unit: unit, Patient: patient[name], Rules: room(count[i])}
	}
	for i := range t.shared {
		out.shared[i].rules = room(count[len(t.names)+i])
	}
	for _, r := range t.rules {
		rule := ruleset.Rule(text[r.from:r.to])
		if r.chain < 0 {
			out.shared[^r.chain].rules = append(out.shared[^r.chain].rules, rule)
		} else {
			out.chains[r.chain].Rules = append(out.chains[r.chain].Rules, rule)
		}
	}
	return out
}
