// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

// pauseBounds are the least pause after each of a number of failures in a row,
// and a bound that it stays below; from the eighth on it is the same.
var pauseBounds = []struct{ min, max time.Duration }{
	{100 * ms, 125 * ms},
	{200 * ms, 250 * ms},
	{400 * ms, 500 * ms},
	{800 * ms, 1000 * ms},
	{1600 * ms, 2000 * ms},
	{3200 * ms, 4000 * ms},
	{6400 * ms, 8000 * ms},
	{10 * time.Second, 10*time.Second + 1},
}

func TestBackoff(t *testing.T) {
	for failures := 1; failures < 100; failures++ {
		want := pauseBounds[min(failures, len(pauseBounds))-1]
		least, most := time.Hour, time.Duration(0)
		for range 1000 {
			d := backoff(failures)
			least, most = min(least, d), max(most, d)
		}
		if least < want.min || most >= want.max {
			t.Errorf("after %d failures: got pauses of %v to %v, want %v to less than %v", failures, least, most, want.min, want.max)
		}
		if spread := want.max - want.min; most-least < spread/2 {
			t.Errorf("after %d failures: got pauses of %v to %v, want most of %v", failures, least, most, spread)
		}
	}
}

// TestLoopBacksOff fails ten times, succeeds, and fails again.
func TestLoopBacksOff(t *testing.T) {
	plan := make([]outcome, 13)
	for i := range plan {
		if plan[i] = failed(0); i == 10 {
			plan[i] = took(0)
		}
	}
	inBubble(t, 0, seldom, plan, func(t *testing.T, r *rig) {
		r.at(0, with(listed(), add("a", 1)))
		r.at(time.Hour, add("b", 1))
		r.at(2 * time.Hour)
		calls := r.calls()
		if len(calls) != 14 {
			t.Fatalf("got syncs %v, want 14", calls)
		}
		for i, c := range calls[1:] {
			failures := i + 1
			if i == 10 {
				if c.start != time.Hour {
					t.Errorf("got sync %v, want it at the event", c)
				}
				continue
			} else if i > 10 {
				failures = i - 10
			}
			want := pauseBounds[min(failures, len(pauseBounds))-1]
			if pause := c.start - calls[i].end; pause < want.min || pause >= want.max {
				t.Errorf("after %d failures: got a pause of %v, want %v to less than %v", failures, pause, want.min, want.max)
			}
		}
		r.wantKernel("a/TCP 10.96.0.1:1:", "b/TCP 10.96.0.1:1:")
	})
}

// TestLoopRestsAfterASlowFailure does not take a whole core either while syncs
// fail, and keeps the least time between two.
func TestLoopRestsAfterASlowFailure(t *testing.T) {
	inBubble(t, 3*time.Second, seldom, []outcome{failed(5 * time.Second), failed(time.Second), took(0)}, func(t *testing.T, r *rig) {
		r.at(0, with(listed(), add("a", 1)))
		r.at(time.Minute)
		r.want("0s a failed", "10s a failed", "13s a")
	})
}

