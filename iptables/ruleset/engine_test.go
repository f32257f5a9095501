// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

func TestApplyWritesAndThenRests(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	var res ruleset.Result
	if got := h.restores(func() { res = h.prune() }); len(got) != 1 {
		t.Fatalf("Apply() ran %d restores, want 1", len(got))
	}
	want := map[ruleset.Table]int{ruleset.NAT: 16, ruleset.Filter: 5}
	if diff := cmp.Diff(want, res.Written); diff != "" {
		t.Errorf("Apply().Written (-want +got):\n%s", diff)
	}
	for table, n := range want {
		if got := h.engine.Rules(table); got != n {
			t.Errorf("Rules(%s) = %d, want %d", table, got, n)
		}
	}
	if len(res.Drift)+len(res.Refused)+res.Failures > 0 {
		t.Errorf("Apply() = %+v, want no drift, refusal or failure", res)
	}
	h.checkQuiet()
}

func TestAdoption(t *testing.T) {
	h := newHost(t)
	h.edit(othersFilter)
	h.edit(othersNAT)
	h.want(someServices())
	h.prune()
	h.edit(othersPin)
	h.restart()
	h.want(someServices())
	for _, what := range []string{"first", "second"} {
		if got := h.restores(func() { h.prune() }); len(got) != 0 {
			t.Errorf("%s Apply() after a restart ran %d restores, want none:\n%s", what, len(got), strings.Join(got, ""))
		}
	}
	saves := h.kernel.Saves()
	if h.prune(); h.kernel.Saves() != saves {
		t.Errorf("Apply() without Verify read the rules again")
	}
}

func TestOnlyTheDifferenceIsWritten(t *testing.T) {
	h := newHost(t)
	s := someServices()
	h.want(s)
	h.prune()
	h.want(s.with("WEB", service{"10.96.0.10", []string{"10.244.0.1", "10.244.0.9"}}))
	got := h.restores(func() { h.prune() })
	want := []string{`*nat
:KUBE-SEP-WEB-10.244.0.2 - [0:0]
:KUBE-SEP-WEB-10.244.0.9 - [0:0]
:KUBE-SVC-WEB - [0:0]
-A KUBE-SEP-WEB-10.244.0.9 -s 10.244.0.9/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB-10.244.0.9 -p tcp -m tcp -j DNAT --to-destination 10.244.0.9:80
-A KUBE-SVC-WEB ! -s 10.244.0.0/16 -d 10.96.0.10/32 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -m comment --comment "to 10.244.0.1" -j KUBE-SEP-WEB-10.244.0.1
-A KUBE-SVC-WEB -m comment --comment "to 10.244.0.9" -j KUBE-SEP-WEB-10.244.0.9
-X KUBE-SEP-WEB-10.244.0.2
COMMIT
`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("restores (-want +got):\n%s", diff)
	}
}

func TestJumps(t *testing.T) {
	const (
		toForward  = `-m comment --comment "test portals" -j KUBE-FORWARD`
		toServices = `-m comment --comment "test portals" -j KUBE-SERVICES`
	)
	for _, tt := range []struct {
		name string
		// before is what FORWARD of the filter table holds, with our chains there.
		before, want []ruleset.Rule
	}{
		{"all missing: on top, in order", []ruleset.Rule{"-j DOCKER"}, []ruleset.Rule{toForward, toServices, "-j DOCKER"}},
		{"first missing: on top", []ruleset.Rule{"-j DOCKER", toServices}, []ruleset.Rule{toForward, "-j DOCKER", toServices}},
		{"last missing: on top, the other left in place", []ruleset.Rule{"-j DOCKER", toForward}, []ruleset.Rule{toServices, "-j DOCKER", toForward}},
		{"all there: left in place, whatever their order", []ruleset.Rule{toServices, "-j DOCKER", toForward}, []ruleset.Rule{toServices, "-j DOCKER", toForward}},
		{"surplus copy removed", []ruleset.Rule{toForward, toServices, "-j DOCKER", toForward, toForward}, []ruleset.Rule{toServices, "-j DOCKER", toForward}},
		{
			"an older form of a jump, known by its comment, is replaced",
			[]ruleset.Rule{`-i eth0 -m comment --comment "test portals" -j KUBE-SERVICES`, "-j DOCKER"}, []ruleset.Rule{toForward, toServices, "-j DOCKER"},
		},
		{
			"an admin's rules to chains of ours stay",
			[]ruleset.Rule{"-m comment --comment old -j KUBE-SERVICES", "-i eth8 -j KUBE-FORWARD", "-j DOCKER"},
			[]ruleset.Rule{toForward, toServices, "-m comment --comment old -j KUBE-SERVICES", "-i eth8 -j KUBE-FORWARD", "-j DOCKER"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.want(someServices())
			text := "*filter\n:DOCKER - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n"
			for _, r := range tt.before {
				text += "-A FORWARD " + string(r) + "\n"
			}
			h.edit(text + "COMMIT\n")
			h.prune()
			got := chainsOf(h.dump())[ruleset.ChainKey{Table: ruleset.Filter, Name: "FORWARD"}]
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("FORWARD (-want +got):\n%s", diff)
			}
			h.checkQuiet()
		})
	}
}

