// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"cmp"
	"slices"

	"fairlead/proxier/model"
)

// claim is what one port of a Service wants of a place.
type claim struct {
	rank  rank
	owner model.ServicePortName
}

// rank orders those who want one place: who can serve comes first, then by the kind of
// the place.
type rank uint8

// The kinds of places; a rank of one that cannot serve has idle added.
const (
	ofCluster rank = iota
	ofExternal
	ofNodePort
	idle rank = 8
)

func (c claim) compare(o claim) int {
	return cmp.Or(cmp.Compare(c.rank, o.rank), c.owner.Compare(o.owner))
}

// ledger knows who wants which places. A place belongs to the first of those who want
// it; the others have nothing of it, so that two Services with one address do not mix.
type ledger map[place][]claim

// has tells whether a place belongs to a port.
func (l ledger) has(p place, owner model.ServicePortName) bool {
	cs := l[p]
	return len(cs) > 0 && cs[0].owner == owner
}

// replace puts what a port wants now in the place of what it wanted, nil being nothing,
// and calls moved for each other port that may have lost a place or got one.
func (l ledger) replace(name model.ServicePortName, old, now *model.ServicePort, moved func(model.ServicePortName)) {
	if old != nil {
		for _, p := range places(old) {
			cs := slices.DeleteFunc(l[p], func(c claim) bool { return c.owner == name })
			for _, c := range cs {
				moved(c.owner)
			}
			if l[p] = cs; len(cs) == 0 {
				delete(l, p)
			}
		}
	}
	if now == nil {
		return
	}
	for i, p := range places(now) {
		for _, c := range l[p] {
			moved(c.owner)
		}
		c := claim{rankOf(i, p, now), name}
		at, _ := slices.BinarySearchFunc(l[p], c, claim.compare)
		l[p] = slices.Insert(l[p], at, c)
	}
}

func rankOf(i int, p place, port *model.ServicePort) rank {
	r := ofExternal
	switch {
	case i == 0:
		r = ofCluster
	case p.front() == byNodePort:
		r = ofNodePort
	}
	if !port.Usable {
		r += idle
	}
	return r
}
