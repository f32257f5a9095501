// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"fmt"
	"strings"

	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// kubeFirewall is kubelet's chain, too.
const kubeFirewall = "KUBE-FIREWALL"

// ToNode matches what is for an address of this node.
const ToNode = "-m addrtype --dst-type LOCAL "

// Localnet returns the rule that keeps the neighbours away from what listens on
// 127.0.0.1. Node ports on localhost need the kernel to route such packets
// (route_localnet), and then would the neighbours' too (CVE-2020-8558).
func Localnet(f model.Family, localhostNodePorts bool) ruleset.Guest {
	loopback := "127.0.0.0/8"
	if f == model.IPv6 {
		loopback = "::1/128" // for Clean: kube-proxy makes the chain there too
	}
	filter := func(name string) ruleset.ChainKey { return ruleset.ChainKey{Table: ruleset.Filter, Name: name} }
	rule := func(comment string) ruleset.Rule {
		return Spec{
			Src: "! " + loopback, Dst: loopback, Comment: comment,
			More: "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT ",
		}.Jump("DROP").Rule()
	}
	return ruleset.Guest{
		Rule: ruleset.Jump{ChainKey: filter(kubeFirewall), Rule: rule("block incoming localnet connections for node ports")},
		Same: rule("block incoming localnet connections"), // kubelet's and kube-proxy's
		Jumps: []ruleset.Jump{
			{ChainKey: filter("INPUT"), Rule: "-j " + kubeFirewall},
			{ChainKey: filter("OUTPUT"), Rule: "-j " + kubeFirewall},
		},
		Others: ruleset.ChainKey{Table: ruleset.Mangle, Name: "KUBE-KUBELET-CANARY"},
		Wanted: localhostNodePorts && f == model.IPv4,
	}
}

// Forwarding returns the chain Forward: what has the mark of masqueradeBit, and
// what belongs to a connection, is forwarded. What connection tracking finds invalid
// is dropped unless keepInvalid is set, and counted by the nfacct object
// invalidCounter unless that is empty.
func Forwarding(masqueradeBit int, keepInvalid bool, invalidCounter string) *ruleset.Chain {
	var out []ruleset.Rule
	if !keepInvalid {
		// A packet that conntrack finds invalid would leave untranslated, and
		// its receiver would reset the connection
		// (kubernetes/kubernetes#74839).
		out = append(out, Spec{More: "-m conntrack --ctstate INVALID " + Counted(invalidCounter)}.Jump("DROP").Rule())
	}
	return &ruleset.Chain{Rules: append(out,
		Spec{Comment: "kubernetes forwarding rules", More: "-m mark --mark " + nat.Mark(masqueradeBit) + " "}.Jump("ACCEPT").Rule(),
		Spec{Comment: "kubernetes forwarding conntrack rule", More: "-m conntrack --ctstate RELATED,ESTABLISHED "}.Jump("ACCEPT").Rule())}
}

// Counted counts what has matched with an nfacct object, unless its name is
// empty. The two spaces are those of iptables-save.
func Counted(name string) string {
	if name == "" {
		return ""
	}
	return "-m nfacct --nfacct-name  " + name + " "
}

// FromLocalhost counts, among what is masqueraded, connections to ports of 127.0.0.0/8,
// with an nfacct object. No rules where its name is empty.
func FromLocalhost(counter string) []ruleset.Rule {
	if counter == "" {
		return nil
	}
	return []ruleset.Rule{Spec{More: "-m conntrack --ctorigdst 127.0.0.0/8 " + Counted(counter)}.Rule()}
}

// Refusals returns in words what the engine reports as refused.
func Refusals(res ruleset.Result) []string {
	var out []string
	for _, r := range res.Refused {
		what := r.Unit
		if what == "" {
			what = fmt.Sprintf("rule %s in %s", strings.TrimSpace(string(r.Rule)), r.Chain)
		}
		out = append(out, fmt.Sprintf("%s: %v", what, r.Err))
	}
	return out
}
