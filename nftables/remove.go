// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"maps"
	"slices"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// Parts are what the table is for.
type Parts struct{ Services, HostPorts, PodMasquerade bool }

// partOf tells which part a set is of.
func partOf(set string) Parts {
	switch set {
	case hostPorts, hostPortsOnAddress, hostPortsExcept, hostPortsMasq:
		return Parts{HostPorts: true}
	case masqueradedPods, nonMasquerade:
		return Parts{PodMasquerade: true}
	}
	return Parts{Services: true}
}

// in tells whether a part is among others.
func (p Parts) in(o Parts) bool {
	return (!p.Services || o.Services) && (!p.HostPorts || o.HostPorts) && (!p.PodMasquerade || o.PodMasquerade)
}

// Remove removes parts of the table that the kernel has for a family, and with the last
// of them the table. Removed tells whether there was something to remove.
func Remove(f model.Family, k Kernel, parts Parts) (removed bool, err error) {
	state, err := readAgain(k.Read)
	if err != nil || state == nil {
		return false, err
	}
	steps, rest, err := removal(Config{Family: f, MasqueradeNeighbours: true}, k, state, parts)
	if err != nil {
		return false, err
	}
	if !rest {
		steps = []table.Step{table.DeleteTable{}}
	}
	if len(steps) == 0 {
		return false, nil
	}
	if err := k.Apply(steps); err != nil {
		return false, fmt.Errorf("remove what nftables mode has left: %w", err)
	}
	return true, nil
}

// removal returns the steps that empty the sets of parts, and whether there is something
// in those of others.
func removal(cfg Config, k Kernel, state *table.State, parts Parts) (steps []table.Step, rest bool, err error) {
	known := map[string]*table.Set{}
	for _, s := range cfg.skeleton(nodeView{}, usageIn(state)).Sets {
		known[s.Name] = s
	}
	for _, name := range slices.Sorted(maps.Keys(state.Sets)) {
		if partOf(name).in(parts) {
			steps = append(steps, table.FlushSet{Name: name})
			continue
		}
		switch name {
		case clusterIPs, hostPorts, hostPortsOnAddress, masqueradedPods: // of which there is something in one
			_, err := readAgain(func() (struct{}, error) {
				return struct{}{}, k.Elements(known[name], func(table.Element) { rest = true })
			})
			if err != nil {
				return nil, false, err
			}
		}
	}
	return steps, rest, nil
}

// GuardLoopback puts the rule in place that keeps neighbours from 127.0.0.1, unless a Sync
// has done so. It is the same as that of the first Sync to come.
func GuardLoopback(k Kernel) error {
	state, err := readAgain(k.Read)
	if err != nil {
		return err
	}
	guard := &table.Chain{Name: early, Type: "filter", Hook: "prerouting", Priority: earlyPriority, Rules: []table.Rule{loopbackGuard(table.IPv4)}}
	var steps []table.Step
	if state == nil {
		steps = append(steps, table.AddTable{Comment: tableComment})
	} else if _, ok := state.Chains[guard.Name]; ok {
		return nil
	}
	return k.Apply(append(steps, table.AddChain{Chain: guard}, table.SetRules{Chain: guard.Name, Rules: guard.Rules}))
}

// loopbackGuard drops what neighbours send to 127.0.0.1.
func loopbackGuard(f table.Family) table.Rule {
	return table.On(f).NotFrom("lo").Loopback().Drop().Because("neighbours have no business with 127.0.0.1")
}
