// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// saved returns the rules that an engine makes, as iptables-save prints them.
func saved(t *testing.T, r Rules) string {
	t.Helper()
	var k fake.Kernel
	e := ruleset.NewEngine(ruleset.Config{
		Exec: &k, Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{Contribution()},
	})
	e.Stage(r.Chains())
	if _, err := e.Apply(t.Context(), ruleset.Options{Prune: true}); err != nil {
		t.Fatal(err)
	}
	return k.Save()
}

func TestRules(t *testing.T) {
	const head = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-POD-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes pod forwarding rules" -j KUBE-POD-FORWARD
`
	const nat = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-POD-EGRESS - [0:0]
:KUBE-POD-MASQ - [0:0]
-A POSTROUTING -m comment --comment "kubernetes pods to the outside" -m addrtype ! --dst-type LOCAL -j KUBE-POD-MASQ
`
	for _, tt := range []struct {
		name  string
		rules Rules
		want  string
	}{
		{"nobody is known to be a pod", Rules{Config: Defaults()}, ""},
		{"the defaults", Rules{Pods: prefixes("10.244.0.0/16"), Config: Defaults(), RandomFully: true}, head +
			`-A KUBE-POD-FORWARD -s 10.244.0.0/16 -j ACCEPT
-A KUBE-POD-FORWARD -d 10.244.0.0/16 -j ACCEPT
COMMIT
` + nat + `-A KUBE-POD-EGRESS -d 10.0.0.0/8 -j RETURN
-A KUBE-POD-EGRESS -d 169.254.0.0/16 -j RETURN
-A KUBE-POD-EGRESS -d 172.16.0.0/12 -j RETURN
-A KUBE-POD-EGRESS -d 192.168.0.0/16 -j RETURN
-A KUBE-POD-EGRESS -d 224.0.0.0/4 -j RETURN
-A KUBE-POD-EGRESS -m comment --comment "kubernetes pods to the outside" -j MASQUERADE --random-fully
-A KUBE-POD-MASQ -s 10.244.0.0/16 -j KUBE-POD-EGRESS
COMMIT
`},
		{"IPv6, two CIDRs, link-local too, ports in order", Rules{
			IPv6: true, Pods: prefixes("fd00:244::/56", "fd00:245::/56"),
			Config: Config{NonMasquerade: prefixes("10.0.0.0/8", "2001:db8::/32"), MasqLinkLocalIPv6: true},
		}, head + `-A KUBE-POD-FORWARD -s fd00:244::/56 -j ACCEPT
-A KUBE-POD-FORWARD -d fd00:244::/56 -j ACCEPT
-A KUBE-POD-FORWARD -s fd00:245::/56 -j ACCEPT
-A KUBE-POD-FORWARD -d fd00:245::/56 -j ACCEPT
COMMIT
` + nat + `-A KUBE-POD-EGRESS -d 2001:db8::/32 -j RETURN
-A KUBE-POD-EGRESS -d fd00:244::/56 -j RETURN
-A KUBE-POD-EGRESS -d fd00:245::/56 -j RETURN
-A KUBE-POD-EGRESS -d ff00::/8 -j RETURN
-A KUBE-POD-EGRESS -m comment --comment "kubernetes pods to the outside" -j MASQUERADE
-A KUBE-POD-MASQ -s fd00:244::/56 -j KUBE-POD-EGRESS
-A KUBE-POD-MASQ -s fd00:245::/56 -j KUBE-POD-EGRESS
COMMIT
`},
		{"a set", Rules{Pods: prefixes("10.244.0.0/16"), Set: "KUBE-NON-MASQ"}, head +
			`-A KUBE-POD-FORWARD -s 10.244.0.0/16 -j ACCEPT
-A KUBE-POD-FORWARD -d 10.244.0.0/16 -j ACCEPT
COMMIT
` + nat + `-A KUBE-POD-EGRESS -m set --match-set KUBE-NON-MASQ dst -j RETURN
-A KUBE-POD-EGRESS -m comment --comment "kubernetes pods to the outside" -j MASQUERADE
-A KUBE-POD-MASQ -s 10.244.0.0/16 -j KUBE-POD-EGRESS
COMMIT
`},
		{"everything is exempt", Rules{Pods: prefixes("10.244.0.0/16"), Config: Config{NonMasquerade: prefixes("0.0.0.0/0")}}, head +
			`-A KUBE-POD-FORWARD -s 10.244.0.0/16 -j ACCEPT
-A KUBE-POD-FORWARD -d 10.244.0.0/16 -j ACCEPT
COMMIT
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, saved(t, tt.rules)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestExempt(t *testing.T) {
	r := Rules{Pods: prefixes("10.244.0.0/16"), Config: Config{NonMasquerade: prefixes(
		"192.0.2.128/25", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.0/24", "10.0.0.0/8", "192.0.3.0/24", "2001:db8::/32")}}
	got, all := r.Exempt()
	want := prefixes("10.0.0.0/8", "169.254.0.0/16", "192.0.2.0/24", "192.0.3.0/24", "224.0.0.0/4")
	if diff := cmp.Diff(want, got, compare); diff != "" || all {
		t.Errorf("all: %v, (-want +got):\n%s", all, diff)
	}
}

func TestOthers(t *testing.T) {
	pods := prefixes("10.244.0.0/16")
	masq := func(name string) func(string) []ruleset.Rule {
		return func(chain string) []ruleset.Rule {
			if chain == name {
				return []ruleset.Rule{"-s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN", "-s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully"}
			}
			return nil
		}
	}
	none := masq("")
	for _, tt := range []struct {
		name   string
		others Others
		want   string
	}{
		{"nobody", Others{Chain: none}, ""},
		{"flannel", Others{Postrouting: []ruleset.Rule{`-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`}, Chain: masq("FLANNEL-POSTRTG")}, "flannel (chain FLANNEL-POSTRTG)"},
		{"flannel's chain, empty", Others{Postrouting: []ruleset.Rule{`-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`}, Chain: none}, ""},
		{"flannel's chain, unused", Others{Chain: masq("FLANNEL-POSTRTG")}, ""},
		{"ip-masq-agent", Others{Postrouting: []ruleset.Rule{"-m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT"}, Chain: masq("IP-MASQ-AGENT")}, "ip-masq-agent (chain IP-MASQ-AGENT)"},
		{"Calico", Others{Postrouting: []ruleset.Rule{"-j cali-POSTROUTING"}, Chain: masq("cali-nat-outgoing")}, "Calico (chain cali-nat-outgoing)"},
		{"kindnet", Others{Tables: []string{"filter", "kindnet-ipmasq"}, Chain: none}, "kindnet (table kindnet-ipmasq of nf_tables)"},
		{
			"a CNI plugin", Others{Postrouting: []ruleset.Rule{`-s 10.244.0.5/32 -m comment --comment "name: \"net\" id: \"abc\"" -j CNI-0123456789abcdef01234567`}, Chain: none},
			"a CNI plugin with ipMasq (chain CNI-0123456789abcdef01234567)",
		},
		{"a CNI plugin, for others' networks", Others{Postrouting: []ruleset.Rule{`-s 10.88.0.5/32 -m comment --comment "name: \"net\" id: \"abc\"" -j CNI-0123456789abcdef01234567`}, Chain: none}, ""},
		{
			"a CNI plugin, before there is a pod", Others{CNI: fstest.MapFS{"10-a.conf": {Data: []byte(`{"type":"bridge","ipMasq":true}`)}}, Chain: none},
			"the CNI plugin bridge (10-a.conf)",
		},
		{"a CNI plugin that does not", Others{CNI: fstest.MapFS{"10-a.conf": {Data: []byte(`{"type":"bridge"}`)}}, Chain: none}, ""},
		{"Docker", Others{Postrouting: []ruleset.Rule{"-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"}, Chain: none}, ""},
		{"an admin", Others{Postrouting: []ruleset.Rule{"-s 10.0.0.0/8 -o eth0 -j MASQUERADE"}, Chain: none}, "a rule in POSTROUTING (-s 10.0.0.0/8 -o eth0 -j MASQUERADE)"},
		{"an admin, for all others", Others{Postrouting: []ruleset.Rule{"! -s 10.244.0.0/16 -o eth0 -j MASQUERADE"}, Chain: none}, ""},
		{"kube-router", Others{Postrouting: []ruleset.Rule{"-m set --match-set kube-router-pod-subnets src -j MASQUERADE --random-fully"}, Chain: none}, "a rule in POSTROUTING (-m set --match-set kube-router-pod-subnets src -j MASQUERADE --random-fully)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.others.Who(pods); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
