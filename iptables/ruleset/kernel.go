// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"iter"
	"slices"
)

// kernel is what the kernel has of ours, as far as the engine knows.
type kernel struct {
	//
	// A chain that is as it is wanted is the same Chain as the wanted one, so
	// that its text is there once.
	chains map[ChainKey]*Chain
	// jumps are our rules in the built-in chains that have any, in their order.
	jumps map[ChainKey][]Rule
	// pinned are chains of ours that rules of others refer to. Such a chain
	// cannot be deleted, and deleting it would not be ours to decide.
	pinned map[ChainKey]bool
	// hosts are the chains that guests are in, and others the chains that show
	// that others use these.
	hosts  map[ChainKey]*host
	others map[ChainKey]bool
}

// rules returns the rules of a chain, none of one that is not there.
func (k *kernel) rules(key ChainKey) []Rule {
	if c := k.chains[key]; c != nil {
		return c.Rules
	}
	return nil
}

// reader is the visitor that picks from the save format what is ours.
type reader struct {
	owners
	// entry has our jumps in built-in chains by the chain that they lead to. A
	// rule there is ours if it leads to one of these and has the comment of a
	// jump to it, whatever else it matches: so an older version's rule is. No
	// other rule is ours, and in no case one with a line break, which no
	// restore could delete.
	entry map[ChainKey][]Rule
	// former are those of entry that are not wanted any more.
	former  map[ChainKey][]Rule
	builtin map[ChainKey]bool
	guests  []Guest
	// expected are the chains as they are wanted. What is read is compared with
	// them as it comes, and takes no memory where it is the same.
	expected map[ChainKey]*Chain
	kernel   kernel
	// at is the chain that is being read, and matched how many of its rules are
	// as expected; where one is not, rules has all of them.
	at      ChainKey
	matched int
	rules   []Rule
}

func newReader(o owners, entry map[ChainKey][]Rule, guests []Guest, expected map[ChainKey]*Chain) *reader {
	return &reader{
		owners: o, entry: entry, builtin: map[ChainKey]bool{}, guests: guests, expected: expected,
		kernel: kernel{
			chains: map[ChainKey]*Chain{},
			jumps:  map[ChainKey][]Rule{},
			pinned: map[ChainKey]bool{},
			hosts:  map[ChainKey]*host{},
			others: map[ChainKey]bool{},
		},
	}
}

// unreadable is an error where our jumps are. Of another table, nothing is
// known, and nothing in it is touched.
func (r *reader) unreadable(t Table) error {
	for k, rules := range r.entry {
		if k.Table == t && !slices.Equal(rules, r.former[k]) {
			return unreadable(t)
		}
	}
	return nil
}

func (r *reader) table(Table) {}

func (r *reader) chain(k ChainKey, policy string) {
	if r.owns(k) {
		r.kernel.chains[k] = &Chain{}
	} else if policy != "-" {
		r.builtin[k] = true
	}
	r.guestChain(k)
}

func (r *reader) rule(k ChainKey, text []byte) {
	if r.owns(k) {
		r.ownRule(k, text)
		return
	}
	rule := Rule(text)
	if r.guestRule(k, rule) {
		return
	}
	target := ChainKey{k.Table, rule.Target()}
	switch {
	case !r.owns(target):
	case r.builtin[k] && r.isEntry(target, rule):
		r.kernel.jumps[k] = append(r.kernel.jumps[k], rule)
	default:
		r.kernel.pinned[target] = true
	}
}

// ownRule notes a rule of a chain of ours.
func (r *reader) ownRule(k ChainKey, text []byte) {
	if k != r.at {
		r.endChain()
		r.at = k
		r.rules = slices.Clip(r.kernel.rules(k))
	}
	if want := r.expected[k]; len(r.rules) == 0 && want != nil && r.matched < len(want.Rules) && string(want.Rules[r.matched]) == string(text) {
		r.matched++
		return
	}
	if r.matched > 0 {
		r.rules, r.matched = slices.Clone(r.expected[k].Rules[:r.matched]), 0
	}
	r.rules = append(r.rules, Rule(text))
}

