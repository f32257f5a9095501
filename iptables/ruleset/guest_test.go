// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// guest is a rule in a chain that a neighbour uses too.
func guest(wanted bool) ruleset.Guest {
	hostChain := ruleset.ChainKey{Table: ruleset.Filter, Name: "SHARED"}
	jump := func(from string) ruleset.Jump {
		return ruleset.Jump{ChainKey: ruleset.ChainKey{Table: ruleset.Filter, Name: from}, Rule: "-j SHARED"}
	}
	return ruleset.Guest{
		Rule:   ruleset.Jump{ChainKey: hostChain, Rule: "-d 127.0.0.0/8 -m comment --comment ours -j DROP"},
		Same:   "-d 127.0.0.0/8 -j DROP",
		Jumps:  []ruleset.Jump{jump("INPUT"), jump("OUTPUT")},
		Others: ruleset.ChainKey{Table: ruleset.Mangle, Name: "NEIGHBOUR-CANARY"},
		Wanted: wanted,
	}
}

// TestGuest: a rule in a chain of others is added and removed without touching
// theirs, and the chain goes only with the last who uses it.
func TestGuest(t *testing.T) {
	const neighbour = "*filter\n:SHARED - [0:0]\n-A SHARED -m mark --mark 0x8000/0x8000 -j DROP\n-A INPUT -j SHARED\n-A OUTPUT -j SHARED\nCOMMIT\n"
	const empty = "*filter\n:SHARED - [0:0]\n-A INPUT -j SHARED\n-A OUTPUT -j SHARED\nCOMMIT\n"
	same := strings.Replace(neighbour, "-m mark --mark 0x8000/0x8000", "-d 127.0.0.0/8", 1)
	for _, tt := range []struct {
		name, before string
		// with and without are lines of the filter table while the rule is
		// wanted, and after Clean.
		with, without string
	}{
		{"nothing there", "", "-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -m comment --comment ours -j DROP", ""},
		{"a neighbour with a rule", neighbour,
			"-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -m comment --comment ours -j DROP|-A SHARED -m mark --mark 0x8000/0x8000 -j DROP",
			"-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -m mark --mark 0x8000/0x8000 -j DROP"},
		{"a neighbour without a rule", empty + "*mangle\n:NEIGHBOUR-CANARY - [0:0]\nCOMMIT\n",
			"-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -m comment --comment ours -j DROP", "-A INPUT -j SHARED|-A OUTPUT -j SHARED"},
		{"a neighbour with a rule that does the same", same + "*mangle\n:NEIGHBOUR-CANARY - [0:0]\nCOMMIT\n",
			"-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -j DROP", "-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -j DROP"},
		{"a predecessor's rule that does the same", same,
			"-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -j DROP", ""},
		{"left behind by nobody", empty, "-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -m comment --comment ours -j DROP", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &fake.Kernel{}
			if err := k.Edit(tt.before); tt.before != "" && err != nil {
				t.Fatal(err)
			}
			checkGuest(t, k, true, tt.with)
			writes := len(k.Restores())
			checkGuest(t, k, true, tt.with)
			if got := len(k.Restores()); got != writes {
				t.Errorf("a second start wrote %q", k.Restores()[writes:])
			}
			if _, err := guestEngine(k, true).Clean(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := filterRules(k); got != tt.without {
				t.Errorf("after Clean: got %q, want %q", got, tt.without)
			}
		})
	}
}

// TestGuestNoLongerWanted: a rule of an earlier start that is not wanted now is
// removed.
func TestGuestNoLongerWanted(t *testing.T) {
	k := &fake.Kernel{}
	checkGuest(t, k, true, "-A INPUT -j SHARED|-A OUTPUT -j SHARED|-A SHARED -d 127.0.0.0/8 -m comment --comment ours -j DROP")
	checkGuest(t, k, false, "")
}

func guestEngine(k *fake.Kernel, wanted bool) *ruleset.Engine {
	return ruleset.NewEngine(ruleset.Config{
		Exec: k, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{{Name: "test", Guests: []ruleset.Guest{guest(wanted)}}},
	})
}

// checkGuest starts an engine and compares the filter table's rules.
func checkGuest(t *testing.T, k *fake.Kernel, wanted bool, want string) {
	t.Helper()
	res, err := guestEngine(k, wanted).Apply(context.Background(), ruleset.Options{Prune: true})
	if err != nil || len(res.Refused) > 0 {
		t.Fatalf("Apply: %+v, %v", res, err)
	}
	if got := filterRules(k); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func filterRules(k *fake.Kernel) string {
	var out []string
	for line := range strings.Lines(k.Save()) {
		if strings.HasPrefix(line, "-A") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "|")
}
