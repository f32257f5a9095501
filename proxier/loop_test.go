// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

const (
	ms = time.Millisecond
	// seldom is a SyncPeriod that does not get in the way.
	seldom = 1000 * time.Hour
)

// event is a step of a source at a time.
type event struct {
	at      time.Duration
	changes model.Changes
}

func TestLoopTiming(t *testing.T) {
	for _, tc := range []struct {
		name            string
		minSync, period time.Duration
		plan            []outcome
		events          []event
		until           time.Duration
		want            []string
	}{
		{
			name:   "at once when idle",
			events: []event{{0, listed()}, {0, add("a", 1)}, {7 * ms, add("b", 1)}, {8 * ms, add("c", 1)}, {time.Hour, add("a", 2)}},
			want:   []string{"0s -", "0s a", "7ms b", "8ms c", "1h0m0s a"},
		},
		{
			name:   "nothing before both kinds are listed",
			events: []event{{0, add("a", 1)}, {time.Second, model.Changes{Status: &model.SourceStatus{Complete: true}}}, {100 * time.Hour, listed()}},
			want:   []string{"100h0m0s a"},
		},
		{
			name:   "listed, and there is nothing",
			events: []event{{time.Second, listed()}},
			want:   []string{"1s -"},
		},
		{
			name:   "what arrives during a sync and in the rest is done together",
			plan:   []outcome{took(0), took(200 * ms)},
			events: []event{{0, listed()}, {time.Second, add("a", 1)}, {1050 * ms, add("b", 1)}, {1150 * ms, add("c", 1)}, {1300 * ms, add("b", 2)}},
			want:   []string{"0s -", "1s a", "1.4s b c"},
		},
		{
			name:   "after the rest at once",
			plan:   []outcome{took(0), took(200 * ms)},
			events: []event{{0, listed()}, {time.Second, add("a", 1)}, {1401 * ms, add("b", 1)}},
			want:   []string{"0s -", "1s a", "1.401s b"},
		},
		{
			name: "least time between starts", minSync: time.Second,
			plan:   []outcome{took(0), took(300 * ms), took(700 * ms)},
			events: []event{{0, listed()}, {100 * ms, add("a", 1)}, {1200 * ms, add("b", 1)}, {3200 * ms, add("c", 1)}, {9 * time.Second, add("d", 1)}},
			// 300 ms is within the second; 700 ms needs a rest of 700 ms.
			want: []string{"0s -", "1s a", "2s b", "4.8s c", "9s d"},
		},
		{
			name: "compared with the kernel periodically", period: 30 * time.Second, until: 95 * time.Second,
			events: []event{{0, listed()}, {31 * time.Second, add("a", 1)}},
			want:   []string{"0s -", "30s - verify", "31s a", "1m0s - verify", "1m30s - verify"},
		},
		{
			name: "the period starts with the first sync", period: 30 * time.Second, until: 41 * time.Second,
			events: []event{{10 * time.Second, listed()}},
			want:   []string{"10s -", "40s - verify"},
		},
		{
			name: "a check that is due during a sync is done once, with what waits", period: 30 * time.Second, until: 300 * time.Second,
			plan:   []outcome{took(0), took(100 * time.Second)},
			events: []event{{0, listed()}, {time.Second, add("a", 1)}, {2 * time.Second, add("b", 1)}},
			want:   []string{"0s -", "1s a", "3m21s b verify", "3m30s - verify", "4m0s - verify", "4m30s - verify", "5m0s - verify"},
		},
		{
			name: "a check delays an event by no more than itself", period: 30 * time.Second, until: 59 * time.Second,
			plan:   []outcome{took(0), took(3 * time.Second)},
			events: []event{{0, listed()}, {31 * time.Second, add("a", 1)}},
			want:   []string{"0s -", "30s - verify", "33s a"},
		},
		{
			name:   "and so does the first sync",
			plan:   []outcome{took(5 * time.Second)},
			events: []event{{0, with(listed(), add("a", 1))}, {time.Second, add("b", 1)}},
			want:   []string{"0s a", "5s b"},
		},
		{
			name:   "one that fails is no first sync",
			plan:   []outcome{failed(5 * time.Second), took(5 * time.Second)},
			events: []event{{0, with(listed(), add("a", 1))}, {time.Second, add("b", 1)}, {11 * time.Second, add("c", 1)}},
			want:   []string{"0s a failed", "10s a b", "15s c"},
		},
		{
			name:   "what comes and goes in between is no change",
			plan:   []outcome{took(0), took(100 * ms)},
			events: []event{{0, with(listed(), add("a", 1))}, {time.Second, add("b", 1)}, {1050 * ms, add("a", 2)}, {1060 * ms, add("a", 1)}, {1070 * ms, add("c", 1)}, {1080 * ms, services("-c")}},
			want:   []string{"0s a", "1s b", "1.2s -"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.period == 0 {
				tc.period = seldom
			}
			inBubble(t, tc.minSync, tc.period, tc.plan, func(t *testing.T, r *rig) {
				for _, e := range tc.events {
					r.at(e.at, e.changes)
				}
				if tc.until == 0 {
					tc.until = r.now() + time.Minute
				}
				r.at(tc.until)
				r.want(tc.want...)
			})
		})
	}
}

