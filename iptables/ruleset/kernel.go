// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"slices"
	"strings"
)

// kernel is what the kernel has of ours, as far as the engine knows.
type kernel struct {
	chains map[ChainKey][]Rule
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

// reader is the visitor that picks from the save format what is ours.
type reader struct {
	owners
	// entry has our jumps in built-in chains by the chain that they lead to. A
	// rule there is ours if it leads to one of these and has the comment of a
	// jump to it, whatever else it matches: so an older version's rule is. No
	// other rule is ours, and in no case one with a line break, which no
	// restore could delete.
	entry   map[ChainKey][]Rule
	builtin map[ChainKey]bool
	guests  []Guest
	kernel  kernel
}

func newReader(o owners, entry map[ChainKey][]Rule, guests []Guest) *reader {
	return &reader{
		owners: o, entry: entry, builtin: map[ChainKey]bool{}, guests: guests,
		kernel: kernel{
			chains: map[ChainKey][]Rule{},
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
	for k := range r.entry {
		if k.Table == t {
			return unreadable(t)
		}
	}
	return nil
}

func (r *reader) table(Table) {}

func (r *reader) chain(k ChainKey, policy string) {
	if r.owns(k) {
		r.kernel.chains[k] = nil
	} else if policy != "-" {
		r.builtin[k] = true
	}
	r.guestChain(k)
}

func (r *reader) rule(k ChainKey, rule Rule) {
	if r.owns(k) {
		r.kernel.chains[k] = append(r.kernel.chains[k], rule)
		return
	}
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

// isEntry tells whether a rule in a built-in chain is one of our jumps, or was.
func (r *reader) isEntry(target ChainKey, rule Rule) bool {
	return !strings.Contains(string(rule), "\n") && slices.ContainsFunc(r.entry[target], func(j Rule) bool {
		return j == rule || j.comment() != "" && j.comment() == rule.comment()
	})
}

// record notes that a transaction has been committed.
func (k *kernel) record(t transaction) {
	for _, s := range t {
		for _, name := range s.create {
			k.hosts[ChainKey{s.table, name}] = &host{}
		}
		for _, w := range s.write {
			k.chains[ChainKey{s.table, w.name}] = w.rules
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
			k.jumps[j.ChainKey] = slices.Insert(k.jumps[j.ChainKey], 0, j.Rule)
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
