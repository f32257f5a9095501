// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"maps"
	"slices"
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
	whole := transaction{pre}
	for _, t := range p.otherTables() {
		whole = append(whole, p.tableSection(t))
	}
	whole = append(whole, post)
	cost := 0
	for i := range whole {
		cost += whole[i].cost()
	}
	if l.build == 0 || cost <= l.build || cost <= l.live && p.fresh(k) <= l.build {
		return []transaction{whole}
	}
	out := []transaction{{pre}}
	for _, t := range p.otherTables() {
		out = append(out, p.splitTable(t, k, l)...)
	}
	return append(out, transaction{post})
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
	s := section{table: t}
	for k, c := range p.write {
		if k.Table == t {
			s.write = append(s.write, chainWrite{k.Name, c})
		}
	}
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
	all := p.tableSection(t)
	shared := section{table: t, create: all.create, insert: all.insert, remove: all.remove, trim: all.trim}
	declare := section{table: t}
	for _, w := range all.write {
		key := ChainKey{t, w.name}
		if p.write[key].Unit != "" {
			continue
		}
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

// units returns the plan's writes in a table by unit: those of units of which
// the kernel has nothing yet, and the others.
func (p *plan) units(t Table, k *kernel) (build, live [][]chainWrite) {
	byUnit := map[string][]chainWrite{}
	known := map[string]bool{}
	for key, c := range p.write {
		if key.Table != t || c.Unit == "" {
			continue
		}
		byUnit[c.Unit] = append(byUnit[c.Unit], chainWrite{key.Name, c})
		if _, exists := k.chains[key]; exists {
			known[c.Unit] = true
		}
	}
	for _, unit := range slices.Sorted(maps.Keys(byUnit)) {
		if known[unit] {
			live = append(live, byUnit[unit])
		} else {
			build = append(build, byUnit[unit])
		}
	}
	return build, live
}

// pack fills transactions with whole units.
func pack(t Table, units [][]chainWrite, limit int) []transaction {
	var out []transaction
	cur := section{table: t}
	for _, u := range units {
		unit := section{write: u}
		if !cur.empty() && cur.cost()+unit.cost() > limit {
			out = append(out, transaction{cur})
			cur = section{table: t}
		}
		cur.write = append(cur.write, u...)
	}
	return append(out, transaction{cur})
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