// endChain is called when all rules of a chain have been read.
func (r *reader) endChain() {
	switch want := r.expected[r.at]; {
	case r.at == ChainKey{}:
	case len(r.rules) > 0:
		r.kernel.chains[r.at] = &Chain{Rules: slices.Clip(r.rules)}
	case r.matched == len(want.Rules):
		r.kernel.chains[r.at] = want
	default:
		r.kernel.chains[r.at] = &Chain{Rules: want.Rules[:r.matched]}
	}
	r.at, r.matched, r.rules = ChainKey{}, 0, nil
}

// isEntry tells whether a rule in a built-in chain is one of our jumps, or was.
func (r *reader) isEntry(target ChainKey, rule Rule) bool {
	return !rule.broken() && slices.ContainsFunc(r.entry[target], func(j Rule) bool {
		return j == rule || j.comment() != "" && j.comment() == rule.comment()
	})
}

// effect returns what a transaction is going to do: how many of its sections
// change something, and by how much tables grow.
func (k *kernel) effect(t transaction) (sections int, growth map[Table]Growth) {
	growth = map[Table]Growth{}
	size := map[ChainKey]int{} // as sections before have left it, -1 for no chain
	for _, s := range t {
		g, effective := growth[s.table], len(s.insert)+len(s.remove)+len(s.trim)+len(s.drop)+len(s.create) > 0
		g.Rules += len(s.insert) - len(s.remove)
		g.Chains += len(s.create)
		for name, now := range s.sizes() {
			key := ChainKey{s.table, name}
			was, known := size[key]
			if !known {
				was = k.size(key)
			}
			if was < 0 {
				g.Chains++
			}
			if now < 0 {
				g.Chains--
			}
			g.Rules += max(now, 0) - max(was, 0)
			effective = effective || was != 0 || now != 0
			size[key] = now
		}
		if growth[s.table] = g; effective {
			sections++
		}
	}
	return sections, growth
}

// size returns how many rules a chain has, -1 where it is not there.
func (k *kernel) size(key ChainKey) int {
	if c := k.chains[key]; c != nil {
		return len(c.Rules)
	}
	return -1
}

// sizes yields the chains that a section makes, replaces, trims or deletes, with
// the number of rules that they have then, -1 for none.
func (s *section) sizes() iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, w := range s.write {
			if !yield(w.name, len(w.chain.Rules)) {
				return
			}
		}
		for _, tr := range s.trim {
			if !yield(tr.name, len(tr.left.Rules)) {
				return
			}
		}
		for _, name := range s.drop {
			if !yield(name, -1) {
				return
			}
		}
	}
}

// record notes that a transaction has been committed.
func (k *kernel) record(t transaction) {
	for _, s := range t {
		for _, name := range s.create {
			k.hosts[ChainKey{s.table, name}] = &host{}
		}
		for _, w := range s.write {
			k.chains[ChainKey{s.table, w.name}] = w.chain
		}
		for _, tr := range s.trim {
			k.chains[ChainKey{s.table, tr.name}] = tr.left
		}
		for _, name := range s.drop {
			delete(k.chains, ChainKey{s.table, name})
			delete(k.hosts, ChainKey{s.table, name})
			delete(k.jumps, ChainKey{s.table, name})
		}
		for _, j := range s.insert {
			if h := k.hosts[ChainKey{s.table, j.Rule.Target()}]; h != nil {
				h.jumps = append(h.jumps, j)
				continue
			}
			at := 0
			if j.Last {
				at = len(k.jumps[j.ChainKey])
			}
			k.jumps[j.ChainKey] = slices.Insert(k.jumps[j.ChainKey], at, j.Rule)
		}
		for _, j := range s.remove {
			if i := slices.Index(k.jumps[j.ChainKey], j.Rule); i >= 0 {
				k.jumps[j.ChainKey] = slices.Delete(k.jumps[j.ChainKey], i, i+1)
			}
			if len(k.jumps[j.ChainKey]) == 0 {
				delete(k.jumps, j.ChainKey)
			}
		}
	}
}