// TestOthersRulesStay puts rules of others in place before, between and after,
// and takes ours away again.
func TestOthersRulesStay(t *testing.T) {
	h := newHost(t)
	h.edit(othersFilter)
	steps := []func(){
		func() { h.want(someServices()); h.prune() },
		func() { h.edit(othersNAT); h.edit(othersPin) },
		func() { h.want(someServices().without("WEB")); h.prune() },
		func() { h.kernel.Flush("security"); h.edit("*security\n-A INPUT -j ACCEPT\nCOMMIT\n") },
		func() { h.want(someServices()); h.apply(ruleset.Options{Prune: true, Verify: true}) },
		func() { h.want(services{}); h.prune() },
		func() {
			if _, err := h.engine.Clean(context.Background()); err != nil {
				t.Errorf("Clean() = %v", err)
			}
		},
	}
	_, others := split(h.dump())
	for i, step := range steps {
		step()
		_, got := split(h.dump())
		if i == 1 || i == 3 { // the others' own steps
			others = got
		}
		if diff := cmp.Diff(others, got); diff != "" {
			t.Errorf("step %d: rules of others (-want +got):\n%s", i, diff)
		}
	}
}

func TestPruneFalseOnlyAdds(t *testing.T) {
	h := newHost(t)
	h.edit(othersNAT)
	h.want(someServices())
	h.prune()
	before, _ := split(h.dump())
	// As after a start before all objects are known: WEB has lost an endpoint
	// and won one, DNS is gone, IDLE has an endpoint now, NEW is new.
	later := services{
		"WEB":  {"10.96.0.10", []string{"10.244.0.2", "10.244.0.9"}},
		"IDLE": {"10.96.0.12", []string{"10.244.0.4"}},
		"NEW":  {"10.96.0.13", []string{"10.244.0.5"}},
		"NONE": {"10.96.0.14", nil},
	}
	h.restart()
	h.want(later)
	h.apply(ruleset.Options{})
	after, _ := split(h.dump())
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("lost although nothing was to be removed: %s", line)
		}
	}
	for _, line := range []string{
		"nat/KUBE-SERVICES -d 10.96.0.13/32 -j KUBE-SVC-NEW",
		"nat/KUBE-SERVICES -d 10.96.0.12/32 -j KUBE-SVC-IDLE",
		"filter/KUBE-SERVICES -d 10.96.0.14/32 -j REJECT",
		"nat/KUBE-SEP-NEW-10.244.0.5 -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:80",
	} {
		if !slices.Contains(after, line) {
			t.Errorf("missing: %s", line)
		}
	}
	if got := h.restores(func() { h.apply(ruleset.Options{}) }); len(got) > 0 {
		t.Errorf("another Apply() ran %d restores, want none:\n%s", len(got), strings.Join(got, ""))
	}
	h.prune()
	h.checkOurs(later)
	h.checkQuiet()
}

// TestPruneFalseGrowsUnits: a service that only gains endpoints gains them at
// once.
func TestPruneFalseGrowsUnits(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	more := someServices().with("DNS", service{"10.96.0.11", []string{"10.244.0.3", "10.244.0.6"}})
	h.want(more)
	h.apply(ruleset.Options{})
	h.checkOurs(more)
}

