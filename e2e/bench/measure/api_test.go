// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"errors"
	"testing"
	"time"

	"fairlead/e2e/bench/report"
	"fairlead/e2e/lab"
)

// TestKernelAPIFloor: a real API server tells of each change, and what was before is
// there afterwards.
func TestKernelAPIFloor(t *testing.T) {
	if err := lab.Supported(t.Context()); err != nil {
		t.Skip(err)
	}
	rig, err := NewRig(t.Context(), t.TempDir(), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := rig.Close(); err != nil {
			t.Error(err)
		}
	}()
	err = rig.Load(t.Context(), 2, nil)
	cfg := Config{Settings: report.Settings{Samples: 2}, Log: t.Logf}
	for range 2 {
		start := time.Now()
		f, e := rig.apiFloor(t.Context(), cfg)
		if err = errors.Join(err, e); err != nil {
			t.Fatal(err)
		}
		for name, d := range map[string]*report.Dist{"added": f.AddedMS, "removed": f.RemovedMS} {
			if d == nil || d.N != 2 || d.P50 <= 0 || d.P99 > float64(time.Since(start).Milliseconds()) {
				t.Errorf("%s: got %+v, want two figures", name, d)
			}
		}
	}
}
