// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnOneCPU: what is started has one CPU, and who started it has all of its own again.
func TestOnOneCPU(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, within, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	if err := onOneCPU(func() error { return unix.SchedGetaffinity(0, &within) }); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil {
		t.Fatal(err)
	}
	if within.Count() != 1 || after != before {
		t.Errorf("CPUs: %d within and %d after, want 1 and %d", within.Count(), after.Count(), before.Count())
	}
}