// TestLoopPrunesWhileComplete tells the mode at once whether it may remove.
func TestLoopPrunesWhileComplete(t *testing.T) {
	inBubble(t, 0, seldom, nil, func(t *testing.T, r *rig) {
		r.at(0, with(incomplete(), add("a", 1)))
		r.at(1*time.Second, services("-a"))
		r.at(2*time.Second, listed())
		r.at(3*time.Second, listed()) // as it was
		r.at(4*time.Second, add("b", 1))
		r.at(5*time.Second, incomplete())
		r.want("0s a keep", "1s a keep", "2s -", "4s b", "5s - keep")
	})
}

// TestLoopChecksInAStorm has an event in every rest; a check comes all the same,
// and events are not delayed by it.
func TestLoopChecksInAStorm(t *testing.T) {
	inBubble(t, 0, 30*time.Second, nil, func(t *testing.T, r *rig) {
		r.mode.setPlan(func(int) outcome { return took(20 * ms) })
		for i := range 12_000 {
			r.at(time.Duration(i)*10*ms, with(listed(), add("a", i+1)))
		}
		checks := 0
		for i, c := range r.calls() {
			if due := time.Duration(checks+1) * 30 * time.Second; c.desired.Verify {
				checks++
				if c.start < due || c.start > due+80*ms {
					t.Errorf("got check %d at %v, want it within 80ms of %v", checks, c.start, due)
				}
			}
			want := time.Duration(i) * 20 * ms // with rests of 0, 40, 60, 60, … ms
			if i > 1 {
				want = 80*ms + time.Duration(i-2)*80*ms
			}
			if c.start != want || len(c.desired.Changed) != 1 {
				t.Fatalf("got sync %v, want one of a at %v", c, want)
			}
		}
		if checks != 3 {
			t.Errorf("got %d checks in 2 min less 10 ms, want 3", checks)
		}
	})
}

