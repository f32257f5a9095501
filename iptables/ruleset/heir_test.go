// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// TestCleanLeavesHeirs: of chains with the heir's names, of those that they lead to, and of
// the heir's jumps nothing goes; all else that is ours does, jumps to the heir's chains
// among it.
func TestCleanLeavesHeirs(t *testing.T) {
	const before = `*filter
:SHARED - [0:0]
-A INPUT -j SHARED
-A OUTPUT -j SHARED
-A SHARED -d 127.0.0.0/8 -m comment --comment ours -j DROP
-A SHARED -d 127.0.0.0/8 -j DROP
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:OURS - [0:0]
:OURS-TOO - [0:0]
-A PREROUTING -m comment --comment portals -j KUBE-SERVICES
-A PREROUTING -m conntrack --ctstate NEW -m comment --comment portals -j KUBE-SERVICES
-A PREROUTING -m comment --comment ours -j OURS
-A KUBE-SERVICES -j KUBE-SVC-A
-A KUBE-SERVICES -j OURS-TOO
-A OURS -j KUBE-SVC-A
COMMIT
`
	const after = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:SHARED - [0:0]
-A INPUT -j SHARED
-A OUTPUT -j SHARED
-A SHARED -d 127.0.0.0/8 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:OURS-TOO - [0:0]
-A PREROUTING -m comment --comment portals -j KUBE-SERVICES
-A KUBE-SERVICES -j KUBE-SVC-A
-A KUBE-SERVICES -j OURS-TOO
COMMIT
`
	nat := func(name string) ruleset.ChainKey { return ruleset.ChainKey{Table: ruleset.NAT, Name: name} }
	jump := func(rule ruleset.Rule) ruleset.Jump {
		return ruleset.Jump{ChainKey: nat("PREROUTING"), Rule: rule}
	}
	portals := jump("-m comment --comment portals -j KUBE-SERVICES")
	k := &fake.Kernel{}
	if err := k.Edit(before); err != nil {
		t.Fatal(err)
	}
	e := ruleset.NewEngine(ruleset.Config{
		Exec: k, Variant: ruleset.NFT,
		Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{{
			Name: "test", Guests: []ruleset.Guest{guest(true)},
			Owns:  []ruleset.ChainKey{nat("KUBE-SERVICES"), nat("KUBE-SVC-*"), nat("OURS"), nat("OURS-TOO")},
			Jumps: []ruleset.Jump{portals, jump("-m comment --comment ours -j OURS")},
		}},
		Heir: ruleset.Heir{
			Chains: []ruleset.ChainKey{nat("KUBE-SERVICES"), nat("KUBE-SVC-*"), {Table: ruleset.Filter, Name: "SHARED"}},
			Jumps:  []ruleset.Jump{portals},
		},
	})
	for range 2 { // the second time there is nothing to do
		if _, err := e.Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(after, k.Save()); diff != "" {
			t.Errorf("rules after Clean (-want +got):\n%s", diff)
		}
	}
	if got := len(k.Restores()); got != 1 {
		t.Errorf("Clean twice ran %d restores, want 1", got)
	}
}
