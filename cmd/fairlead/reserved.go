// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"sync"

	"fairlead/nat/sysctl"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// reservedPorts keeps the numbers of node ports from clients among the node's
// processes, in IPVS mode: an answer to one would meet the node port's virtual server.
// What is masqueraded may have such a number, as it is translated back before.
type reservedPorts struct {
	mu    sync.Mutex
	ports portReserver
	// of counts, for each family, the Service ports that have a node port.
	of map[model.Family]map[uint16]int
}

// portReserver has the kernel reserve ports, and no longer those of the call before.
type portReserver interface {
	Set(ctx context.Context, ports []uint16) []*sysctl.Problem
}

func newReservedPorts(p portReserver) *reservedPorts {
	return &reservedPorts{ports: p, of: map[model.Family]map[uint16]int{}}
}

// family returns what follows the Services of one family.
func (r *reservedPorts) family(f model.Family) proxier.Follower {
	return &familyPorts{all: r, family: f, have: map[model.ServicePortName]uint16{}, count: map[uint16]int{}}
}

// set says which node ports a family has.
func (r *reservedPorts) set(ctx context.Context, f model.Family, ports map[uint16]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of[f] = maps.Clone(ports)
	all := map[uint16]bool{}
	for _, of := range r.of {
		for p := range of {
			all[p] = true
		}
	}
	sysctl.Warn(ctx, r.ports.Set(ctx, slices.Sorted(maps.Keys(all))))
}

// familyPorts are the node ports of one family.
type familyPorts struct {
	all    *reservedPorts
	family model.Family
	have   map[model.ServicePortName]uint16
	count  map[uint16]int
}

var _ proxier.Follower = (*familyPorts)(nil)

// Follow implements proxier.Follower.
func (p *familyPorts) Follow(ctx context.Context, d proxier.Desired) error {
	changed := false
	for _, name := range d.Changed {
		var now uint16
		if svc := d.Snapshot.Get(name); svc != nil {
			now = svc.NodePort
		}
		old := p.have[name]
		if old == now {
			continue
		}
		if old != 0 {
			if p.count[old]--; p.count[old] == 0 {
				delete(p.count, old)
				changed = true
			}
			delete(p.have, name)
		}
		if now != 0 {
			changed = changed || p.count[now] == 0
			p.count[now]++
			p.have[name] = now
		}
	}
	if changed {
		p.all.set(ctx, p.family, p.count)
	}
	return nil
}
