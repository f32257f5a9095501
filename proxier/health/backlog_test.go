// SPDX-License-Identifier: Apache-2.0

package health

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestBacklogAgainstList compares a backlog with a list of every single update,
// under random updates and completions.
func TestBacklogAgainstList(t *testing.T) {
	const step = time.Second
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		b := backlog{step: step}
		var list []time.Time
		now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		for range 300 {
			now = now.Add(time.Duration(r.Int64N(int64(step))))
			if r.IntN(10) > 0 {
				b.add(now)
				list = append(list, now)
			} else {
				until := now.Add(-time.Duration(r.Int64N(int64(20 * step))))
				b.done(until)
				list = slices.DeleteFunc(list, func(t time.Time) bool { return !t.After(until) })
			}
			got, ok := b.oldest()
			if ok != (len(list) > 0) {
				t.Fatalf("seed %d: got updates queued %t, want %t", seed, ok, len(list) > 0)
			}
			if ok && (got.After(list[0]) || list[0].Sub(got) > step) {
				t.Fatalf("seed %d: got oldest %v, want %v or up to %v before", seed, got, list[0], step)
			}
		}
	}
}

func TestBacklogIsBounded(t *testing.T) {
	b := backlog{step: time.Second}
	first := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	last := first
	for range 10 * maxSpans {
		b.add(last)
		last = last.Add(time.Second)
	}
	if len(b.spans) != maxSpans {
		t.Errorf("got %d spans, want %d", len(b.spans), maxSpans)
	}
	if got, _ := b.oldest(); got != first {
		t.Errorf("got oldest %v, want %v", got, first)
	}
	b.done(last)
	if got, ok := b.oldest(); ok {
		t.Errorf("got oldest %v after all were done, want none", got)
	}
}

func TestBacklogOutOfOrder(t *testing.T) {
	b := backlog{step: time.Second}
	t0 := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	b.add(t0)
	b.add(t0.Add(-time.Millisecond))
	if got, _ := b.oldest(); got != t0.Add(-time.Millisecond) {
		t.Errorf("got oldest %v, want the earlier one", got)
	}
	b.done(t0.Add(-time.Millisecond))
	if _, ok := b.oldest(); !ok {
		t.Error("the later one is forgotten")
	}
	b.done(t0)
	if _, ok := b.oldest(); ok {
		t.Error("the later one is not forgotten")
	}
}
