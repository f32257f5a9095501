// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"io/fs"
	"slices"
	"strings"

	"fairlead/iptables/ruleset"
	"fairlead/nat/cni"
)

// Others is what there is on a node by which others may do host ports.
type Others struct {
	// CNI is the directory of CNI's configurations, nil for none.
	CNI fs.FS
	// Chain returns the rules of a chain of table nat, none where it is not there.
	Chain func(name string) []ruleset.Rule
	// Tables are the names of the tables of nf_tables, of any family.
	Tables []string
}

// Who names who does host ports, and where that shows; empty if nobody is seen to.
func (o Others) Who() string {
	if len(o.Chain("CNI-HOSTPORT-DNAT")) > 0 { // which stays, empty, when nobody does
		return "the CNI plugin portmap (chain CNI-HOSTPORT-DNAT)"
	}
	if slices.Contains(o.Tables, "crio-hostports") {
		return "CRI-O (table crio-hostports of nf_tables)"
	}
	file, plugins := cni.Plugins(o.CNI)
	for _, p := range plugins {
		if p.Capabilities["portMappings"] {
			return "the CNI plugin " + p.Type + " (" + file + ")"
		}
	}
	return ""
}

// Foreign tells whether a chain of one of this package's names is somebody else's:
// CRI-O's, or kubelet's before Kubernetes 1.24.
func Foreign(rules []ruleset.Rule) bool {
	return slices.ContainsFunc(rules, func(r ruleset.Rule) bool { return !strings.Contains(string(r), `--comment "`+Mark) })
}
