// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestLookout: it is known at the first question who does something; after that it is
// looked again when asked to, a hundredth of the time at most.
func TestLookout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		l := lookAhead(t.Context(), func(context.Context) string {
			looks++
			time.Sleep(300 * time.Millisecond)
			return []string{"", "first", "second", "third"}[looks]
		})
		for _, step := range []struct {
			after time.Duration
			again bool
			want  string
		}{
			{0, true, "first"}, {time.Hour, false, "first"}, {0, true, "second"}, {29 * time.Second, true, "second"}, {2 * time.Second, true, "third"},
		} {
			time.Sleep(step.after)
			if got := l.ask(t.Context(), step.again); got != step.want {
				t.Errorf("after %v: %q, want %q", step.after, got, step.want)
			}
		}
	})
}
