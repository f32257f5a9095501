// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// found is what elements the kernel has, by set and key.
type found map[id]table.Element

// reconcile reads the table and writes the difference to what there is to be.
func (w *writing) reconcile() error {
	state, err := readAgain(w.kernel.Read)
	if err != nil {
		return err
	}
	*w = writing{Mode: w.Mode, d: w.d, next: w.next, report: w.report}
	if w.known {
		w.noteOutline(state)
	}
	had := w.ports
	w.hadUnits = w.units
	w.reset()
	w.withheld = false
	actual := found{}
	if state != nil && !w.fits(state) {
		// Another version's. All is made anew in one transaction, in which nothing is
		// without rules.
		w.before = []table.Step{table.DeleteTable{}}
		w.atOnce, state = true, nil
	}
	w.state = state
	if state != nil {
		if actual, err = w.readElements(state, had); err != nil {
			return err
		}
	}
	w.adopt(actual)
	return w.write(w.compareAll(actual, had))
}

// readAgain repeats a reading that was disturbed.
func readAgain[T any](read func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		out, err := read()
		if try == 5 || !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
}

// fits tells whether sets and base chains of the table are as ours are.
func (w *writing) fits(state *table.State) bool {
	t := w.next.skeleton(w.next.node, usageIn(state))
	for _, s := range t.Sets {
		if p, ok := state.Sets[s.Name]; ok && p != s.Properties() {
			return false
		}
	}
	for _, c := range t.Chains {
		if old, ok := state.Chains[c.Name]; ok && old.Properties != c.Properties() {
			return false
		}
	}
	return true
}

// usageIn tells by the names of sets what a table has been made for.
func usageIn(state *table.State) usage {
	out := newUsage()
	for name := range state.Sets {
		if k, ok := classNamed(name); ok {
			out.classes[k] = 0
		}
		if t, ok := timeoutNamed(name); ok {
			out.timeouts[t] = 0
		}
		if seldom(name) {
			out.seldom[name] = 0
		}
	}
	return out
}

// classNamed returns the class that a set is of.
func classNamed(name string) (class, bool) {
	i := strings.LastIndexByte(name, '-')
	n, err := strconv.Atoi(name[i+1:])
	if i < 0 || err != nil {
		return class{}, false
	}
	for _, f := range []front{byAddress, byNodePort} {
		for _, p := range []policy{cluster, local} {
			for _, how := range []model.Balancing{model.Random, model.Maglev, model.MaglevPort} {
				if k := (class{f, p, n, how}); k.name() == name {
					return k, true
				}
			}
		}
	}
	return class{}, false
}

// timeoutNamed returns the timeout that a set is of.
func timeoutNamed(name string) (timeout, bool) {
	i := strings.LastIndexByte(name, '-')
	n, err := strconv.Atoi(name[i+1:])
	if i < 0 || err != nil {
		return timeout{}, false
	}
	for _, f := range []front{byAddress, byNodePort} {
		if t := (timeout{f, secondsOf(n)}); t.name() == name {
			return t, true
		}
	}
	return timeout{}, false
}

// maxListed is how many endpoints are listed rather than asked for: to list more takes
// long, see Kernel.Elements.
const maxListed = 20_000

