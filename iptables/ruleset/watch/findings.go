// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"fairlead/iptables/ruleset"
)

// How much longer than the last listing took everything is left unread after
// it. Listing takes a core, so its share is one in that.
const (
	// restSoon is for what may have cost us rules.
	restSoon = 10
	// restLate is for what others have added.
	restLate = 100
)

// maxChains is how many chains are named one by one. Reading them one by one
// takes longer than reading everything long before.
const maxChains = 4096

// findings are what a watcher has found out and nobody has taken yet.
type findings struct {
	wake   chan struct{}
	chains map[ruleset.ChainKey]struct{}
	// due is when everything is to be read, zero where there is no need.
	due   time.Time
	timer *time.Timer // gives the token when due
	// again is the least rest that something asked for since the last take, 0
	// if nothing did. A listing that began there may not have seen it.
	again int
	// listed is when the last listing ended, and took how long it took.
	listed time.Time
	took   time.Duration
}

// newFindings returns that nothing is known.
func newFindings() findings {
	f := findings{wake: make(chan struct{}, 1), chains: map[ruleset.ChainKey]struct{}{}, due: time.Now()}
	f.token()
	return f
}

func (f *findings) token() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// reread says that it is not known what has changed, and that everything is to
// be read after a rest.
func (f *findings) reread(rest int) {
	if f.again == 0 || rest < f.again {
		f.again = rest
	}
	if !f.listed.IsZero() { // else it is due since the start
		f.readBy(f.listed.Add(time.Duration(rest) * f.took))
	}
}

// readBy says that everything is to be read at t.
func (f *findings) readBy(t time.Time) {
	if !f.due.IsZero() && !t.Before(f.due) {
		return
	}
	f.due = t
	wait := time.Until(t)
	switch {
	case wait <= 0:
		f.token()
	case f.timer == nil:
		f.timer = time.AfterFunc(wait, f.token)
	default:
		f.timer.Reset(wait)
	}
}

// add adds what a commit of others has touched.
func (f *findings) add(t touched) {
	for k := range t.chains {
		f.chains[k] = struct{}{}
	}
	if t.all || len(f.chains) > maxChains {
		clear(f.chains)
		f.reread(restSoon)
	}
	if len(f.chains) > 0 {
		f.token()
	}
}

// take implements ruleset.Watcher's Take.
func (f *findings) take() ruleset.Suspects {
	select {
	case <-f.wake:
	default:
	}
	f.again = 0
	s := ruleset.Suspects{All: !f.due.IsZero() && !time.Now().Before(f.due)}
	if !s.All && len(f.chains) > 0 {
		s.Chains = slices.SortedFunc(maps.Keys(f.chains), func(a, b ruleset.ChainKey) int {
			return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
		})
	}
	clear(f.chains)
	return s
}

// read implements ruleset.Watcher's Listed.
func (f *findings) read(d time.Duration) {
	f.listed, f.took, f.due = time.Now(), d, time.Time{}
	f.stop()
	if f.again > 0 {
		f.reread(f.again)
	}
}

// stop ends the timer.
func (f *findings) stop() {
	if f.timer != nil {
		f.timer.Stop()
	}
}
