// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// withoutEmptyTables leaves out tables that hold only empty built-in chains.
func withoutEmptyTables(d ruleset.Dump) ruleset.Dump {
	return slices.DeleteFunc(d, func(t ruleset.DumpTable) bool {
		return !slices.ContainsFunc(t.Chains, func(c ruleset.DumpChain) bool { return c.Policy != "ACCEPT" || len(c.Rules) > 0 })
	})
}

func TestCleanLeavesWhatWasThere(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before []string
	}{
		{"nothing", nil},
		{"rules of others", []string{othersFilter, othersNAT}},
		{"a policy", []string{"*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"}},
	} {
		for _, limit := range []int{0, 5} {
			t.Run(tt.name, func(t *testing.T) {
				h := newHost(t)
				h.engine.SetLimits(limit, limit)
				for _, text := range tt.before {
					h.edit(text)
				}
				before := withoutEmptyTables(h.dump()).String()
				h.want(manyServices(9, 3))
				h.prune()
				h.edit("*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n")
				if limit > 0 { // another process cleans
					h.restart()
				}
				if _, err := h.engine.Clean(context.Background()); err != nil {
					t.Fatalf("Clean() = %v", err)
				}
				if diff := cmp.Diff(before, withoutEmptyTables(h.dump()).String()); diff != "" {
					t.Errorf("rules after Clean() (-before +after):\n%s", diff)
				}
				if got := h.restores(func() { _, _ = h.engine.Clean(context.Background()) }); len(got) > 0 {
					t.Errorf("another Clean() ran %d restores, want none", len(got))
				}
			})
		}
	}
}

func TestCleanAfterFaults(t *testing.T) {
	for name, fault := range faults() {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.edit(othersNAT)
			before := withoutEmptyTables(h.dump()).String()
			h.want(someServices())
			h.prune()
			left := 1
			h.kernel.Fault = func() fake.Fault {
				if left--; left == 0 {
					return fault
				}
				return fake.NoFault
			}
			if _, err := h.engine.Clean(context.Background()); err == nil {
				t.Errorf("Clean() with a fault = nil, want an error")
			}
			if _, err := h.engine.Clean(context.Background()); err != nil {
				t.Errorf("another Clean() = %v", err)
			}
			if diff := cmp.Diff(before, withoutEmptyTables(h.dump()).String()); diff != "" {
				t.Errorf("rules after Clean() (-before +after):\n%s", diff)
			}
		})
	}
}
