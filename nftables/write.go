// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// maxChunk is how many elements are written in one transaction, unless one port has
// more: nothing else can change rules meanwhile.
const maxChunk = 20_000

// writing is one Sync.
type writing struct {
	*Mode
	d      proxier.Desired
	next   renderer
	report *proxier.Report
	// hadUnits is what there was besides Services before the table was read.
	hadUnits map[unit][]entry
	// before are steps that come first, in the transaction of the first elements.
	before []table.Step
	// baseless is set while base chains are still to be made.
	baseless bool
	// atOnce is set where all is to be one transaction.
	atOnce bool
	// moved are the ports that are counted by themselves now, or are not any more.
	moved []model.ServicePortName
}

// delta is what changes for one port, or for one unit of what there is besides Services.
type delta struct {
	name      model.ServicePortName
	unit      unit
	dels, add []entry
	// state is what there will be of the port, nil where it is gone, and entries of the
	// unit.
	state   *portState
	entries []entry
}

// whole tells whether a delta is that of something which may be refused by itself.
func (d delta) whole() bool { return d.name != (model.ServicePortName{}) || d.unit != (unit{}) }

// change writes what has changed since the last Sync.
func (w *writing) change() error {
	names := map[model.ServicePortName]bool{}
	for _, name := range slices.Concat(w.d.Changed, w.moved) {
		names[name] = true
	}
	for name, r := range w.refused {
		if w.d.Verify || w.d.Snapshot.Get(name) != r.port {
			names[name] = true
		}
	}
	if w.next.node.ip != w.render.node.ip {
		for name, st := range w.ports {
			names[name] = names[name] || st.port.Restricted
		}
	}
	moved := map[model.ServicePortName]bool{}
	for name := range names {
		w.ledger.replace(name, w.portOf(name), w.wanted(name), func(n model.ServicePortName) { moved[n] = true })
	}
	for name := range moved {
		names[name] = true
	}
	if w.d.Verify {
		for u := range w.refusedUnits {
			w.annex.touched[u] = true
		}
	}
	return w.write(func(yield func(delta) bool) {
		if !yield(w.nodeDelta(w.ofNode)) {
			return
		}
		for _, dl := range w.unitDeltas() {
			if !yield(dl) {
				return
			}
		}
		for _, name := range slices.SortedFunc(maps.Keys(names), model.ServicePortName.Compare) {
			if names[name] && !yield(w.delta(name)) {
				return
			}
		}
	})
}

// portOf returns what there is of a port, nil where there is nothing.
func (w *writing) portOf(name model.ServicePortName) *model.ServicePort {
	if st := w.ports[name]; st != nil {
		return st.port
	}
	return nil
}

// wanted returns what there is to be of a port: while nothing may be removed, what
// there is.
func (w *writing) wanted(name model.ServicePortName) *model.ServicePort {
	if p := w.d.Snapshot.Get(name); p != nil || w.d.Prune {
		return p
	}
	p := w.portOf(name)
	w.withheld = w.withheld || p != nil
	return p
}

// delta compares what there is to be of a port with what there is.
func (w *writing) delta(name model.ServicePortName) delta {
	old, now := w.ports[name], w.wanted(name)
	out := delta{name: name}
	var was, is []entry
	if old != nil {
		was = w.render.state(old)
	}
	if now != nil {
		var slots placed
		if old != nil {
			slots = old.slots
		}
		out.state = w.place(now, slots)
		is = w.next.state(out.state)
	}
	out.dels, out.add = w.compare(was, is)
	return out
}

// place gives a port's endpoints their slots, and notes which places it has.
func (w *writing) place(p *model.ServicePort, had placed) *portState {
	st := &portState{port: p, counted: w.next.Counting && w.roster != nil && w.roster.Has(p.Name)}
	for i, eps := range [][]model.Endpoint{p.Endpoints, p.LocalEndpoints} {
		if w.next.balancing(p) != model.Random {
			st.slots[i] = maglev(addrPorts(eps))
			continue
		}
		st.slots[i] = arrange(distinct(had[i]), eps, !w.d.Prune)
		w.withheld = w.withheld || len(st.slots[i]) > len(eps)
	}
	for _, pl := range places(p) {
		if !w.ledger.has(pl, p.Name) {
			st.lost = append(st.lost, pl)
		}
	}
	return st
}