func TestPruneFalseThenFailureThenPrune(t *testing.T) {
	for _, fault := range []fake.Fault{fake.FailBefore, fake.FailBetween, fake.FailAfter, fake.Busy} {
		h := newHost(t)
		h.want(someServices())
		h.prune()
		later := someServices().without("DNS").with("WEB", service{"10.96.0.10", []string{"10.244.0.2"}})
		h.want(later)
		h.apply(ruleset.Options{})
		faults := 1
		h.kernel.Fault = func() fake.Fault {
			if faults--; faults == 0 {
				return fault
			}
			return fake.NoFault
		}
		h.want(later.with("NEW", service{"10.96.0.13", []string{"10.244.0.5"}}))
		_, _ = h.engine.Apply(context.Background(), ruleset.Options{})
		h.prune()
		h.checkOurs(later.with("NEW", service{"10.96.0.13", []string{"10.244.0.5"}}))
	}
}

func TestStageOfChainThatNobodyOwnsPanics(t *testing.T) {
	h := newHost(t)
	defer func() {
		if recover() == nil {
			t.Error("Stage() of DOCKER did not panic")
		}
	}()
	h.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{{Table: ruleset.NAT, Name: "DOCKER"}: {}})
}

func TestStageNilForgets(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	h.want(services{})
	h.prune()
	h.checkOurs(services{})
	if got := h.engine.Rules(ruleset.NAT); got != 3 {
		t.Errorf("Rules(nat) = %d, want 3: the mark and two jumps", got)
	}
}

// TestChainMovesBetweenUnits: the chain stays one chain, and follows its new
// unit.
func TestChainMovesBetweenUnits(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	moved := sepKey("DNS", "10.244.0.3")
	web, dns := someServices().chains()[svcKey("WEB")], someServices().chains()[moved]
	h.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{
		moved:         {Unit: "WEB", Rules: append(slices.Clone(dns.Rules), "-j ACCEPT")},
		svcKey("WEB"): {Unit: "WEB", Rules: append(slices.Clone(web.Rules), ruleset.Rule("-j "+moved.Name))},
		svcKey("DNS"): {Unit: "DNS", Rules: []ruleset.Rule{"-j ACCEPT"}},
	})
	h.engine.SetLimits(1, 1)
	h.prune()
	got := chainsOf(h.dump())
	if n := len(got[moved]); n != 3 {
		t.Errorf("%s has %d rules, want 3", moved, n)
	}
	h.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{moved: nil, svcKey("WEB"): web})
	h.prune()
	if _, ok := chainsOf(h.dump())[moved]; ok {
		t.Errorf("%s is still there", moved)
	}
	h.checkQuiet()
}

// TestSharedChainBecomesEmpty: it stays, for the jumps to it.
func TestSharedChainBecomesEmpty(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	h.want(someServices().without("IDLE"))
	h.prune()
	if rules, ok := chainsOf(h.dump())[filterServices]; !ok || len(rules) > 0 {
		t.Errorf("%s = %q, %t, want it there and empty", filterServices, rules, ok)
	}
	h.checkQuiet()
}

func TestApplyCancelled(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	before := h.kernel.Save()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.want(someServices().without("WEB"))
	for _, o := range []ruleset.Options{{Prune: true}, {Prune: true, Verify: true}} {
		if _, err := h.engine.Apply(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("Apply(%+v) = %v, want Canceled", o, err)
		}
	}
	if got := h.kernel.Save(); got != before {
		t.Errorf("Apply() with a context that has ended changed the rules")
	}
	h.prune()
	h.checkOurs(someServices().without("WEB"))
}

func TestApplyWithoutCommands(t *testing.T) {
	h := newHost(t)
	h.kernel.Absent = true
	h.want(someServices())
	if _, err := h.engine.Apply(context.Background(), ruleset.Options{Prune: true}); err == nil {
		t.Errorf("Apply() without commands = nil, want an error")
	}
	h.kernel.Absent = false
	h.prune()
	h.checkOurs(someServices())
}
