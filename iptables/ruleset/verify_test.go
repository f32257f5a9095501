// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// unreadable is a kernel whose save command can be made to fail.
type unreadable struct {
	*fake.Kernel
	fails bool
}

func (u *unreadable) Run(ctx context.Context, c ruleset.Command) error {
	if u.fails && strings.HasSuffix(c.Name, "-save") {
		return &ruleset.CommandError{Name: c.Name, ExitCode: 1, Stderr: "cannot read"}
	}
	return u.Kernel.Run(ctx, c)
}

// TestUnverified: that a check cannot be done keeps no change from being made.
func TestUnverified(t *testing.T) {
	k := &unreadable{Kernel: &fake.Kernel{}}
	chain := ruleset.ChainKey{Table: ruleset.NAT, Name: "OURS"}
	e := ruleset.NewEngine(ruleset.Config{
		Exec: k, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{{Name: "test", Owns: []ruleset.ChainKey{chain}}},
	})
	apply := func(rule ruleset.Rule, o ruleset.Options) ruleset.Result {
		t.Helper()
		e.Stage(map[ruleset.ChainKey]*ruleset.Chain{chain: {Rules: []ruleset.Rule{rule}}})
		res, err := e.Apply(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(k.Save(), "-A OURS "+string(rule)+"\n") {
			t.Errorf("the rule %q is not there:\n%s", rule, k.Save())
		}
		return res
	}
	apply("-j ACCEPT", ruleset.Options{Prune: true})
	k.fails = true
	res := apply("-j DROP", ruleset.Options{Prune: true, Verify: true})
	var failed *ruleset.CommandError
	if !errors.As(res.Unverified, &failed) {
		t.Errorf("Unverified is %v, want the failure of the save command", res.Unverified)
	}
	apply("-j RETURN", ruleset.Options{Prune: true})
	k.fails = false
	if err := k.Edit("*nat\n-F OURS\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	if res := apply("-j RETURN", ruleset.Options{Prune: true, Verify: true}); len(res.Drift) != 1 || res.Unverified != nil {
		t.Errorf("got %+v, want the flushed chain repaired", res)
	}
}
