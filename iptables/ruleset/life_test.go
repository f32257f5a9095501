// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLife: a command hangs that has neither taken input nor printed for two minutes,
// and two seconds more for each MiB of input.
func TestLife(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name  string
		input string
		lives time.Duration
	}{
		{"no input", "", 2 * time.Minute},
		{"30 MiB of input", strings.Repeat("x", 30*mib), 3 * time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, l, cancel := withLife(t.Context())
				defer cancel()
				alive := func(span time.Duration) {
					t.Helper()
					time.Sleep(span - time.Second)
					if ctx.Err() != nil {
						t.Fatalf("taken to hang after %s", span-time.Second)
					}
				}
				if _, err := io.Copy(io.Discard, l.reader(strings.NewReader(tc.input))); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					alive(tc.lives)
					if _, err := l.writer(io.Discard).Write([]byte("x")); err != nil {
						t.Fatal(err)
					}
				}
				alive(tc.lives)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if !errors.Is(context.Cause(ctx), errHangs) {
					t.Errorf("ctx ends with %v after %s, want %v", context.Cause(ctx), tc.lives, errHangs)
				}
			})
		})
	}
}
