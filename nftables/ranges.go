// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// ranges renders what is in a set of networks.
func ranges(set string, list []netip.Prefix) []entry {
	var out []entry
	for _, p := range disjoint(list) {
		out = append(out, entry{set, table.Element{
			Key: string(table.Key(nil).Addr(p.Addr())), End: table.LastOf(p),
		}})
	}
	return out
}

// disjoint leaves out prefixes that are inside of others: ranges in a set must not
// overlap.
func disjoint(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// overlapping takes those ranges out of actual that are not wanted, which go first: they
// must not overlap with those that come. While nothing may be removed, only those that do.
func (w *writing) overlapping(actual found, ports []*model.ServicePort, units map[unit][]entry) []entry {
	wanted, inOrder := w.wantedRanges(ports, units)
	inTheWay := func(k id) bool {
		list := inOrder[k.set]
		i, _ := slices.BinarySearchFunc(list, k.key, func(e table.Element, key string) int { return strings.Compare(e.End, key) })
		return i < len(list) && list[i].Key <= k.end
	}
	var out []entry
	for _, k := range slices.SortedFunc(maps.Keys(actual), id.compare) {
		if k.end != "" && !wanted[k] && (w.d.Prune || inTheWay(k)) {
			out = append(out, entry{of: k.set, Element: actual[k]})
			delete(actual, k)
			w.note(k.set)
		}
	}
	return out
}

// wantedRanges are the ranges that there are to be, also those of each set in order.
func (w *writing) wantedRanges(ports []*model.ServicePort, units map[unit][]entry) (map[id]bool, map[string][]table.Element) {
	wanted, inOrder := map[id]bool{}, map[string][]table.Element{}
	add := func(entries []entry) {
		for _, e := range entries {
			if k := e.id(); e.End != "" && !wanted[k] {
				wanted[k] = true
				inOrder[k.set] = append(inOrder[k.set], e.Element)
			}
		}
	}
	for _, entries := range units {
		add(entries)
	}
	for _, p := range ports {
		if !p.Restricted {
			continue
		}
		ranges := &portWriter{renderer: w.next, ServicePort: p}
		for _, pl := range places(p) {
			if slices.Contains(p.LoadBalancerIPs, pl.addr) && w.ledger.has(pl, p.Name) {
				ranges.admit(pl)
			}
		}
		add(ranges.out)
	}
	add(w.next.ofNode())
	for _, list := range inOrder {
		table.SortElements(list)
	}
	return wanted, inOrder
}
