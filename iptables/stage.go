// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat/ipset"
	"fairlead/proxier/model"
)

// portWork is a port that is being rendered.
type portWork struct {
	name model.ServicePortName
	port *model.ServicePort // nil where it is gone
	// renderer, sets and loops are what the port's rules depend on besides.
	renderer
	sets  map[string]bool
	loops []ipset.Element
	rules portRules
}

// atATime is how many ports are rendered before they are staged, so that what is
// rendered does not wait for long, nor the processors.
const atATime = 512

// stagePorts renders the ports that have changed: on all processors, as what the
// rules of all Services take is time in which none of them works.
func (m *Mode) stagePorts(ctx context.Context, changed map[model.ServicePortName]bool, in *model.Snapshot, staged map[ruleset.ChainKey]*ruleset.Chain) {
	if len(changed) > atATime {
		m.engine.Stage(staged)
		m.engine.Early(ctx)
	}
	var work []portWork
	flush := func() {
		renderAll(work)
		for i := range work {
			m.stagePort(&work[i], staged)
		}
		if len(work) == atATime { // of all Services, the engine's list is enough
			m.engine.Stage(staged)
			clear(staged)
		}
		work = work[:0]
	}
	for name, is := range changed {
		if !is {
			continue
		}
		if work = append(work, m.prepare(name, in.Get(name))); len(work) == atATime {
			flush()
		}
	}
	flush()
}

// prepare makes what the rules of a port name: sets.
func (m *Mode) prepare(name model.ServicePortName, port *model.ServicePort) portWork {
	w := portWork{name: name, port: port, renderer: m.render}
	delete(m.loops.refused, name)
	if port == nil {
		return w
	}
	if w.compacts(port) {
		w.loops, w.Compact = m.loops.ensure(port)
	}
	w.sets = m.sets.ensure(port)
	return w
}

// renderAll renders each port, in parallel where there are many.
func renderAll(work []portWork) {
	const few = 16
	each := max(few, len(work)/runtime.GOMAXPROCS(0)+1)
	var all sync.WaitGroup
	for part := range slices.Chunk(work, each) {
		render := func() {
			s := newScratch()
			for i := range part {
				if w := &part[i]; w.port != nil {
					w.rules = w.renderer.port(w.port, w.sets, s)
				}
			}
		}
		if len(work) <= each {
			render()
		} else {
			all.Go(render)
		}
	}
	all.Wait()
}

// stagePort stages the chains of a port, and takes away what it had.
func (m *Mode) stagePort(w *portWork, staged map[ruleset.ChainKey]*ruleset.Chain) {
	old, now := m.ports[w.name], &w.rules
	m.sets.leave(old.sets, now.sets)
	m.loops.replace(old.loops, w.loops)
	m.engine.Feed(now.names, now.chains)
	for i, chain := range now.names {
		staged[ruleset.ChainKey{Table: ruleset.NAT, Name: chain}] = &now.chains[i]
	}
	for _, chain := range old.chains {
		if key := (ruleset.ChainKey{Table: ruleset.NAT, Name: chain}); staged[key] == nil {
			staged[key] = nil
		}
	}
	m.portals.Replace(idiom.UnitOf(w.name), old.shared, now.shared)
	if w.port == nil {
		delete(m.ports, w.name)
		delete(m.sets.refused, w.name)
		return
	}
	m.ports[w.name] = portState{
		chains: now.names, shared: now.shared, sets: now.sets, loops: w.loops,
		endpoints: endpointsOf(w.port),
	}
}
