// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"maps"
	"time"

	"fairlead/proxier/source"
)

// runner is one run of a source. It is used by one goroutine.
type runner struct {
	sink      source.Sink
	directory *directory
	watcher   *watcher
	pending   pending
	// looked is when the whole directory was last looked through.
	looked time.Time
}

// pending is what is to be read.
type pending struct {
	all   bool
	names map[string]struct{}
	// first and last are when the first and the last event of a series came,
	// zero where there was none.
	first, last time.Time
}

func (p *pending) add(r relevance, name string, now time.Time) {
	switch r {
	case nothing:
		return
	case oneFile:
		if p.names == nil {
			p.names = map[string]struct{}{}
		}
		p.names[name] = struct{}{}
	case anything:
		p.all = true
	}
	if p.first.IsZero() {
		p.first = now
	}
	p.last = now
}

// readyAt returns when to stop waiting for more; zero where there is nothing to
// read.
func (p *pending) readyAt() time.Time {
	if p.first.IsZero() {
		return time.Time{}
	}
	return earlier(p.last.Add(quiet), p.first.Add(maxWait))
}

// earlier returns the earlier of two times; the zero time counts as never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (r *runner) note(path string, now time.Time) {
	relevance, name := r.watcher.relevant(path)
	r.pending.add(relevance, name, now)
}

// wakeAt returns when the next pass is due.
func (r *runner) wakeAt() time.Time {
	return earlier(r.lookAt(), earlier(r.pending.readyAt(), r.directory.nextRetry()))
}

// lookAt returns when to look through the whole directory without an event.
func (r *runner) lookAt() time.Time {
	if r.watcher.isBlind() {
		return r.looked.Add(blindPeriod)
	}
	return r.looked.Add(lookPeriod)
}

// pass reads what is due and delivers what has changed.
func (r *runner) pass(ctx context.Context, now time.Time) {
	names, all := r.directory.retries(now)
	if ready := r.pending.readyAt(); !ready.IsZero() && !now.Before(ready) {
		maps.Copy(names, r.pending.names)
		all = all || r.pending.all
		r.pending = pending{}
	}
	if all || !now.Before(r.lookAt()) {
		// First watch, then read: what changes in between is seen twice.
		r.watcher.sync(ctx, r.directory.targets())
		r.directory.readAll(ctx, now)
		r.looked = now
	}
	r.directory.readSome(ctx, names, now)
	if r.watcher.sync(ctx, r.directory.targets()) {
		r.pending.add(anything, "", now)
	}
	if changes, ok := r.directory.step(ctx); ok {
		r.sink.Update(changes)
	}
}