// TestLoopStops ends the context in every state; Run returns nil at once, and
// the mode is not called again.
func TestLoopStops(t *testing.T) {
	for _, tc := range []struct {
		name    string
		minSync time.Duration
		plan    []outcome
		events  []event
		stop    time.Duration
		want    time.Duration // stop if zero
		syncs   int
	}{
		{name: "before anything is listed", stop: time.Second},
		{name: "idle", events: []event{{0, listed()}}, stop: time.Minute, syncs: 1},
		{name: "in the rest", minSync: time.Hour, events: []event{{0, listed()}}, stop: time.Minute, syncs: 1},
		{name: "in the rest with work", minSync: time.Hour, events: []event{{0, listed()}, {time.Second, add("a", 1)}}, stop: time.Minute, syncs: 1},
		{name: "in the backoff", plan: []outcome{failed(0)}, events: []event{{0, listed()}}, stop: 50 * ms, syncs: 1},
		{name: "in a sync", plan: []outcome{took(time.Hour)}, events: []event{{0, listed()}, {time.Second, add("a", 1)}}, stop: time.Minute, syncs: 1},
		{name: "in a sync that takes its time", plan: []outcome{{takes: time.Hour, deaf: true}}, stop: time.Minute, want: time.Hour,
			events: []event{{0, listed()}, {time.Second, add("a", 1)}}, syncs: 1},
		{name: "in a sync that takes its time and fails", plan: []outcome{{takes: time.Hour, deaf: true, err: errRefused}}, stop: time.Minute, want: time.Hour,
			events: []event{{0, listed()}, {time.Second, add("a", 1)}}, syncs: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.want == 0 {
				tc.want = tc.stop
			}
			for range 20 { // the loop must not choose
				inBubble(t, tc.minSync, seldom, tc.plan, func(t *testing.T, r *rig) {
					for _, e := range tc.events {
						r.at(e.at, e.changes)
					}
					r.at(tc.stop)
					r.end()
					if r.now() != tc.want {
						t.Errorf("got the end at %v, want %v", r.now(), tc.want)
					}
					if got := r.calls(); len(got) != tc.syncs {
						t.Fatalf("got syncs %v, want %d", got, tc.syncs)
					}
				})
			}
		})
	}
}

// TestLoopStoppedBeforeItStarts must not sync, although there is work.
func TestLoopStoppedBeforeItStarts(t *testing.T) {
	for range 50 {
		inBubble(t, 0, seldom, nil, func(t *testing.T, r *rig) {
			r.end()
			r.tracker.Update(with(listed(), add("a", 1)))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := r.loop.Run(ctx); err != nil {
				t.Errorf("Run: got %v, want nil", err)
			}
			if got := r.calls(); len(got) > 0 {
				t.Fatalf("got syncs %v, want none", got)
			}
		})
	}
}

// TestLoopHealth has a sync that hangs: what is queued meanwhile is never
// reported as synced, and when it was read is what is reported afterwards.
func TestLoopHealth(t *testing.T) {
	inBubble(t, 0, seldom, []outcome{took(0), took(90 * time.Second), failed(time.Second)}, func(t *testing.T, r *rig) {
		check := func(queued, synced []time.Duration) {
			t.Helper()
			gotQueued, gotSynced := r.health.told(model.IPv4)
			if diff := cmp.Diff([][]time.Duration{queued, synced}, [][]time.Duration{gotQueued, gotSynced}); diff != "" {
				t.Errorf("at %v: got queued, synced times that differ (-want +got):\n%s", r.now(), diff)
			}
		}
		s := func(seconds ...float64) (out []time.Duration) {
			for _, s := range seconds {
				out = append(out, time.Duration(s*float64(time.Second)))
			}
			return out
		}
		r.at(0, add("a", 1))
		check(nil, nil) // not before there is something to rely on
		r.at(1*time.Second, listed())
		check(s(1), s(1))
		r.at(10*time.Second, add("b", 1))
		r.at(20*time.Second, add("c", 1))
		r.at(99*time.Second, listed())
		check(s(1, 10, 20), s(1)) // the sync of 10 s hangs
		r.at(101 * time.Second)
		check(s(1, 10, 20), s(1, 10)) // 20 still waits, for the rest
		r.at(190*time.Second + 500*ms)
		check(s(1, 10, 20), s(1, 10)) // and during a sync that fails
		r.at(200 * time.Second)
		calls := r.calls()
		check(s(1, 10, 20), append(s(1, 10), calls[len(calls)-1].start))
		if len(calls) != 4 {
			t.Errorf("got syncs %v, want 4", calls)
		}
	})
}

