// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"maps"
	"slices"

	"fairlead/nftables/table"
)

// drawing is a skeleton, and what it was made for.
type drawing struct {
	table *table.Table
	sets  map[string]*table.Set
	state *table.State
	node  nodeView
	// classes, timeouts and seldom are how many there were: of one usage there never are less.
	classes, timeouts, seldom int
}

// draw makes a skeleton.
func draw(r renderer, use usage) *drawing {
	t := r.skeleton(r.node, use)
	d := &drawing{table: t, sets: map[string]*table.Set{}, state: stateOf(t), node: r.node,
		classes: len(use.classes), timeouts: len(use.timeouts), seldom: len(use.seldom)}
	for _, s := range d.table.Sets {
		d.sets[s.Name] = s
	}
	return d
}

// is tells whether a drawing is what there would be for a node and a usage.
func (d *drawing) is(node nodeView, use usage) bool {
	return d != nil && d.node.equal(node) && d.classes == len(use.classes) && d.timeouts == len(use.timeouts) && d.seldom == len(use.seldom)
}

// stateOf is what the kernel has once it has a table.
func stateOf(t *table.Table) *table.State {
	out := &table.State{Sets: map[string]string{}, Chains: map[string]table.ChainState{}}
	for _, s := range t.Sets {
		out.Sets[s.Name] = s.Properties()
	}
	for _, c := range t.Chains {
		out.Chains[c.Name] = table.ChainState{Properties: c.Properties(), Rules: ruleIDs(c)}
	}
	return out
}

func ruleIDs(c *table.Chain) []string {
	var out []string
	for _, r := range c.Rules {
		out = append(out, r.ID())
	}
	return out
}

// adoptState notes that the kernel has the sets and chains of a drawing, beside others;
// where base is not set, without base chains that there were not before.
func (m *Mode) adoptState(d *drawing, base bool) {
	now := &table.State{Sets: maps.Clone(d.state.Sets), Chains: maps.Clone(d.state.Chains)}
	for _, c := range d.table.Chains {
		if _, ok := m.state.Chains[c.Name]; !ok && c.Hook != "" && !base {
			delete(now.Chains, c.Name)
		}
	}
	if m.state != nil {
		for name, p := range m.state.Sets {
			if _, ok := now.Sets[name]; !ok {
				now.Sets[name] = p
			}
		}
		for name, c := range m.state.Chains {
			if _, ok := now.Chains[name]; !ok {
				now.Chains[name] = c
			}
		}
	}
	m.state = now
}

// outline returns the steps that make sets, chains and rules as a drawing has them: first
// what elements rely on, and last the base chains that there are not yet.
func (m *Mode) outline(d *drawing) (first, last []table.Step) {
	t, rules := d.table, []table.Step(nil)
	if m.state == nil {
		m.state = &table.State{Sets: map[string]string{}, Chains: map[string]table.ChainState{}}
		first = append(first, table.AddTable{Comment: t.Comment})
	}
	for _, s := range t.Sets {
		if _, ok := m.state.Sets[s.Name]; !ok {
			first = append(first, table.AddSet{Set: s})
		}
	}
	for _, c := range t.Chains {
		old, ok := m.state.Chains[c.Name]
		if !ok && c.Hook != "" {
			last = append(last, table.AddChain{Chain: c}, table.SetRules{Chain: c.Name, Rules: c.Rules})
			continue
		}
		if !ok {
			first = append(first, table.AddChain{Chain: c})
		}
		if !slices.Equal(old.Rules, d.state.Chains[c.Name].Rules) {
			rules = append(rules, table.SetRules{Chain: c.Name, Rules: c.Rules})
		}
	}
	return append(first, rules...), last
}

// surplus counts the sets and chains that there are and are not to be.
func (m *Mode) surplus() int {
	if !m.known || m.state == nil || m.drawn == nil {
		return 0
	}
	return len(m.state.Sets) + len(m.state.Chains) - len(m.drawn.table.Sets) - len(m.drawn.table.Chains)
}

// tidy removes sets and chains that nothing uses any more.
func (w *writing) tidy() error {
	if w.use.unused() == 0 && len(w.state.Sets) == len(w.drawn.table.Sets) && len(w.state.Chains) == len(w.drawn.table.Chains) {
		return nil
	}
	use := w.use.settled()
	drawn := draw(w.next, use)
	want := drawn.state
	first, _ := w.outline(drawn)
	steps := first
	for _, name := range slices.Sorted(maps.Keys(w.state.Chains)) {
		if _, ok := want.Chains[name]; !ok { // its rules may name sets, and others chains
			steps = append(steps, table.SetRules{Chain: name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.state.Chains)) {
		if _, ok := want.Chains[name]; !ok {
			steps = append(steps, table.DeleteChain{Name: name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.state.Sets)) {
		if _, ok := want.Sets[name]; !ok {
			steps = append(steps, table.DeleteSet{Name: name})
		}
	}
	if len(steps) == 0 {
		return nil
	}
	if err := w.kernel.Apply(steps); err != nil {
		w.metrics.untidy(w.render.Family)
		return err
	}
	w.report.Written += count(steps)
	w.use, w.state, w.drawn = use, want, drawn
	return nil
}
