// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"maps"
	"slices"
	"sync"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Roster says which ports of Services have series of their own in one family: of those that
// are selected a bounded number, each as long as it is there. A mode that counts these
// alone shares it with what makes the series. It is safe for concurrent use.
type Roster struct {
	selection Selection
	limit     int

	mu sync.Mutex
	// has are the ports that have series of their own, and waiting those that would if
	// there were fewer.
	has, waiting map[model.ServicePortName]bool
	// moved are those that have come or gone since take was called.
	moved map[model.ServicePortName]bool
}

// NewRoster returns a Roster of at most limit ports.
func NewRoster(s Selection, limit int) *Roster {
	return &Roster{
		selection: s, limit: limit,
		has: map[model.ServicePortName]bool{}, waiting: map[model.ServicePortName]bool{}, moved: map[model.ServicePortName]bool{},
	}
}

// Update brings the roster up to date with what there is, and returns the ports that are on
// it now and were not, or the other way round, in order. Of who waits the first by name has
// what becomes free. What has been told already changes nothing.
func (r *Roster) Update(d proxier.Desired) (moved []model.ServicePortName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range d.Changed {
		if d.Snapshot.Get(name) == nil {
			if r.has[name] {
				moved = append(moved, name)
			}
			delete(r.has, name)
			delete(r.waiting, name)
		} else if !r.has[name] && r.selection.Has(name.Service) {
			r.waiting[name] = true
		}
	}
	if free := r.limit - len(r.has); free > 0 && len(r.waiting) > 0 {
		next := slices.SortedFunc(maps.Keys(r.waiting), model.ServicePortName.Compare)
		for _, name := range next[:min(free, len(next))] {
			r.has[name] = true
			delete(r.waiting, name)
			moved = append(moved, name)
		}
	}
	for _, name := range moved {
		r.moved[name] = true
	}
	slices.SortFunc(moved, model.ServicePortName.Compare)
	return moved
}

// Has tells whether a port is on the roster.
func (r *Roster) Has(name model.ServicePortName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.has[name]
}

// take calls yield for each port that may have come or gone since it was last called.
func (r *Roster) take(yield func(name model.ServicePortName, has bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.moved {
		yield(name, r.has[name])
	}
	clear(r.moved)
}
