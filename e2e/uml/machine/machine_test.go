// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnOneCPU: what is started has one CPU, each in turn, and who started it has all of
// its own again.
func TestOnOneCPU(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after, used unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for nth := range before.Count() + 1 { // the last one has no CPU to itself
		var within unix.CPUSet
		if err := onOneCPU(nth, func() error { return unix.SchedGetaffinity(0, &within) }); err != nil {
			t.Fatal(err)
		}
		if within.Count() != 1 {
			t.Errorf("%d CPUs, want 1", within.Count())
		}
		for i := range used {
			used[i] |= within[i]
		}
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil {
		t.Fatal(err)
	}
	if used != before || after != before {
		t.Errorf("CPUs: %v were used and %v are allowed after, want %v", used, after, before)
	}
}
