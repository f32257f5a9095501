// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// feed stages services, of whose chains the engine gets what it can have early.
func (h *host) feed(s services) {
	var names []string
	var chains []ruleset.Chain
	shared, rest := map[ruleset.ChainKey]*ruleset.Chain{}, s.chains()
	for k, c := range rest {
		if c.Unit == "" {
			shared[k] = c
		} else {
			names, chains = append(names, k.Name), append(chains, *c)
		}
	}
	h.engine.Stage(shared)
	h.engine.Early(h.t.Context())
	h.engine.Feed(names, chains)
	for i, name := range names {
		rest[ruleset.ChainKey{Table: ruleset.NAT, Name: name}] = &chains[i]
	}
	h.engine.Stage(rest)
	h.staged = rest
}

// TestEarly: with the legacy variant, and where there is nothing of ours yet, the
// restore begins before all chains are staged. What it does is the same as ever.
func TestEarly(t *testing.T) {
	many := manyServices(30, 4)
	for _, tt := range []struct {
		name     string
		variant  ruleset.Variant
		prepare  func(h *host)
		change   func(h *host) // after the feeding
		early    bool          // a restore has begun by then
		restores int
		want     services
	}{
		{name: "nothing is there", variant: ruleset.Legacy, early: true, restores: 1, want: many},
		{name: "rules of others", variant: ruleset.Legacy, early: true, restores: 1, want: many,
			prepare: func(h *host) { h.edit("*nat\n:THEIRS - [0:0]\n-A OUTPUT -j THEIRS\nCOMMIT\n") }},
		{name: "something of ours", variant: ruleset.Legacy, restores: 1, want: many,
			prepare: func(h *host) { h.want(manyServices(2, 2)); h.prune() }},
		{name: "the nft variant", variant: ruleset.NFT, restores: 1, want: many},
		{name: "one goes again", variant: ruleset.Legacy, early: true, restores: 1, want: manyServices(29, 4),
			change: func(h *host) { h.want(manyServices(29, 4)) }},
		{name: "one changes again", variant: ruleset.Legacy, early: true, restores: 1, want: manyServices(30, 3),
			change: func(h *host) { h.want(manyServices(30, 3)) }},
		{name: "more come", variant: ruleset.Legacy, early: true, restores: 1, want: manyServices(40, 4),
			change: func(h *host) { h.want(manyServices(40, 4)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.variant = tt.variant
				if tt.prepare != nil {
					tt.prepare(h)
				}
				running := 0
				h.exec = execFunc(func(ctx context.Context, c ruleset.Command) error {
					if strings.HasSuffix(c.Name, "-restore") {
						running++
						if running == 1 && tt.early && !h.auditor.running {
							t.Error("the command starts before the watcher knows")
						}
					}
					return h.kernel.Run(ctx, c)
				})
				h.restart()
				h.engine.ReadAhead(t.Context())
				h.feed(many)
				if tt.change != nil {
					tt.change(h)
				}
				synctest.Wait()
				if got := running > 0; got != tt.early {
					t.Errorf("a restore has begun: %t, want %t", got, tt.early)
				}
				if got := h.restores(func() { h.prune() }); len(got) != tt.restores {
					t.Errorf("got %d restores, want %d", len(got), tt.restores)
				}
				h.checkOurs(tt.want)
				h.checkQuiet()
			})
		})
	}
}

// TestEarlyFails: a restore that was begun early fails as any other does.
func TestEarlyFails(t *testing.T) {
	for _, fault := range []fake.Fault{fake.FailBefore, fake.FailBetween, fake.FailAfter, fake.Busy} {
		h := newHost(t)
		h.variant = ruleset.Legacy
		h.restart()
		h.engine.ReadAhead(t.Context())
		h.feed(manyServices(30, 4))
		once := true
		h.kernel.Fault = func() fake.Fault {
			if once {
				once = false
				return fault
			}
			return fake.NoFault
		}
		_, err := h.engine.Apply(t.Context(), ruleset.Options{Prune: true})
		if fault == fake.Busy && err == nil {
			t.Error("Apply() = nil, want that the lock was not to be had")
		}
		h.prune()
		h.checkOurs(manyServices(30, 4))
		h.checkQuiet()
	}
}

// TestEarlyRefused: what the kernel refuses is found, and all else is done.
func TestEarlyRefused(t *testing.T) {
	h := newHost(t)
	h.variant = ruleset.Legacy
	h.kernel.Refuse = func(k ruleset.ChainKey, _ ruleset.Rule) bool { return strings.Contains(k.Name, "S007") }
	h.restart()
	h.engine.ReadAhead(t.Context())
	h.feed(manyServices(30, 4))
	res := h.prune()
	if len(res.Refused) != 1 || !strings.Contains(res.Refused[0].Unit, "S007") {
		t.Errorf("got refused %v, want the unit of S007", res.Refused)
	}
	have := chainsOf(h.dump())
	if i := slices.IndexFunc(have[natServices], func(r ruleset.Rule) bool { return strings.Contains(string(r), "S008") }); i < 0 {
		t.Error("S008 is not led to, whose neighbour is refused")
	}
}
