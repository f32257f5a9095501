// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

func TestMark(t *testing.T) {
	for bit, want := range map[int]string{0: "0x1/0x1", 13: "0x2000/0x2000", 14: "0x4000/0x4000", 31: "0x80000000/0x80000000"} {
		if got := Mark(bit); got != want {
			t.Errorf("Mark(%d) = %s, want %s", bit, got, want)
		}
	}
}

func TestRules(t *testing.T) {
	for _, tt := range []struct {
		name string
		bit  int
		set  string
		want string
	}{
		{"usual bit", 14, "", `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
`},
		{"first bit", 0, "", `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x1/0x1
-A KUBE-POSTROUTING -m mark ! --mark 0x1/0x1 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x1/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
`},
		{"endpoints that reach themselves", 0, LoopBack(true), `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x1/0x1
-A KUBE-POSTROUTING -m comment --comment "kubernetes endpoint that reaches itself" -m conntrack --ctstate DNAT -m set --match-set KUBE-6-LOOP-BACK dst,dst,src -j MASQUERADE --random-fully
-A KUBE-POSTROUTING -m mark ! --mark 0x1/0x1 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x1/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var k fake.Kernel
			e := ruleset.NewEngine(ruleset.Config{
				Exec: &k, Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
				Contributions: []ruleset.Contribution{Contribution()},
			})
			e.Stage(Chains(tt.bit, tt.set))
			if _, err := e.Apply(t.Context(), ruleset.Options{Prune: true}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, k.Save()); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
			if _, err := e.Clean(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := k.Save(); got != "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n" {
				t.Errorf("rules after Clean():\n%s", got)
			}
		})
	}
}