// TestSettle: what a mode has left for later is asked for after a pause, unless a
// change has made it unnecessary before, and again if that fails.
func TestSettle(t *testing.T) {
	later := outcome{report: Report{Unsettled: 1}}
	failing := later
	failing.err = errRefused
	for _, tt := range []struct {
		name string
		plan []outcome
		want []string
	}{
		{"nothing is left", nil, []string{"0s a", "2s b"}},
		{"after a pause", []outcome{later}, []string{"0s a", "2s b"}},
		{"the pause starts with the first", []outcome{later, later}, []string{"0s a", "2s b", "5s - settle"}},
		{"once more", []outcome{later, later, later}, []string{"0s a", "2s b", "5s - settle", "10s - settle"}},
		{"until it works", []outcome{later, later, failing}, []string{"0s a", "2s b", "5s - settle failed", "5.1s - settle"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, 0, seldom, tt.plan, func(t *testing.T, r *rig) {
				r.at(0, with(add("a", 1), listed()))
				r.at(2*time.Second, add("b", 1))
				r.at(time.Minute)
				var got []string
				for _, c := range r.calls() {
					c.start = c.start.Truncate(100 * ms) // without the jitter
					got = append(got, c.String())
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("got syncs that differ (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestForeign: what others change is looked at at once, but no more than once a
// second, and together with what else is to be done.
func TestForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		foreign := make(chan struct{}, 1)
		r := newRig(t, 0, seldom, []outcome{took(0), took(0), took(0), took(0), took(100 * ms)})
		r.loop.Foreign = foreign
		r.start()
		defer r.end()
		tell := func() {
			select {
			case foreign <- struct{}{}:
			default: // there is a token already
			}
		}
		r.at(0, with(add("a", 1), listed()))
		for _, d := range []time.Duration{10 * time.Second, 10*time.Second + 200*ms, 10*time.Second + 400*ms, 20 * time.Second} {
			r.at(d)
			tell()
		}
		r.at(30*time.Second, add("b", 1))
		r.at(30*time.Second+50*ms, add("c", 1)) // both during a sync
		tell()
		r.at(time.Minute)
		r.want("0s a", "10s - verify", "10.5s - verify", "20s - verify", "30s b", "30.2s c verify")
	})
}

// TestLoopsAreIndependent has one family whose mode hangs, and one that works.
func TestLoopsAreIndependent(t *testing.T) {
	inBubble(t, 0, seldom, []outcome{took(time.Hour)}, func(t *testing.T, r *rig) {
		other, cfg := newFakeMode(), r.loop.LoopConfig
		cfg.Family, cfg.Mode = model.IPv6, other
		stopped := make(chan error, 1)
		ctx, stop := context.WithCancel(t.Context())
		go func() { stopped <- NewLoop(cfg).Run(ctx) }()
		r.at(0, listed())
		for i := range 5 {
			r.at(time.Duration(i+1)*time.Second, services(service(fmt.Sprint("a", i), "fd00::1 10.96.0.1", "80/TCP")))
		}
		synctest.Wait()
		other.mu.Lock()
		if len(other.calls) != 6 || len(other.ports) != 5 {
			t.Errorf("got syncs %v of IPv6, want 6", other.calls)
		}
		other.mu.Unlock()
		if queued, synced := r.health.told(model.IPv4); len(queued) != 6 || len(synced) != 0 {
			t.Errorf("got IPv4 queued at %v and synced at %v, want 6 times and never", queued, synced)
		}
		r.want()
		r.at(2 * time.Hour)
		r.want("0s -", "1h0m0s a0 a1 a2 a3 a4")
		stop()
		if err := <-stopped; err != nil {
			t.Errorf("Run of IPv6: got %v, want nil", err)
		}
	})
}
