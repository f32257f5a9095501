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
