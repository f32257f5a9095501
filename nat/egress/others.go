// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"fairlead/iptables/ruleset"
	"fairlead/nat/cni"
)

// Others is what there is on a node by which others may masquerade what pods send.
type Others struct {
	// CNI is the directory of CNI's configurations, nil for none.
	CNI fs.FS
	// Postrouting are the rules of POSTROUTING in table nat.
	Postrouting []ruleset.Rule
	// Chain returns the rules of a chain of table nat, none where it is not there.
	Chain func(name string) []ruleset.Rule
	// Tables are the names of the tables of nf_tables, of any family.
	Tables []string
}

// other is somebody else who masquerades, and where that shows. POSTROUTING leads
// there by way of the chain via.
type other struct{ in, who, via string }

// tables are those of nf_tables in which others masquerade what pods send.
func tables() []other {
	return []other{
		{in: "kindnet-ipmasq", who: "kindnet"}, {in: "cni_plugins_masquerade", who: "a CNI plugin with ipMasq"},
		{in: "flannel-ipv4", who: "flannel"}, {in: "flannel-ipv6", who: "flannel"},
	}
}

// chains are those in which others have rules that masquerade, if they do. The
// chains may be there without.
func chains() []other {
	out := []other{{"cali-nat-outgoing", "Calico", "cali-POSTROUTING"}}
	for _, c := range []other{
		{in: "FLANNEL-POSTRTG", who: "flannel"}, {in: "IP-MASQ-AGENT", who: "ip-masq-agent"}, {in: "IP-MASQ", who: "ip-masq-agent"},
		{in: "KIND-MASQ-AGENT", who: "kindnet"}, {in: "CILIUM_POST_nat", who: "Cilium"}, {in: "ANTREA-POSTROUTING", who: "Antrea"},
		{in: "WEAVE", who: "Weave Net"}, {in: "AWS-SNAT-CHAIN-0", who: "the CNI plugin of AWS"},
	} {
		c.via = c.in
		out = append(out, c)
	}
	return out
}

// Who names who masquerades what pods with these addresses send, and the rule or
// table that shows it; empty if nobody is seen to.
func (o Others) Who(pods []netip.Prefix) string {
	for _, t := range tables() {
		if slices.Contains(o.Tables, t.in) {
			return t.who + " (table " + t.in + " of nf_tables)"
		}
	}
	file, plugins := cni.Plugins(o.CNI)
	for _, p := range plugins {
		if p.IPMasq {
			return "the CNI plugin " + p.Type + " (" + file + ")"
		}
	}
	for _, r := range o.Postrouting {
		switch {
		case !ofPods(string(r), pods):
		case masquerades(r):
			return "a rule in POSTROUTING (" + string(r) + ")"
		case strings.HasPrefix(r.Target(), "CNI-"):
			return "a CNI plugin with ipMasq (chain " + r.Target() + ")"
		}
	}
	for _, c := range chains() {
		via := func(r ruleset.Rule) bool { return r.Target() == c.via }
		if slices.ContainsFunc(o.Postrouting, via) && slices.ContainsFunc(o.Chain(c.in), masquerades) {
			return c.who + " (chain " + c.in + ")"
		}
	}
	return ""
}

func masquerades(r ruleset.Rule) bool {
	target := r.Target()
	return target == "MASQUERADE" || target == "SNAT"
}

// ofPods tells whether a rule is for sources that are pods': it names some of their
// addresses, or kube-router's set of them.
func ofPods(rule string, pods []netip.Prefix) bool {
	if strings.Contains(rule, "--match-set kube-router-pod-subnets src") {
		return true
	}
	words := strings.Fields(rule)
	i := slices.Index(words, "-s")
	if i < 0 || i+1 >= len(words) || i > 0 && words[i-1] == "!" {
		return false
	}
	src, err := netip.ParsePrefix(words[i+1])
	return err == nil && slices.ContainsFunc(pods, src.Overlaps)
}
