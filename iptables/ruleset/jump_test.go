// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// TestJumpsComeAndGo: a jump is there while its chain is wanted, above all other
// rules or below them, and stays where it was found.
func TestJumpsComeAndGo(t *testing.T) {
	first := ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-FIRST"}
	last := ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-LAST"}
	later := ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-LATER"}
	output := ruleset.ChainKey{Table: ruleset.NAT, Name: "OUTPUT"}
	some := &ruleset.Chain{Rules: []ruleset.Rule{"-j RETURN"}}
	const (
		toFirst ruleset.Rule = "-m comment --comment first -j KUBE-FIRST"
		toLast  ruleset.Rule = "-m comment --comment last -j KUBE-LAST"
		toLater ruleset.Rule = "-m comment --comment later -j KUBE-LATER"
		others  ruleset.Rule = "-d 192.0.2.1/32 -j ACCEPT"
	)
	k := &fake.Kernel{}
	if err := k.Edit("*nat\n-A OUTPUT " + string(others) + "\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	newEngine := func() *ruleset.Engine {
		return ruleset.NewEngine(ruleset.Config{
			Exec: k, Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
			Contributions: []ruleset.Contribution{
				{Name: "last", Owns: []ruleset.ChainKey{last, later}, Jumps: []ruleset.Jump{
					{ChainKey: output, Rule: toLast, Last: true}, {ChainKey: output, Rule: toLater, Last: true},
				}},
				{Name: "first", Owns: []ruleset.ChainKey{first}, Jumps: []ruleset.Jump{{ChainKey: output, Rule: toFirst}}},
			},
		})
	}
	e := newEngine()
	for _, step := range []struct {
		name   string
		engine *ruleset.Engine
		stage  map[ruleset.ChainKey]*ruleset.Chain
		prune  bool
		want   []ruleset.Rule
		rules  int
	}{
		{"nothing wanted, nothing there", e, nil, true, []ruleset.Rule{others}, 0},
		{"the last ones alone", e, map[ruleset.ChainKey]*ruleset.Chain{last: some, later: some}, true, []ruleset.Rule{others, toLast, toLater}, 4},
		{"the first one, too", e, map[ruleset.ChainKey]*ruleset.Chain{first: some}, true, []ruleset.Rule{toFirst, others, toLast, toLater}, 6},
		{"one that goes while nothing may be removed", e, map[ruleset.ChainKey]*ruleset.Chain{last: nil}, false, []ruleset.Rule{toFirst, others, toLast, toLater}, 4},
		{"removals allowed", e, nil, true, []ruleset.Rule{toFirst, others, toLater}, 4},
		{
			"a new engine that wants the same", newEngine(), map[ruleset.ChainKey]*ruleset.Chain{first: some, later: some}, true,
			[]ruleset.Rule{toFirst, others, toLater}, 4,
		},
		{"a new engine that wants nothing", newEngine(), nil, true, []ruleset.Rule{others}, 0},
	} {
		step.engine.Stage(step.stage)
		if _, err := step.engine.Apply(t.Context(), ruleset.Options{Prune: step.prune}); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, chainsOf(parse(t, k.Save()))[output]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if got := step.engine.Rules(ruleset.NAT); got != step.rules {
			t.Errorf("%s: %d rules are wanted, want %d", step.name, got, step.rules)
		}
	}
}
