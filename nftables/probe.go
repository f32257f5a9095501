// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// probeName is the name of a table that is there for as long as it takes to find out
// whether the kernel takes it.
const probeName = "fairlead-probe"

// Probe finds out, by trying, whether the kernel can do in a family all that the mode
// needs. The error says what it cannot. Nothing stays, and no packet meets what is tried.
func Probe(f model.Family, open func(table.Family, string) (Kernel, error)) error {
	return probe("nftables mode", Config{Family: f, PodInterface: "cni0"}, open)
}

// ProbeCounting finds out whether the kernel can do what Config.Counting needs besides.
func ProbeCounting(f model.Family, open func(table.Family, string) (Kernel, error)) error {
	return probe("counting what Services carry", Config{Family: f, PodInterface: "cni0", Counting: true}, open)
}

// probe tries the table of a configuration.
func probe(what string, cfg Config, open func(table.Family, string) (Kernel, error)) error {
	k, err := open(cfg.table(), probeName)
	if err != nil {
		return err
	}
	if c, ok := k.(interface{ Close() error }); ok {
		defer c.Close()
	}
	use := newUsage()
	use.classes[class{byAddress, cluster, 4, model.Random}]++
	use.classes[class{byAddress, cluster, maglevSizes[0], model.MaglevPort}]++
	use.timeouts[timeout{byAddress, time.Hour}]++
	for _, s := range cfg.allSets() {
		if seldom(s.Name) {
			use.seldom[s.Name]++
		}
	}
	whole := cfg.skeleton(nodeView{nodePorts: proxier.NodePorts{All: true}}, use)
	err = k.Apply(tryOut(whole.Sets, whole.Chains))
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EPERM) {
		if e := k.Apply(tryOut(nil, nil)); e != nil {
			return fmt.Errorf("%s needs nf_tables in the kernel (CONFIG_NF_TABLES): %w", what, e)
		}
	}
	for _, s := range whole.Sets {
		if e := k.Apply(tryOut([]*table.Set{s}, nil)); e != nil {
			return fmt.Errorf("%s needs sets that the kernel does not have: %s %s: %w", what, s.Name, s.Properties(), e)
		}
	}
	for _, c := range whole.Chains {
		for _, r := range c.Rules {
			alone := []*table.Chain{{Name: c.Name, Hook: c.Hook, Type: c.Type, Priority: c.Priority, Rules: []table.Rule{withoutChain(r)}}}
			if e := k.Apply(tryOut(whole.Sets, alone)); e != nil {
				return fmt.Errorf("%s needs a rule that the kernel does not take: %q in a chain of %q: %w", what, r.Text, c.Properties(), e)
			}
		}
	}
	return fmt.Errorf("%s needs a table that the kernel does not take: %w", what, err)
}

// withoutChain is a rule that leads nowhere.
func withoutChain(r table.Rule) table.Rule {
	out := r
	out.Exprs = nil
	for _, e := range r.Exprs {
		if v, ok := e.(table.Verdict); !ok || v.Chain == "" {
			out.Exprs = append(out.Exprs, e)
		}
	}
	return out
}

// tryOut makes a table and removes it, in one transaction.
func tryOut(sets []*table.Set, chains []*table.Chain) []table.Step {
	steps := []table.Step{table.AddTable{}}
	for _, s := range sets {
		steps = append(steps, table.AddSet{Set: s})
	}
	for _, c := range chains {
		steps = append(steps, table.AddChain{Chain: c})
	}
	for _, c := range chains {
		steps = append(steps, table.SetRules{Chain: c.Name, Rules: c.Rules})
	}
	return append(steps, table.DeleteTable{})
}
