// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
)

// refuse makes the kernel refuse rules with any of the words in them.
func (h *host) refuse(words ...string) {
	h.kernel.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(string(r), w) })
	}
}

// names returns what a result says was refused, without the errors.
func names(res ruleset.Result) []string {
	var out []string
	for _, r := range res.Refused {
		if r.Err == nil {
			out = append(out, "no error for:")
		}
		if r.Unit != "" {
			out = append(out, r.Unit)
		} else {
			out = append(out, r.Chain.String()+" "+string(r.Rule))
		}
	}
	return out
}

func (h *host) checkRefused(res ruleset.Result, want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(want, names(res)); diff != "" {
		h.t.Errorf("Apply().Refused (-want +got):\n%s", diff)
	}
}

func bad(eps ...string) service {
	return service{"10.96.0.66", eps}
}

func TestRefusedUnitHarmsOnlyItself(t *testing.T) {
	for _, tt := range []struct {
		name   string
		old    services
		now    services
		refuse []string
		want   []string
	}{
		{"new among new", services{}, someServices().with("BAD", bad("10.66.0.1")), []string{"10.66.0.1"}, []string{"BAD"}},
		{"new among old", someServices(), someServices().with("BAD", bad("10.66.0.1")), []string{"10.66.0.1"}, []string{"BAD"}},
		{
			"two of many", services{}, manyServices(20, 3).with("BAD", bad("10.66.0.1")).with("BAD2", bad("10.66.0.2")),
			[]string{"10.66.0.1", "10.66.0.2"}, []string{"BAD", "BAD2"},
		},
		{"all of them", services{}, services{"BAD": bad("10.66.0.1"), "BAD2": bad("10.66.0.2")}, []string{"10.66.0"}, []string{"BAD", "BAD2"}},
		{"beside one that goes", someServices(), someServices().without("DNS").with("BAD", bad("10.66.0.1")), []string{"10.66.0.1"}, []string{"BAD"}},
		{
			"beside one that goes quiet", someServices(),
			someServices().with("DNS", service{"10.96.0.11", nil}).with("BAD", bad("10.66.0.1")), []string{"10.66.0.1"}, []string{"BAD"},
		},
	} {
		for _, limit := range []int{0, 10} {
			t.Run(tt.name, func(t *testing.T) {
				h := newHost(t)
				h.engine.SetLimits(limit, limit)
				h.want(tt.old)
				h.prune()
				h.refuse(tt.refuse...)
				h.want(tt.now)
				h.checkRefused(h.prune(), tt.want...)
				rest := tt.now
				for _, name := range tt.want {
					rest = rest.without(name)
				}
				h.checkOurs(rest)
				// What is known to be refused costs nothing again.
				var res ruleset.Result
				if got := h.restores(func() { res = h.prune() }); len(got) > 0 {
					t.Errorf("another Apply() ran %d restores, want none", len(got))
				}
				h.checkRefused(res, tt.want...)
			})
		}
	}
}

// TestRefusedChangeKeepsTheOldUnit: while the kernel refuses what a unit is to
// become, it stays what it was, with all that it leads to.
func TestRefusedChangeKeepsTheOldUnit(t *testing.T) {
	for _, tt := range []struct {
		name string
		now  service
	}{
		{"an endpoint more", bad("10.66.0.1", "10.66.0.2", "10.66.0.9")},
		{"an endpoint replaced", bad("10.66.0.1", "10.66.0.9")},
		{"all endpoints replaced", bad("10.66.0.9")},
		{"moved and replaced", service{"10.96.0.99", []string{"10.66.0.9"}}},
	} {
		for _, verify := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				h := newHost(t)
				old := someServices().with("BAD", bad("10.66.0.1", "10.66.0.2"))
				h.want(old)
				h.prune()
				before := chainsOf(h.dump())
				h.refuse("10.66.0.9:80")
				h.want(old.with("BAD", tt.now).with("NEW", service{"10.96.0.13", []string{"10.244.0.5"}}).without("DNS"))
				o := ruleset.Options{Prune: true, Verify: verify}
				for range 2 {
					h.checkRefused(h.apply(o), "BAD")
				}
				have := chainsOf(h.dump())
				for k := range reachable(before, svcKey("BAD")) {
					if diff := cmp.Diff(before[k], have[k]); diff != "" {
						t.Errorf("%s (-before +after):\n%s", k, diff)
					}
				}
				if _, ok := have[svcKey("NEW")]; !ok {
					t.Errorf("NEW is not there")
				}
				if _, ok := have[svcKey("DNS")]; ok {
					t.Errorf("DNS is still there")
				}
				// The next change of the unit is one that the kernel takes.
				later := old.with("BAD", bad("10.66.0.3"))
				h.want(later)
				h.checkRefused(h.prune())
				h.checkOurs(later)
			})
		}
	}
}

// TestRefusedUnitGoes: with its service, the unit and all that was kept of it
// goes.
func TestRefusedUnitGoes(t *testing.T) {
	h := newHost(t)
	h.want(someServices().with("BAD", bad("10.66.0.1")))
	h.prune()
	h.refuse("10.66.0.9")
	h.want(someServices().with("BAD", bad("10.66.0.9")))
	h.checkRefused(h.prune(), "BAD")
	h.want(someServices())
	h.checkRefused(h.prune())
	h.checkOurs(someServices())
	h.checkQuiet()
}