func addrPorts(eps []model.Endpoint) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range eps {
		out = append(out, e.AddrPort)
	}
	return out
}

// distinct leaves out endpoints that come again, as they do in the table of a port that
// was balanced otherwise before.
func distinct(eps []netip.AddrPort) []netip.AddrPort {
	if len(eps) < maglevSizes[0] {
		return eps
	}
	seen := make(map[netip.AddrPort]bool, len(eps))
	return slices.DeleteFunc(slices.Clone(eps), func(ep netip.AddrPort) bool {
		again := seen[ep]
		seen[ep] = true
		return again
	})
}

// compare returns what is to be removed and added, and counts what is shared and in use.
func (w *writing) compare(was, is []entry) (dels, add []entry) {
	w.use.count(is, +1)
	w.use.count(was, -1)
	old := make(map[id]entry, len(was))
	for _, e := range was {
		old[e.id()] = e
	}
	for _, e := range is {
		k := e.id()
		before, ok := old[k]
		if ok && before.Data == e.Data && before.Comment == e.Comment {
			delete(old, k)
			continue
		}
		if !ok && e.shared() {
			if w.shared[k]++; w.shared[k] > 1 {
				continue
			}
		}
		add = append(add, e)
	}
	for _, e := range was { // in order, so that the result is always the same
		k := e.id()
		if _, gone := old[k]; !gone {
			continue
		}
		delete(old, k)
		if e.shared() {
			if w.shared[k]--; w.shared[k] > 0 {
				continue
			}
			delete(w.shared, k)
		}
		dels = append(dels, e)
	}
	return dels, add
}

// nodeDelta compares what of the node there is to be with what there is.
func (w *writing) nodeDelta(was []entry) delta {
	var out delta
	out.dels, out.add = w.compare(was, w.next.ofNode())
	return out
}

// write writes changes of ports, in as few transactions as may be: sets and chains
// first, base chains that there are not yet last, so that nothing meets a table that is
// not complete.
func (w *writing) write(deltas iter.Seq[delta]) error {
	var chunk []delta
	size := 0
	for dl := range deltas {
		if n := len(dl.dels) + len(dl.add); len(chunk) > 0 && size+n > maxChunk && !w.atOnce {
			if err := w.flush(chunk, false); err != nil {
				return err
			}
			chunk, size = nil, 0
		}
		size += len(dl.dels) + len(dl.add)
		chunk = append(chunk, dl)
	}
	if err := w.flush(chunk, true); err != nil {
		return err
	}
	w.render, w.ofNode = w.next, w.next.ofNode()
	if w.d.Prune && (w.d.Settle || w.d.Verify) {
		if err := w.leaveLater(); err != nil {
			return err
		}
		return w.tidy()
	}
	return nil
}

// flush writes some changes, with the sets and chains that these need, and at the end
// with the base chains.
func (w *writing) flush(chunk []delta, end bool) error {
	drawn := w.drawn
	if !drawn.is(w.next.node, w.use) {
		drawn = draw(w.next, w.use)
	}
	var last []table.Step
	if drawn != w.drawn || end && w.baseless {
		var first []table.Step
		if first, last = w.outline(drawn); !end {
			last = nil
		}
		w.before = append(w.before, first...)
	}
	after := w.split(chunk)
	if err := w.chunk(chunk, drawn.sets, last); err != nil {
		return err
	}
	if drawn != w.drawn || end && w.baseless {
		w.adoptState(drawn, end)
		w.drawn, w.baseless = drawn, !end
	}
	return w.leave(after)
}

