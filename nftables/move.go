// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"maps"
	"slices"
)

// A packet looks into the sets of classes one after the other, and each look is at what
// is there at that moment: a transaction between two of them would hide a destination
// from it that moves from a set that it has still to see into one that it has seen. So a
// destination that moves is in both for a while. Moving to a later set, it leaves the
// earlier one right after; moving to an earlier one, it leaves the later one, which
// nobody needs any more, when there is time.

// split takes out of changes those removals that are to come later: right after, or
// when there is time.
func (w *writing) split(deltas []delta) (after []entry) {
	for i := range deltas {
		dl := &deltas[i]
		var to map[string]class
		for _, e := range dl.add {
			if k, ok := e.of.(class); ok {
				if to == nil {
					to = map[string]class{}
				}
				to[k.lane()+e.Key] = k
				if old, ok := w.later[e.id()]; ok && old.Comment != e.Comment { // which adding it again would not change
					dl.dels = append(slices.Clone(dl.dels), old)
				}
				delete(w.later, e.id())
			}
		}
		if to == nil {
			continue
		}
		dl.dels = slices.DeleteFunc(slices.Clone(dl.dels), func(e entry) bool {
			from, ok := e.of.(class)
			if !ok {
				return false
			}
			now, moves := to[from.lane()+e.Key]
			switch {
			case !moves || now == from:
				return false
			case from.compare(now) < 0:
				after = append(after, e)
			default:
				w.later[e.id()] = e
			}
			return true
		})
	}
	return after
}

// lane tells apart the classes of which a destination is in one.
func (k class) lane() string { return string([]byte{byte(k.front), byte(k.policy)}) }

// leave removes destinations from classes that they have left.
func (w *writing) leave(entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	steps := elementSteps([]delta{{dels: entries}}, w.drawn.sets)
	if err := w.kernel.Apply(steps); err != nil {
		return err
	}
	w.report.Written += count(steps)
	return nil
}

// leaveLater removes those that had time.
func (w *writing) leaveLater() error {
	var list []entry
	for _, k := range slices.SortedFunc(maps.Keys(w.later), id.compare) {
		list = append(list, w.later[k])
	}
	err := w.leave(list)
	if err == nil {
		clear(w.later)
	}
	return err
}
