// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"maps"
	"sync"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

// ledger has the sums of one family.
type ledger struct {
	family model.Family
	source Source
	roster *Roster

	// last is what each counter said, and round the reading in which it did.
	last  map[uint64]reading
	round uint32
	// begun is set once what was counted before the start is known.
	begun bool
	// followed is closed once ports are known, and so which counter is of which.
	followed chan struct{}
	once     sync.Once

	mu sync.Mutex // of what follows, and never held while anything is read
	// series are those of the ports on the roster.
	series map[model.ServicePortName]*Counts
	// rest is what all others have carried.
	rest Counts
}

type reading struct {
	Counts
	round uint32
}

var _ proxier.Follower = (*ledger)(nil)

func newLedger(f model.Family, source Source, roster *Roster) *ledger {
	return &ledger{
		family: f, source: source, roster: roster, followed: make(chan struct{}),
		series: map[model.ServicePortName]*Counts{}, last: map[uint64]reading{},
	}
}

// Follow implements proxier.Follower: ports have series as long as they are there, so that
// one that is at rest is not one that has gone.
func (l *ledger) Follow(_ context.Context, d proxier.Desired) error {
	l.roster.Update(d)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roster.take(func(name model.ServicePortName, has bool) {
		if !has {
			delete(l.series, name)
		} else if l.series[name] == nil {
			l.series[name] = &Counts{}
		}
	})
	l.once.Do(func() { close(l.followed) })
	return nil
}

// read reads the kernel's counters. The first time that all have been read, what they say
// was before the start. It is not for concurrent use.
func (l *ledger) read(ctx context.Context) error {
	l.round++
	if err := l.source.Read(ctx, l.take); err != nil {
		return err
	}
	maps.DeleteFunc(l.last, func(_ uint64, r reading) bool { return r.round != l.round })
	l.begun = true
	return nil
}

// take takes what a counter says.
func (l *ledger) take(now Sample) {
	before := l.last[now.ID].Counts // all zeros for one that was not there
	l.last[now.ID] = reading{now.Counts, l.round}
	if !l.begun {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := &l.rest
	if own := l.series[now.Port]; own != nil {
		sum = own
	}
	sum.add(since(before, now))
}

// each calls yield for each port that has series of its own, and for the rest.
func (l *ledger) each(yield func(name model.ServicePortName, sum Counts)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, sum := range l.series {
		yield(name, *sum)
	}
	yield(others, l.rest)
}

// others is what Services without series of their own are summed up under. No object can
// be called so.
var others = model.ServicePortName{Service: model.ObjectKey{Namespace: "*", Name: "*"}, Port: "*", Protocol: "*"}
