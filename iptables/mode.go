// SPDX-License-Identifier: Apache-2.0

// Package iptables is the mode that renders Services into iptables rules.
//
// A packet for a cluster IP goes KUBE-SERVICES → KUBE-SVC-… (chooses an
// endpoint at random) → KUBE-SEP-… (translates to it); chain names, comments
// and marks are kube-proxy's. Rendering is pure; the rules are applied by the
// engine in package ruleset.
package iptables

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"fairlead/iptables/ruleset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Mode is iptables mode for one family. It implements proxier.Mode.
type Mode struct {
	render renderer
	engine *ruleset.Engine
	// metrics may be nil.
	metrics *Metrics

	// ports are the rules of every port in the last snapshot rendered. Of
	// their chains only the names are kept: the engine has the rules.
	ports map[model.ServicePortName]portRules
	sets  clientSets
	// node is that of the last Sync.
	node proxier.NodeState
	// started is set once the fixed chains are staged.
	started bool
	// adopted is what AdoptedUDP returns.
	adopted []netip.AddrPort
}

var _ proxier.Mode = (*Mode)(nil)

// New returns a Mode that writes through engine, which must have been made
// with Contribution and with nat's. Without sets, session affinity knows 100
// clients for each endpoint.
func New(cfg RenderConfig, engine *ruleset.Engine, sets Sets, metrics *Metrics) *Mode {
	return &Mode{
		render: newRenderer(cfg), engine: engine, metrics: metrics,
		ports: map[model.ServicePortName]portRules{}, sets: newClientSets(sets),
	}
}

// Sync implements proxier.Mode.
func (m *Mode) Sync(ctx context.Context, d proxier.Desired) (proxier.Report, error) {
	start := time.Now()
	m.adopt(ctx)
	m.sets.made = 0
	m.engine.Stage(m.stage(d)) // the sets are there before the rules that name them
	res, err := m.engine.Apply(ctx, ruleset.Options{Prune: d.Prune, Verify: d.Verify})
	if err == nil && d.Prune {
		m.sets.destroy()
	}
	m.metrics.applied(m.render.Family, m.engine, res, time.Since(start))
	out := report(res)
	out.Written += m.sets.made
	out.Refused = append(out.Refused, m.sets.report()...)
	return out, err
}

// stage renders what changed into the chains to hand to the engine.
func (m *Mode) stage(d proxier.Desired) map[ruleset.ChainKey]*ruleset.Chain {
	staged := map[ruleset.ChainKey]*ruleset.Chain{}
	stale := map[ruleset.ChainKey]bool{} // shared chains to put together again
	if !m.started {
		maps.Copy(staged, m.render.fixedChains())
		for _, k := range sharedChains() {
			stale[k] = true
		}
		m.started = true
	}
	again := m.checkSets(d)
	m.stageNode(d, staged, stale)
	for _, name := range append(again, d.Changed...) {
		m.stagePort(name, d.Snapshot.Get(name), staged, stale)
	}
	if len(stale) > 0 {
		m.stageShared(staged, stale)
	}
	return staged
}

// checkSets reads what sets there are, where that is not known or is to be
// verified, and returns the ports that are without some of theirs.
func (m *Mode) checkSets(d proxier.Desired) []model.ServicePortName {
	if m.sets.listed && !d.Verify {
		return nil
	}
	m.sets.list(m.ports)
	return m.sets.lacking(m.ports)
}

// stageNode renders what depends on the node, where that has changed.
func (m *Mode) stageNode(d proxier.Desired, staged map[ruleset.ChainKey]*ruleset.Chain, stale map[ruleset.ChainKey]bool) {
	if !m.node.NodePorts.Equal(d.Node.NodePorts) {
		stale[natServices] = true
	}
	podCIDRs := m.render.NodePodCIDRs && !slices.Equal(m.node.PodCIDRs, d.Node.PodCIDRs)
	if podCIDRs {
		m.render.PodCIDRs = writable(d.Node.PodCIDRs)
		staged[ruleset.ChainKey{Table: ruleset.NAT, Name: markOutside}] = nil
		maps.Copy(staged, m.render.fixedChains())
	}
	ip := m.node.IP != d.Node.IP
	m.render.nodeIP = d.Node.IP
	m.node = d.Node
	if !podCIDRs && !ip {
		return
	}
	for p := range d.Snapshot.All() {
		if podCIDRs || p.Restricted {
			m.stagePort(p.Name, p, staged, stale)
		}
	}
}

// stagePort renders one port, nil where it is gone.
func (m *Mode) stagePort(name model.ServicePortName, port *model.ServicePort, staged map[ruleset.ChainKey]*ruleset.Chain, stale map[ruleset.ChainKey]bool) {
	old := m.ports[name]
	var now portRules
	if port != nil {
		now = m.render.port(port, m.sets.ensure(port))
	}
	m.sets.leave(old.sets, now.sets)
	for key := range old.chains {
		if _, still := now.chains[key]; !still {
			staged[key] = nil
		}
	}
	for key, chain := range now.chains {
		staged[key] = chain
		now.chains[key] = nil
	}
	for _, key := range sharedChains() {
		if !now.equal(old, key) {
			stale[key] = true
		}
	}
	if port == nil {
		delete(m.ports, name)
		delete(m.sets.refused, name)
	} else {
		m.ports[name] = now
	}
}

// stageShared puts shared chains together from the rules of all ports.
func (m *Mode) stageShared(staged map[ruleset.ChainKey]*ruleset.Chain, stale map[ruleset.ChainKey]bool) {
	names := slices.SortedFunc(maps.Keys(m.ports), model.ServicePortName.Compare)
	for key := range stale {
		c := &ruleset.Chain{}
		for _, name := range names {
			c.Rules = append(c.Rules, m.ports[name].shared[key]...)
		}
		if key == natServices {
			c.Rules = append(c.Rules, m.render.nodePortRules(m.node.NodePorts)...)
		}
		staged[key] = c
	}
}

// report puts an engine's result in a mode's words.
func report(res ruleset.Result) proxier.Report {
	out := proxier.Report{Repaired: len(res.Drift), Unverified: res.Unverified}
	for _, n := range res.Written {
		out.Written += n
	}
	for _, r := range res.Refused {
		what := r.Unit
		if what == "" {
			what = fmt.Sprintf("rule %s in %s", strings.TrimSpace(string(r.Rule)), r.Chain)
		}
		out.Refused = append(out.Refused, fmt.Sprintf("%s: %v", what, r.Err))
	}
	return out
}
