// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// limits bound one transaction, in lines (section.cost).
type limits struct {
	// build is for chains that nothing reaches yet.
	build int
	// live is for chains in use.
	live int
}

// limitsOf returns the limits of a variant. iptables-nft-restore searches its
// list of chains for every rule, so its time grows with the square of the
// input: 4,000 Services of 10 endpoints take 136 s in one call. Of 10,000
// Services, calls of 500 / 1,000 / 2,000 / 4,000 lines take 9.7 / 7.1 / 6.4 / 7.1 s
// of CPU time; 2,000 lines are some 50 Services. Two that commit at a time on two
// cores save a tenth, and are not worth the conflicts; one that only reads while
// another one commits saves almost half of the time (runAll). Once chains are in use, each
// commit makes the kernel validate every rule that can be reached, 0.2 s at
// 10,000 Services, so that there fewer and larger calls are better. The legacy
// command has no such cost, but each call writes the whole table.
func limitsOf(v Variant) limits {
	if v == NFT {
		return limits{build: 2000, live: 8000}
	}
	return limits{}
}

// transactions puts a plan in order. What is small becomes one transaction:
// additions to the filter table, then the other tables, then removals from the
// filter table, so that a Service that loses its last endpoint is rejected
// before it stops being translated, and one that gains its first is translated
// before it stops being rejected. What is large is split so that no packet
// meets a half-written Service: chains are built before anything leads to
// them, and dropped after nothing does.
func (p *plan) transactions(k *kernel, l limits) []transaction {
	pre, post := p.filterSections(k)
	if cost := p.cost(); l.build == 0 || cost <= l.build || cost <= l.live && p.fresh(k) <= l.build {
		whole := transaction{pre}
		for _, t := range p.otherTables() {
			whole = append(whole, p.tableSection(t))
		}
		return []transaction{append(whole, post)}
	}
	out := []transaction{{pre}}
	for _, t := range p.otherTables() {
		out = append(out, p.splitTable(t, k, l)...)
	}
	return append(out, transaction{post})
}

// cost estimates the work of committing the plan: a line each.
func (p *plan) cost() int {
	n := len(p.insert) + len(p.remove) + 2*len(p.drop)
	for _, c := range p.write {
		n += 1 + len(c.Rules)
	}
	for _, tr := range p.trim {
		n += len(tr.gone)
	}
	return n
}

// fresh returns how many lines the plan writes into chains that do not exist.
func (p *plan) fresh(k *kernel) int {
	n := 0
	for key, c := range p.write {
		if k.chains[key] == nil {
			n += 1 + len(c.Rules)
		}
	}
	return n
}

// otherTables returns the tables of the plan besides filter, nat first.
func (p *plan) otherTables() []Table {
	seen := map[Table]bool{}
	for k := range p.write {
		seen[k.Table] = true
	}
	for k := range p.trim {
		seen[k.Table] = true
	}
	for _, k := range p.drop {
		seen[k.Table] = true
	}
	for _, j := range slices.Concat(p.insert, p.remove) {
		seen[j.Table] = true
	}
	delete(seen, Filter)
	return slices.SortedFunc(maps.Keys(seen), func(a, b Table) int {
		if (a == NAT) != (b == NAT) {
			if a == NAT {
				return -1
			}
			return 1
		}
		return compareKeys(ChainKey{Table: a}, ChainKey{Table: b})
	})
}

// tableSection puts all that the plan does to a table into one section.
func (p *plan) tableSection(t Table) section {
	s := p.tableBut(t)
	s.write = p.writes(t, func(ChainKey, *Chain) bool { return true })
	return s
}

// writes returns the chains of a table to write that are chosen.
func (p *plan) writes(t Table, chosen func(ChainKey, *Chain) bool) []chainWrite {
	n := 0
	for k, c := range p.write {
		if k.Table == t && chosen(k, c) {
			n++
		}
	}
	out := make([]chainWrite, 0, n) // of all Services, too long a list to grow step by step
	for k, c := range p.write {
		if k.Table == t && chosen(k, c) {
			out = append(out, chainWrite{k.Name, c})
		}
	}
	return out
}

// tableBut is tableSection but for the chains to write.
func (p *plan) tableBut(t Table) section {
	s := section{table: t}
	for k, tr := range p.trim {
		if k.Table == t {
			s.trim = append(s.trim, chainTrim{k.Name, tr.gone, tr.left})
		}
	}
	for _, k := range p.drop {
		if k.Table == t {
			s.drop = append(s.drop, k.Name)
		}
	}
	for _, k := range p.create {
		if k.Table == t {
			s.create = append(s.create, k.Name)
		}
	}
	s.insert, s.remove = jumpsOf(p.insert, t), jumpsOf(p.remove, t)
	return s
}

func jumpsOf(jumps []Jump, t Table) []Jump {
	var out []Jump
	for _, j := range jumps {
		if j.Table == t {
			out = append(out, j)
		}
	}
	return out
}

