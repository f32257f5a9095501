// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime/debug"
	"testing"
)

func TestTuneGC(t *testing.T) {
	for _, tc := range []struct {
		name, gogc string
		want       int
	}{
		{"by itself", "", gcPercent},
		{"the environment has its way", "70", 70},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := debug.SetGCPercent(70)
			t.Cleanup(func() { debug.SetGCPercent(before) })
			t.Setenv("GOGC", tc.gogc)
			tuneGC()
			if got := debug.SetGCPercent(70); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}