// readElements reads what elements there are. Where there are many endpoints, it asks for
// those that destinations should have: by their class, and by what is known of ports. What
// it does not see leads nowhere, and is found once it is in the way.
func (w *writing) readElements(state *table.State, had map[model.ServicePortName]*portState) (found, error) {
	out := found{}
	t := w.next.skeleton(w.next.node, usageIn(state))
	var maps []*table.Set
	for _, s := range t.Sets {
		w.useOf(s.Name)
		if _, ok := state.Sets[s.Name]; !ok || s.Dynamic {
			continue
		}
		if len(s.Data) > 0 {
			maps = append(maps, s)
		} else if err := w.list(s, out); err != nil {
			return nil, err
		}
	}
	dests := destinationsIn(out, had)
	total := 0
	for _, list := range dests {
		for _, slots := range list {
			total += slots
		}
	}
	for _, m := range maps {
		if w.deep || total <= maxListed || m.Name == hostPorts || m.Name == hostPortsOnAddress {
			if err := w.list(m, out); err != nil {
				return nil, err
			}
			continue
		}
		for dest, slots := range dests[m.Name] {
			if err := w.get(m, dest, slots, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// destinationsIn returns, by the map that has the endpoints, for which destinations
// there should be some, and how many slots at most.
func destinationsIn(actual found, had map[model.ServicePortName]*portState) map[string]map[string]int {
	out := map[string]map[string]int{}
	note := func(k class, dest string) {
		m := endpointsName(k.front, k.policy)
		if out[m] == nil {
			out[m] = map[string]int{}
		}
		out[m][dest] = max(out[m][dest], k.slots)
	}
	classes := map[string]class{}
	for k := range actual {
		c, known := classes[k.set]
		if !known {
			c, _ = classNamed(k.set)
			classes[k.set] = c
		}
		if c.slots > 0 {
			note(c, k.key)
		}
	}
	for _, st := range had {
		for _, pl := range places(st.port) {
			for pol, slots := range st.slots {
				if len(slots) > 0 {
					note(class{front: pl.front(), policy: policy(pol), slots: len(slots)}, string(pl.key()))
				}
			}
		}
	}
	return out
}

// useOf keeps what there is a set for in mind, until it is tidied up.
func (w *writing) useOf(set string) {
	if k, ok := classNamed(set); ok {
		w.use.classes[k] += 0
	}
	if t, ok := timeoutNamed(set); ok {
		w.use.timeouts[t] += 0
	}
	if seldom(set) {
		w.use.seldom[set] += 0
	}
}

// list reads all elements of a set.
func (w *writing) list(s *table.Set, out found) error {
	_, err := readAgain(func() (struct{}, error) {
		return struct{}{}, w.kernel.Elements(s, func(e table.Element) { out[id{s.Name, e.Key, e.End}] = e })
	})
	return err
}

// get reads the endpoints of one destination.
func (w *writing) get(m *table.Set, dest string, slots int, out found) error {
	const most = 100
	for from := 0; from < slots; from += most {
		var keys []string
		for i := from; i < min(slots, from+most); i++ {
			keys = append(keys, dest+string(table.Key(nil).Integer(uint32(i))))
		}
		n := 0
		err := w.kernel.Get(m, keys, func(e table.Element) { out[id{m.Name, e.Key, ""}] = e; n++ })
		if err != nil {
			return err
		}
		if n < len(keys) {
			return nil
		}
	}
	return nil
}

// adopt notes, at the first time, where clients could send UDP to.
func (w *writing) adopt(actual found) {
	if w.started || w.adopted != nil {
		return
	}
	seen := map[place]bool{}
	for k := range actual {
		c, ok := classNamed(k.set)
		switch {
		case k.set == hostPorts:
			c.front = byNodePort
		case !ok && k.set != hostPortsOnAddress:
			continue
		}
		if pl, ok := placeOf(k.key, c.front, w.next.table()); ok && pl.proto == 17 && !seen[pl] {
			seen[pl] = true
			w.adopted = append(w.adopted, netip.AddrPortFrom(pl.addr, pl.port))
		}
	}
	slices.SortFunc(w.adopted, netip.AddrPort.Compare)
}

// compareAll compares all that there is to be with what there is, which it takes out of
// actual; what is left then goes.
func (w *writing) compareAll(actual found, had map[model.ServicePortName]*portState) iter.Seq[delta] {
	ports := w.allPorts(had)
	for _, p := range ports {
		w.ledger.replace(p.Name, nil, p, func(model.ServicePortName) {})
	}
	return func(yield func(delta) bool) {
		order, units := w.allUnits(actual)
		first := w.nodeDelta(nil)
		w.except(&first, actual)
		first.dels = append(first.dels, w.overlapping(actual, ports, units)...)
		if !yield(first) {
			return
		}
		for _, u := range order {
			dl := delta{unit: u, entries: units[u]}
			_, dl.add = w.compare(nil, units[u])
			if w.except(&dl, actual); !yield(dl) {
				return
			}
		}
		for _, p := range ports {
			slots := w.slotsIn(actual, p)
			if st := had[p.Name]; st != nil && len(slots[cluster])+len(slots[local]) == 0 {
				slots = st.slots
			}
			dl := delta{name: p.Name, state: w.place(p, slots)}
			_, dl.add = w.compare(nil, w.next.state(dl.state))
			if w.except(&dl, actual); !yield(dl) {
				return
			}
		}
		for _, dl := range w.stale(actual) {
			if !yield(dl) {
				return
			}
		}
	}
}

// allPorts returns all ports that there are to be, in order.
func (w *writing) allPorts(had map[model.ServicePortName]*portState) []*model.ServicePort {
	var ports []*model.ServicePort
	for p := range w.d.Snapshot.All() {
		if r, ok := w.refused[p.Name]; ok && r.port == p && !w.d.Verify {
			continue
		}
		ports = append(ports, p)
	}
	if !w.d.Prune { // what may only be missing for no reason of its own
		for name, st := range had {
			if w.d.Snapshot.Get(name) == nil {
				ports = append(ports, st.port)
				w.withheld = true
			}
		}
	}
	slices.SortFunc(ports, func(a, b *model.ServicePort) int { return a.Name.Compare(b.Name) })
	return ports
}

// except leaves out what there is already, and removes what is in the way.
func (w *writing) except(dl *delta, actual found) {
	missing := dl.add[:0:0]
	for _, e := range dl.add {
		k := e.id()
		is, ok := actual[k]
		if ok {
			delete(actual, k)
			if is.Data == e.Data && is.Comment == e.Comment {
				continue
			}
			w.note(k.set)
			dl.dels = append(dl.dels, entry{e.of, is})
		} else if w.started {
			w.note(k.set)
		}
		missing = append(missing, e)
	}
	dl.add = missing
}

// noteOutline reports which sets and chains are not as they are known to have been.
func (w *writing) noteOutline(now *table.State) {
	if now == nil {
		now = &table.State{}
	}
	differ := map[string]bool{}
	for _, states := range [][2]*table.State{{w.state, now}, {now, w.state}} {
		for name, c := range states[0].Chains {
			o, ok := states[1].Chains[name]
			differ[name] = differ[name] || !ok || c.Properties != o.Properties || !slices.Equal(c.Rules, o.Rules)
		}
		for name, s := range states[0].Sets {
			differ[name] = differ[name] || states[1].Sets[name] != s
		}
	}
	for _, name := range slices.Sorted(maps.Keys(differ)) {
		if differ[name] {
			w.note(name)
		}
	}
}

// note reports that others have changed a set or a chain.
func (w *writing) note(set string) {
	name := fmt.Sprintf("%s %s %s", w.render.table(), TableName, set)
	if w.started && !slices.Contains(w.report.Repaired, name) && len(w.report.Repaired) < 20 {
		w.report.Repaired = append(w.report.Repaired, name)
	}
}

// slotsIn returns the slots that the kernel has for a port.
func (w *writing) slotsIn(actual found, p *model.ServicePort) placed {
	var out placed
	for pol := range out {
		for _, pl := range places(p) {
			key, name := string(pl.key()), endpointsName(pl.front(), policy(pol))
			for i := uint32(0); ; i++ {
				e, ok := actual[id{name, key + string(table.Key(nil).Integer(i)), ""}]
				if !ok {
					break
				}
				if ep, ok := endpointOf(e.Data); ok {
					out[pol] = append(out[pol], ep)
				}
			}
			if len(out[pol]) > 0 {
				break
			}
		}
	}
	return out
}

// endpointOf reads an endpoint as a map has it.
func endpointOf(data string) (netip.AddrPort, bool) {
	if len(data) < 8 {
		return netip.AddrPort{}, false
	}
	at := len(data) - 4
	a, ok := netip.AddrFromSlice([]byte(data[:at]))
	return netip.AddrPortFrom(a, uint16(data[at])<<8|uint16(data[at+1])), ok
}

// stale returns what is left of what there is, which is not to be.
func (w *writing) stale(actual found) []delta {
	var out []delta
	var rest delta
	for _, k := range slices.SortedFunc(maps.Keys(actual), id.compare) {
		if !w.d.Prune {
			w.withheld = true
			continue
		}
		w.note(k.set)
		if rest.dels = append(rest.dels, entry{of: k.set, Element: actual[k]}); len(rest.dels) >= maxChunk {
			out, rest = append(out, rest), delta{}
		}
	}
	if len(rest.dels) > 0 {
		out = append(out, rest)
	}
	return out
}

func (k id) compare(o id) int {
	return compareStrings(k.set, o.set, k.key, o.key, k.end, o.end)
}
