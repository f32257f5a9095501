// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"fairlead/iptables/ruleset"
)

// overlap is an Exec that follows how restore commands run beside each other. One
// whose input is complete does its work only once another one waits for the end of
// its own, as long as wanted says that there is to be one.
type overlap struct {
	ruleset.Exec
	t      *testing.T
	wanted int

	mu      sync.Mutex
	changed *sync.Cond
	// running and waiting are how many run, and how many of these have read all
	// but their first COMMIT and what follows; most is of running.
	running, waiting, most int
	// complete is set while one has its whole input and has not ended.
	complete bool
	started  int
}

func newOverlap(t *testing.T, x ruleset.Exec, wanted int) *overlap {
	o := &overlap{Exec: x, t: t, wanted: wanted}
	o.changed = sync.NewCond(&o.mu)
	return o
}

// Run implements ruleset.Exec.
func (o *overlap) Run(ctx context.Context, c ruleset.Command) error {
	if !strings.HasSuffix(c.Name, "-restore") {
		return o.Exec.Run(ctx, c)
	}
	o.mu.Lock()
	o.started++
	o.running++
	o.most = max(o.most, o.running)
	last := o.started == o.wanted
	o.changed.Broadcast()
	o.mu.Unlock()
	defer o.note(func() { o.running-- })

	input := &untilCommit{r: c.Stdin, at: func() { o.note(func() { o.waiting++ }) }}
	text, err := io.ReadAll(input)
	o.note(func() { o.waiting-- })
	if err != nil {
		return err
	}
	o.mu.Lock()
	if o.complete {
		o.t.Errorf("restore %d has its whole input while another one does its work", o.started)
	}
	o.complete = true
	giveUp := time.AfterFunc(10*time.Second, func() {
		o.note(func() { o.t.Errorf("no restore has read its input after %d", o.started); o.wanted = 0 })
	})
	for !last && o.wanted > 0 && o.waiting == 0 {
		o.changed.Wait()
	}
	giveUp.Stop()
	o.mu.Unlock()
	defer o.note(func() { o.complete = false })
	c.Stdin = bytes.NewReader(text)
	return o.Exec.Run(ctx, c)
}

func (o *overlap) note(what func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	what()
	o.changed.Broadcast()
}

// untilCommit calls at once when all that comes before the first COMMIT has been
// read.
type untilCommit struct {
	r    io.Reader
	at   func()
	seen []byte
	told bool
}

func (u *untilCommit) Read(p []byte) (int, error) {
	if !u.told && len(u.seen) > 0 && u.seen[len(u.seen)-1] == '\n' {
		u.told = true // the engine hands over whole buffers: this one ends before COMMIT
		u.at()
	}
	n, err := u.r.Read(p)
	u.seen = append(u.seen, p[:n]...)
	return n, err
}

// TestRestoresOverlap: with the nft variant, a restore is read while the one before
// it commits, and commits after it has ended. The legacy command would wait for its
// lock, so there no two run at a time.
func TestRestoresOverlap(t *testing.T) {
	for _, v := range []ruleset.Variant{ruleset.NFT, ruleset.Legacy} {
		t.Run(string(v), func(t *testing.T) {
			run := func(x func(h *host) ruleset.Exec) int {
				h := newHost(t)
				h.variant = v
				h.exec = x(h)
				h.restart()
				h.engine.SetLimits(40, 40)
				h.want(manyServices(30, 4))
				n := len(h.restores(func() { h.prune() }))
				h.checkOurs(manyServices(30, 4))
				return n
			}
			all := run(func(h *host) ruleset.Exec { return h.kernel })
			if all < 5 {
				t.Fatalf("got %d restores, want some", all)
			}
			wanted, most := all, 2
			if v == ruleset.Legacy {
				wanted, most = 0, 1
			}
			var o *overlap
			if got := run(func(h *host) ruleset.Exec { o = newOverlap(t, h.kernel, wanted); return o }); got != all || o.most != most {
				t.Errorf("got %d restores, and up to %d at a time, want %d and %d", got, o.most, all, most)
			}
		})
	}
}

// TestRestoreFailsWhileTheNextIsRead: the next one never gets its COMMIT, whatever
// goes wrong with the one before, and all is made good later.
func TestRestoreFailsWhileTheNextIsRead(t *testing.T) {
	for n := range 8 {
		h := newHost(t)
		var o *overlap
		o = newOverlap(t, execFunc(func(ctx context.Context, c ruleset.Command) error {
			if strings.HasSuffix(c.Name, "-restore") && len(h.kernel.Restores()) == n {
				_, _ = io.Copy(io.Discard, c.Stdin)
				n = -1
				return &ruleset.CommandError{Name: c.Name, ExitCode: -1, Stderr: "killed"}
			}
			return h.kernel.Run(ctx, c)
		}), 0)
		h.exec = o
		h.restart()
		h.engine.SetLimits(40, 40)
		h.want(manyServices(30, 4))
		at := n
		if _, err := h.engine.Apply(t.Context(), ruleset.Options{Prune: true}); err == nil {
			t.Fatalf("Apply() = nil, want an error of restore %d", at)
		}
		if got := len(h.kernel.Restores()); got != at {
			t.Errorf("got %d restores after restore %d has failed, want none", got-at, at)
		}
		if o.running != 0 {
			t.Errorf("%d commands still run after Apply", o.running)
		}
		h.prune()
		h.checkOurs(manyServices(30, 4))
	}
}

type execFunc func(ctx context.Context, c ruleset.Command) error

func (f execFunc) Run(ctx context.Context, c ruleset.Command) error { return f(ctx, c) }