// chunk writes some ports in one transaction. Where the kernel does not take it, those
// are found that it does not take, and the others are written.
func (w *writing) chunk(deltas []delta, sets map[string]*table.Set, last []table.Step) error {
	steps := append(slices.Clone(w.before), elementSteps(deltas, sets)...)
	steps = append(steps, last...)
	if len(steps) == 0 {
		w.written(deltas, 0)
		return nil
	}
	err := w.kernel.Apply(steps)
	if err == nil {
		w.before = nil
		w.written(deltas, count(steps))
		return nil
	}
	if !refusing(err) || w.atOnce {
		return err
	}
	if len(deltas) > 1 {
		half := len(deltas) / 2
		if err := w.chunk(deltas[:half], sets, nil); err != nil {
			return err
		}
		return w.chunk(deltas[half:], sets, last)
	}
	if len(w.before)+len(last) > 0 { // is it the port?
		if err := w.kernel.Apply(slices.Concat(w.before, last)); err != nil {
			return err
		}
		w.before, last = nil, nil
	}
	if len(deltas) == 1 && deltas[0].whole() {
		w.refuse(deltas[0], err)
		return nil
	}
	return err
}

// refusing tells whether an error is about what was to be written, and will recur.
func refusing(err error) bool {
	for _, e := range []unix.Errno{unix.EINVAL, unix.ERANGE, unix.EOPNOTSUPP, unix.E2BIG, unix.EOVERFLOW, unix.ENAMETOOLONG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// refuse notes that the kernel does not take a port. What there was of it stays, and is
// found when the table is read the next time.
func (w *writing) refuse(dl delta, err error) {
	if dl.unit != (unit{}) {
		w.refusedUnits[dl.unit] = err
		delete(w.annex.touched, dl.unit)
	} else {
		w.refused[dl.name] = refusal{w.d.Snapshot.Get(dl.name), err}
	}
	w.use.count(dl.add, -1)
	w.use.count(dl.dels, +1)
	w.deep = true
}

// written notes what the kernel has of ports.
func (w *writing) written(deltas []delta, n int) {
	w.report.Written += n
	for _, dl := range deltas {
		for _, e := range dl.dels {
			if e.of == affinityTargets || e.of == affinityTargetsNP {
				w.forget = true
			}
		}
		w.recounted = w.recounted || slices.ContainsFunc(dl.dels, entry.counts) || slices.ContainsFunc(dl.add, entry.counts)
		if dl.unit != (unit{}) {
			delete(w.refusedUnits, dl.unit)
			delete(w.annex.touched, dl.unit)
			if w.units[dl.unit] = dl.entries; len(dl.entries) == 0 {
				delete(w.units, dl.unit)
			}
			continue
		}
		if dl.name == (model.ServicePortName{}) {
			continue
		}
		delete(w.refused, dl.name)
		if w.ports[dl.name] = dl.state; dl.state == nil {
			delete(w.ports, dl.name)
		}
	}
}

// elementSteps returns the steps that remove and add entries.
func elementSteps(deltas []delta, sets map[string]*table.Set) []table.Step {
	var dels, adds grouped
	for _, dl := range deltas {
		dels.add(dl.dels)
		adds.add(dl.add)
	}
	var out []table.Step
	for _, name := range dels.names {
		out = append(out, table.DeleteElements{Set: sets[name], Elements: dels.by[name]})
	}
	for _, name := range adds.names {
		out = append(out, table.AddElements{Set: sets[name], Elements: adds.by[name]})
	}
	return out
}

// grouped are elements by their set, in the order in which the sets come.
type grouped struct {
	names []string
	by    map[string][]table.Element
}

func (g *grouped) add(entries []entry) {
	for _, e := range entries {
		name := e.setName()
		if g.by == nil {
			g.by = map[string][]table.Element{}
		}
		if _, ok := g.by[name]; !ok {
			g.names = append(g.names, name)
		}
		g.by[name] = append(g.by[name], e.Element)
	}
}

// count counts what steps write.
func count(steps []table.Step) int {
	n := 0
	for _, s := range steps {
		switch s := s.(type) {
		case table.AddElements:
			n += len(s.Elements)
		case table.DeleteElements:
			n += len(s.Elements)
		case table.SetRules:
			n += len(s.Rules)
		default:
			n++
		}
	}
	return n
}