// TestRefusedUnitLaterAccepted: staged anew, or when all is verified.
func TestRefusedUnitLaterAccepted(t *testing.T) {
	now := someServices().with("BAD", bad("10.66.0.9"))
	setup := func(t *testing.T) *host {
		h := newHost(t)
		h.want(someServices())
		h.prune()
		h.refuse("10.66.0.9")
		h.want(now)
		h.checkRefused(h.prune(), "BAD")
		h.kernel.Refuse = nil
		return h
	}
	t.Run("on Verify", func(t *testing.T) {
		h := setup(t)
		h.checkRefused(h.apply(ruleset.Options{Prune: true, Verify: true}))
		h.checkOurs(now)
	})
	t.Run("not before", func(t *testing.T) {
		h := setup(t)
		h.checkRefused(h.prune(), "BAD")
		h.checkOurs(someServices())
	})
	t.Run("staged anew as it is", func(t *testing.T) {
		h := setup(t)
		h.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{
			svcKey("BAD"):              now.chains()[svcKey("BAD")],
			sepKey("BAD", "10.66.0.9"): now.chains()[sepKey("BAD", "10.66.0.9")],
		})
		h.checkRefused(h.prune())
		h.checkOurs(now)
	})
	t.Run("staged anew with more", func(t *testing.T) {
		h := setup(t)
		later := now.with("BAD", bad("10.66.0.1", "10.66.0.9"))
		h.want(later)
		h.checkRefused(h.prune())
		h.checkOurs(later)
	})
}

// TestRefusedRuleOfSharedChain: of a chain that many units have rules in, only
// the rule is left out.
func TestRefusedRuleOfSharedChain(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	now := someServices().with("BAD", bad()).with("NEW", service{"10.96.0.13", []string{"10.244.0.5"}}).with("IDLE2", service{"10.96.0.14", nil})
	h.refuse("10.96.0.66")
	h.want(now)
	const rule = "filter/KUBE-SERVICES -d 10.96.0.66/32 -j REJECT"
	h.checkRefused(h.prune(), rule)
	h.checkOurs(now.without("BAD"))
	if got := h.restores(func() { h.checkRefused(h.prune(), rule) }); len(got) > 0 {
		t.Errorf("another Apply() ran %d restores, want none", len(got))
	}
	h.kernel.Refuse = nil
	h.checkRefused(h.apply(ruleset.Options{Prune: true, Verify: true}))
	h.checkOurs(now)
}

// TestRefusedRuleGoes: what is not wanted any more is not refused either.
func TestRefusedRuleGoes(t *testing.T) {
	h := newHost(t)
	h.refuse("10.96.0.66")
	h.want(someServices().with("BAD", bad()))
	h.checkRefused(h.prune(), "filter/KUBE-SERVICES -d 10.96.0.66/32 -j REJECT")
	h.want(someServices())
	h.checkRefused(h.prune())
	h.checkOurs(someServices())
}

// TestRefusedUnitInFilter: units are isolated in every table.
func TestRefusedUnitInFilter(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{
		forward: {Unit: "GOOD", Rules: []ruleset.Rule{"-m mark --mark 0x4000/0x4000 -j ACCEPT"}},
		{Table: ruleset.Mangle, Name: "KUBE-PROXY-CANARY"}: {Unit: "BAD", Rules: []ruleset.Rule{"-m bad -j ACCEPT"}},
	})
	h.refuse("-m bad")
	h.checkRefused(h.prune(), "BAD")
	h.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{
		forward: {Unit: "GOOD", Rules: []ruleset.Rule{"-m bad2 -j ACCEPT"}},
		{Table: ruleset.Mangle, Name: "KUBE-PROXY-CANARY"}: nil,
	})
	h.refuse("-m bad2")
	h.checkRefused(h.prune(), "GOOD")
	h.checkOurs(someServices())
}

// TestDriftWhileAUnitIsRefused: what others break is mended, the refused unit
// keeps what it has.
func TestDriftWhileAUnitIsRefused(t *testing.T) {
	old := someServices().with("BAD", bad("10.66.0.1"))
	h := newHost(t)
	h.want(old)
	h.prune()
	before, _ := split(h.dump())
	h.refuse("10.66.0.9:80")
	h.want(old.with("BAD", bad("10.66.0.9")))
	h.checkRefused(h.prune(), "BAD")
	h.edit("*nat\n:KUBE-SVC-WEB - [0:0]\n-D OUTPUT -m comment --comment \"test portals\" -j KUBE-SERVICES\nCOMMIT\n")
	h.checkRefused(h.apply(ruleset.Options{Prune: true, Verify: true}), "BAD")
	after, _ := split(h.dump())
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("rules of ours (-before +after):\n%s", diff)
	}
}

// TestRefusedWithoutPrune: while nothing may be removed, too, only the refused
// unit is left out.
func TestRefusedWithoutPrune(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	h.refuse("10.66.0.9")
	h.want(services{"BAD": bad("10.66.0.9"), "NEW": {"10.96.0.13", []string{"10.244.0.5"}}})
	h.checkRefused(h.apply(ruleset.Options{}), "BAD")
	have := chainsOf(h.dump())
	for _, k := range []ruleset.ChainKey{svcKey("WEB"), svcKey("DNS"), svcKey("NEW")} {
		if _, ok := have[k]; !ok {
			t.Errorf("%s is not there", k)
		}
	}
	h.checkRefused(h.prune(), "BAD")
	h.checkOurs(services{"NEW": {"10.96.0.13", []string{"10.244.0.5"}}})
}
