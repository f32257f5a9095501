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

// TestReading: the rules of the chains that are to be kept are told, whosoever they
// are, and what was read stays whole.
func TestReading(t *testing.T) {
	const text = "*nat\n:POSTROUTING ACCEPT [0:0]\n:THEIRS - [0:0]\n:KUBE-SEP-A - [0:0]\n-A POSTROUTING -j THEIRS\n-A THEIRS -j MASQUERADE\n-A KUBE-SEP-A -j RETURN\nCOMMIT\n"
	theirs, other := ruleset.ChainKey{Table: ruleset.NAT, Name: "THEIRS"}, ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-SEP-A"}
	keep := func(k ruleset.ChainKey) bool { return k == theirs }
	for _, tt := range []struct {
		name  string
		keep  func(ruleset.ChainKey) bool
		fails bool
		later time.Duration
		ok    bool
	}{
		{name: "new", keep: keep, ok: true},
		{name: "long ago", keep: keep, later: time.Hour},
		{name: "failed", keep: keep, fails: true},
		{name: "nothing is to be kept"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.edit(text)
				h.exec = h.kernel
				if tt.fails {
					h.exec = &savesLater{Exec: h.kernel}
				}
				r := ruleset.Read(t.Context(), h.exec, ruleset.Commands{Save: "iptables-save"}, tt.keep)
				time.Sleep(tt.later)
				got, ok := r.Chain(theirs)
				if ok != tt.ok || ok && (len(got) != 1 || got[0] != "-j MASQUERADE") {
					t.Errorf("Chain() = %q, %t, want the rule that masquerades: %t", got, ok, tt.ok)
				}
				if got, _ := r.Chain(other); len(got) > 0 {
					t.Errorf("got %q of a chain that is not to be kept", got)
				}
				n := 0
				if ok := r.Each(ruleset.NAT, func(ruleset.Rule) { n++ }); ok != tt.ok || ok && n != 1 {
					t.Errorf("Each() = %t with %d rules, want %t with 1", ok, n, tt.ok)
				}
				h.want(someServices())
				h.engine.Use(r)
				h.prune()
				h.checkOurs(someServices())
			})
		})
	}
}
