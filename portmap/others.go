// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"fairlead/iptables/ruleset"
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
	file, plugin := o.plugin()
	if plugin != "" {
		return "the CNI plugin " + plugin + " (" + file + ")"
	}
	return ""
}

// Foreign tells whether a chain of one of this package's names is somebody else's:
// CRI-O's, or kubelet's before Kubernetes 1.24.
func Foreign(rules []ruleset.Rule) bool {
	return slices.ContainsFunc(rules, func(r ruleset.Rule) bool { return !strings.Contains(string(r), `--comment "`+Mark) })
}

// configuration is one of CNI's: a list of plugins, or a single one.
type configuration struct {
	plugin
	Plugins []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
}

// plugin returns the plugin that is told of host ports by the runtime, and the file
// that says so. Runtimes use the first file, by name, that they can read.
func (o Others) plugin() (file, name string) {
	if o.CNI == nil {
		return "", ""
	}
	entries, err := fs.ReadDir(o.CNI, ".")
	if err != nil {
		return "", ""
	}
	for _, e := range entries {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) {
			continue
		}
		c, err := readConfiguration(o.CNI, e.Name())
		if err != nil {
			continue
		}
		for _, p := range append(c.Plugins, c.plugin) {
			if p.Capabilities["portMappings"] {
				return e.Name(), p.Type
			}
		}
		return "", ""
	}
	return "", ""
}

func readConfiguration(dir fs.FS, name string) (c configuration, err error) {
	text, err := fs.ReadFile(dir, name)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, err
	}
	if c.Type == "" && len(c.Plugins) == 0 {
		return c, errors.New("no plugin")
	}
	return c, nil
}