// TestLoopCarriesFailedKeys has a first sync that puts a and b in place, and
// tells what those after it must name. The time of a retry is not exact.
func TestLoopCarriesFailedKeys(t *testing.T) {
	type names []string
	for _, tc := range []struct {
		name   string
		fails  int
		events []event
		want   []names
	}{
		{
			name: "again until it succeeds", fails: 3, events: []event{{time.Second, add("a", 2)}},
			want: []names{{"a"}, {"a"}, {"a"}, {"a"}},
		},
		{
			name: "with what arrived during the backoff", fails: 1,
			events: []event{{time.Second, add("b", 2)}, {1050 * ms, add("a", 2)}},
			want:   []names{{"b"}, {"a", "b"}},
		},
		{
			name: "even if it is as before again", fails: 1,
			events: []event{{time.Second, add("a", 2)}, {1050 * ms, add("a", 1)}},
			want:   []names{{"a"}, {"a"}},
		},
		{
			name: "even if it never was there", fails: 1,
			events: []event{{time.Second, add("d", 1)}, {1050 * ms, services("-d")}},
			want:   []names{{"d"}, {"d"}},
		},
		{
			name: "a deletion", fails: 1, events: []event{{time.Second, services("-a")}},
			want: []names{{"a"}, {"a"}},
		},
		{
			name: "a deletion that is taken back", fails: 1,
			events: []event{{time.Second, services("-a")}, {1050 * ms, add("a", 1)}},
			want:   []names{{"a"}, {"a"}},
		},
		{
			name: "once", fails: 1, events: []event{{time.Second, add("a", 2)}, {time.Minute, add("b", 2)}},
			want: []names{{"a"}, {"a"}, {"b"}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := []outcome{took(0)}
			for range tc.fails {
				plan = append(plan, failed(0))
			}
			inBubble(t, 0, seldom, plan, func(t *testing.T, r *rig) {
				first := with(listed(), services(service("a", "10.96.0.1", "1/TCP"), service("b", "10.96.0.1", "1/TCP")))
				r.at(0, first)
				for _, e := range tc.events {
					r.at(e.at, e.changes)
				}
				r.at(r.now() + time.Minute)
				var got []names
				for _, c := range r.calls()[1:] {
					var n names
					for _, name := range c.desired.Changed {
						n = append(n, nameText(name))
					}
					got = append(got, n)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("got changed names that differ (-want +got):\n%s", diff)
				}
				var want []string
				for p := range r.loop.snapshot.All() {
					want = append(want, portText(p))
				}
				r.wantKernel(want...)
			})
		})
	}
}

// TestLoopEventsInTheBackoff neither shorten it nor lead to another sync.
func TestLoopEventsInTheBackoff(t *testing.T) {
	inBubble(t, 0, seldom, []outcome{failed(10 * ms)}, func(t *testing.T, r *rig) {
		r.at(0, with(listed(), add("a", 1)))
		r.at(5*ms, add("b", 1))
		r.at(50*ms, add("c", 1))
		r.at(60*ms, add("c", 2))
		r.at(time.Minute)
		calls := r.calls()
		if len(calls) != 2 || len(calls[1].desired.Changed) != 3 {
			t.Fatalf("got syncs %v, want the failed one and one for all three", calls)
		}
		if pause := calls[1].start - calls[0].end; pause < 100*ms || pause >= 125*ms {
			t.Errorf("got a pause of %v, want 100 to 125 ms", pause)
		}
	})
}

// TestLoopChecksAgain after a check that failed: nobody knows yet what the
// kernel has.
func TestLoopChecksAgain(t *testing.T) {
	inBubble(t, 0, 30*time.Second, []outcome{took(0), failed(0), failed(0)}, func(t *testing.T, r *rig) {
		r.at(0, with(listed(), add("a", 1)))
		r.at(45*time.Second, add("a", 2))
		calls := r.calls()
		var got []bool
		for _, c := range calls {
			got = append(got, c.desired.Verify)
		}
		if diff := cmp.Diff([]bool{false, true, true, true, false}, got); diff != "" {
			t.Errorf("got checks that differ in %v (-want +got):\n%s", calls, diff)
		}
	})
}

// TestLoopFirstSyncFails keeps that all ports are changed, and that removals
// are allowed only while all is known.
func TestLoopFirstSyncFails(t *testing.T) {
	inBubble(t, time.Second, seldom, []outcome{failed(0), failed(0)}, func(t *testing.T, r *rig) {
		r.at(0, with(listed(), services(service("a", "10.96.0.1", "1/TCP"), service("b", "10.96.0.1", "1/TCP"))))
		r.at(500*ms, incomplete())
		r.at(1500*ms, listed())
		r.at(time.Minute)
		r.want("0s a b failed", "1s a b keep failed", "2s a b")
	})
}

// TestLoopCancelledIsNotFailed does not count a sync that was told to stop.
func TestLoopCancelledIsNotFailed(t *testing.T) {
	inBubble(t, 0, seldom, []outcome{took(time.Hour)}, func(t *testing.T, r *rig) {
		r.at(0, with(listed(), add("a", 1)))
		r.at(time.Second)
		r.end()
		for name, want := range map[string]float64{"fairlead_sync_failures_total": 0, "fairlead_sync_consecutive_failures": 0} {
			if got := value(t, r.reg, name, model.IPv4.String()); got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
	})
}
