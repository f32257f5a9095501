// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"time"
)

// maxSpans bounds the memory of a backlog that is never worked off.
const maxSpans = 128

// backlog remembers when the updates were queued that are not done yet. Updates
// within one step share a span, so that a storm of them costs no memory; the
// age of the oldest is then right to within one step, and never too young.
type backlog struct {
	step  time.Duration
	spans []span
}

// span stands for updates queued from first to last.
type span struct{ first, last time.Time }

// add notes an update queued at t. Calls that race may come slightly out of
// order.
func (b *backlog) add(t time.Time) {
	n := len(b.spans)
	if n == 0 || n < maxSpans && t.Sub(b.spans[n-1].first) >= b.step {
		b.spans = append(b.spans, span{first: t, last: t})
		return
	}
	s := &b.spans[n-1]
	if t.Before(s.first) {
		s.first = t
	}
	if t.After(s.last) {
		s.last = t
	}
}

// done forgets the updates queued up to and including t.
func (b *backlog) done(t time.Time) {
	b.spans = slices.DeleteFunc(b.spans, func(s span) bool { return !s.last.After(t) })
	if len(b.spans) > 0 && b.spans[0].first.Before(t) {
		b.spans[0].first = t
	}
}

// oldest returns when the oldest update was queued; ok is false if there is
// none.
func (b *backlog) oldest() (t time.Time, ok bool) {
	if len(b.spans) == 0 {
		return time.Time{}, false
	}
	return b.spans[0].first, true
}
