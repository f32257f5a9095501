// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"fairlead/proxier"
)

// gogc returns the percentage that is in effect.
func gogc() int {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

func TestSetGCPercent(t *testing.T) {
	for _, tc := range []struct {
		name, gogc string
		want       int
	}{
		{"by itself", "", 25},
		{"the environment has its way", "70", 70},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := debug.SetGCPercent(70)
			t.Cleanup(func() { debug.SetGCPercent(before) })
			t.Setenv("GOGC", tc.gogc)
			setGCPercent(25)
			if got := gogc(); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

// TestPercentFor: until the first sync is over, what is in use and the garbage have
// 400 MiB, as long as garbage is not to be collected all the time.
func TestPercentFor(t *testing.T) {
	for _, tc := range []struct {
		name string
		live uint64
		want int
	}{
		{"nothing has been collected yet", 0, 100},
		{"little", 10 << 20, 100},
		{"as much again", 200 << 20, 100},
		{"half as much", 266 << 20, 50},
		{"less than is left", 390 << 20, 10},
		{"more than all", 900 << 20, 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := percentFor(tc.live); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

// TestFootprintAdjusts: each collection adjusts the percentage anew, until the end of
// the first sync.
func TestFootprintAdjusts(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(firstGCPercent)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	f := &footprint{}
	await := func(want int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); gogc() != want; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("got %d %%, want %d", gogc(), want)
			}
			runtime.GC()
		}
	}
	f.adjust()
	debug.SetGCPercent(70)
	await(firstGCPercent)
	f.shrink()
	await(gcPercent)
	debug.SetGCPercent(70)
	for range 3 {
		runtime.GC()
	}
	await(70)
}

// TestFootprintShrinksAfterAllFamilies: one family may have nothing to do, while
// the other's first sync allocates most.
func TestFootprintShrinksAfterAllFamilies(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(firstGCPercent)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	f := &footprint{}
	one, other := f.follower(), f.follower()
	follow := func(w proxier.Follower) {
		if err := w.Follow(t.Context(), proxier.Desired{}); err != nil {
			t.Fatal(err)
		}
	}
	follow(one)
	follow(one)
	if f.pending.Load() != 1 || gogc() != firstGCPercent {
		t.Fatalf("%d families are pending, at %d %%, after one has synced", f.pending.Load(), gogc())
	}
	follow(other)
	for end := time.Now().Add(time.Minute); gogc() != gcPercent; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("got %d %% after all have synced, want %d", gogc(), gcPercent)
		}
	}
}
