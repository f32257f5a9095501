// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fairlead/iptables/ruleset"
)

// savesLater is a kernel whose save command fails the first time.
type savesLater struct {
	ruleset.Exec
	failed bool
}

func (f *savesLater) Run(ctx context.Context, c ruleset.Command) error {
	if strings.HasSuffix(c.Name, "-save") && !f.failed {
		f.failed = true
		return errors.New("cannot read")
	}
	return f.Exec.Run(ctx, c)
}

// TestReadAhead: what was read ahead is what the first Apply compares with,
// unless that failed or was long ago.
func TestReadAhead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fails bool
		later time.Duration
		saves int
	}{
		{name: "at once", saves: 1},
		{name: "after some time", later: 20 * time.Second, saves: 1},
		{name: "after a long time", later: time.Minute, saves: 2},
		{name: "it failed", fails: true, saves: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.want(someServices())
				h.prune()
				if tt.fails {
					h.exec = &savesLater{Exec: h.kernel}
				}
				h.restart()
				h.want(someServices())
				before := h.kernel.Saves()
				h.engine.ReadAhead(t.Context())
				synctest.Wait()
				time.Sleep(tt.later)
				if got := h.restores(func() { h.prune() }); len(got) > 0 {
					t.Errorf("Apply() ran %d restores, want none:\n%s", len(got), strings.Join(got, ""))
				}
				if got := h.kernel.Saves() - before; got != tt.saves {
					t.Errorf("the rules were read %d times, want %d", got, tt.saves)
				}
				if h.auditor.listed != 1 {
					t.Errorf("the watcher was told of %d readings, want 1", h.auditor.listed)
				}
				h.apply(ruleset.Options{Prune: true, Verify: true})
				if got := h.kernel.Saves() - before; got != tt.saves+1 {
					t.Errorf("the rules were read %d times with Verify, want %d", got, tt.saves+1)
				}
			})
		})
	}
}

// TestSpool: what is written is read, whatever the sizes.
func TestSpool(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	text := make([]byte, 5<<20+123)
	for i := range text {
		text[i] = byte(rng.Uint32())
	}
	s := ruleset.NewSpool()
	for rest := text; len(rest) > 0; {
		n := min(len(rest), rng.IntN(3<<20))
		if got, err := s.Write(rest[:n]); got != n || err != nil {
			t.Fatalf("Write() = %d, %v, want %d", got, err, n)
		}
		rest = rest[n:]
	}
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("read %d bytes, %v, want the %d that were written", len(got), err, len(text))
	}
}