// filterSections splits the changes of the filter table into those that come
// before the other tables' and those that come after.
func (p *plan) filterSections(k *kernel) (pre, post section) {
	all := p.tableSection(Filter)
	if len(p.otherTables()) == 0 {
		return all, section{table: Filter}
	}
	pre = section{table: Filter, create: all.create, insert: all.insert}
	post = section{table: Filter, remove: all.remove, trim: all.trim, drop: all.drop}
	for _, w := range all.write {
		had := k.rules(ChainKey{Filter, w.name})
		have, want := setOf(had), setOf(w.chain.Rules)
		switch {
		case containsAll(want, have):
			pre.write = append(pre.write, w)
		case containsAll(have, want):
			post.write = append(post.write, w)
		default:
			both := &Chain{Rules: union(w.chain.Rules, had)}
			pre.write = append(pre.write, chainWrite{w.name, both})
			post.write = append(post.write, w)
		}
	}
	return pre, post
}

// splitTable splits the changes of a table into bounded transactions.
func (p *plan) splitTable(t Table, k *kernel, l limits) []transaction {
	all := p.tableBut(t)
	shared := section{table: t, create: all.create, insert: all.insert, remove: all.remove, trim: all.trim}
	declare := section{table: t}
	for _, w := range p.writes(t, func(_ ChainKey, c *Chain) bool { return c.Unit == "" }) {
		key := ChainKey{t, w.name}
		if p.foundation(key, k) {
			declare.write = append(declare.write, w)
			continue
		}
		shared.write = append(shared.write, w)
		if _, exists := k.chains[key]; !exists {
			declare.write = append(declare.write, chainWrite{w.name, &Chain{}})
		}
	}
	build, live := p.units(t, k)
	out := []transaction{{declare}}
	out = append(out, pack(t, build, l.build)...)
	out = append(out, pack(t, live, l.live)...)
	out = append(out, transaction{shared})
	return append(out, packDrops(t, dropOrder(all.drop, t, k), l.live)...)
}

// foundation tells whether a chain that is written only gains rules, none of which
// leads to a chain: Services in use may rely on them once they have changed, so it
// comes before.
func (p *plan) foundation(key ChainKey, k *kernel) bool {
	had := setOf(k.rules(key))
	leads := func(r Rule) bool {
		to := ChainKey{key.Table, r.Target()}
		return !had[r] && (p.write[to] != nil || k.chains[to] != nil)
	}
	return containsAll(setOf(p.write[key].Rules), had) && !slices.ContainsFunc(p.write[key].Rules, leads)
}

// units returns the chains of units that the plan writes in a table, unit by unit:
// those of units of which the kernel has nothing yet, and the others.
func (p *plan) units(t Table, k *kernel) (build, live []chainWrite) {
	known := map[string]bool{}
	all := p.writes(t, func(key ChainKey, c *Chain) bool {
		if c.Unit != "" && k.chains[key] != nil {
			known[c.Unit] = true
		}
		return c.Unit != ""
	})
	slices.SortFunc(all, func(x, y chainWrite) int { return strings.Compare(x.chain.Unit, y.chain.Unit) })
	if len(known) == 0 {
		return all, nil
	}
	for _, w := range all {
		if known[w.chain.Unit] {
			live = append(live, w)
		} else {
			build = append(build, w)
		}
	}
	return build, live
}

// eachUnit yields where in chains that go unit by unit each unit begins and ends.
func eachUnit(write []chainWrite) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for from, to := 0, 0; from < len(write); from = to {
			for to = from + 1; to < len(write) && write[to].chain.Unit == write[from].chain.Unit; {
				to++
			}
			if !yield(from, to) {
				return
			}
		}
	}
}

// pack splits chains that go unit by unit into transactions of whole units.
func pack(t Table, write []chainWrite, limit int) []transaction {
	var out []transaction
	begin, cost := 0, 0
	flush := func(end int) {
		out = append(out, transaction{{table: t, write: write[begin:end:end]}})
		begin, cost = end, 0
	}
	for from, to := range eachUnit(write) {
		unit := section{write: write[from:to]}
		if cost > 0 && cost+unit.cost() > limit {
			flush(from)
		}
		cost += unit.cost()
	}
	flush(len(write))
	return out
}

func packDrops(t Table, drop []string, limit int) []transaction {
	var out []transaction
	for part := range slices.Chunk(drop, max(1, limit/2)) {
		out = append(out, transaction{{table: t, drop: slices.Clone(part)}})
	}
	return out
}

// dropOrder orders chains so that each comes before those it jumps to.
func dropOrder(drop []string, t Table, k *kernel) []string {
	going := map[string]bool{}
	for _, name := range drop {
		going[name] = true
	}
	var after []string // each chain after those it jumps to
	var visit func(name string)
	visit = func(name string) {
		if !going[name] {
			return
		}
		delete(going, name)
		for _, r := range k.rules(ChainKey{t, name}) {
			visit(r.Target())
		}
		after = append(after, name)
	}
	for _, name := range drop {
		visit(name)
	}
	slices.Reverse(after)
	return after
}
