// SPDX-License-Identifier: Apache-2.0

// Package iptables is the mode that renders Services into iptables rules.
//
// A packet for a cluster IP goes KUBE-SERVICES → KUBE-SVC-… (chooses an
// endpoint at random) → KUBE-SEP-… (translates to it, which in the compact form
// KUBE-SVC-… does); chain names, comments
// and marks are kube-proxy's. Rendering is pure; the rules are applied by the
// engine in package ruleset.
package iptables

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Mode is iptables mode for one family. It implements proxier.Mode.
type Mode struct {
	render renderer
	engine *ruleset.Engine
	// metrics may be nil.
	metrics *Metrics

	// ports is what each port of the last snapshot rendered has.
	ports   map[model.ServicePortName]portState
	portals *idiom.Portals
	// endpoints is the number of all ports' endpoints.
	endpoints int
	sets      clientSets
	loops     loopSet
	// node is that of the last Sync.
	node proxier.NodeState
	// started is set once the fixed chains are staged.
	started bool
	// adopted is what AdoptedUDP returns, once it is known.
	adopted []netip.AddrPort
	known   bool
}

// portState is what is known of a port that has been rendered. What is in its
// chains the engine knows.
type portState struct {
	chains    []string
	shared    []idiom.Place
	sets      map[string]bool
	loops     []ipset.Element
	endpoints int
}

var _ proxier.Mode = (*Mode)(nil)

// New returns a Mode that writes through engine, which must have been made
// with Contribution and with nat's. Without sets, session affinity knows 100
// clients for each endpoint. The compact form needs loops, which else, where they
// are given, are removed.
func New(cfg RenderConfig, engine *ruleset.Engine, sets Sets, loops Loops, metrics *Metrics) *Mode {
	return &Mode{
		render: newRenderer(cfg), engine: engine, metrics: metrics,
		ports: map[model.ServicePortName]portState{}, portals: portals(cfg.Family), sets: newClientSets(sets),
		loops: newLoopSet(loops, cfg.Compact),
	}
}

// Sync implements proxier.Mode.
func (m *Mode) Sync(ctx context.Context, d proxier.Desired) (proxier.Report, error) {
	start := time.Now()
	m.sets.made = 0
	m.engine.Stage(m.stage(ctx, d)) // the sets are there before the rules that name them
	if !m.known {
		// What is read is compared with what is wanted as it comes. An error is left to
		// Apply, which reads the same rules.
		var err error
		m.adopted, err = idiom.AdoptedUDP(ctx, m.engine)
		m.known = err == nil
	}
	res, err := m.engine.Apply(ctx, ruleset.Options{Prune: d.Prune, Verify: d.Verify, Settle: d.Settle})
	if err == nil && d.Prune {
		m.sets.destroy()
		if len(res.Refused) == 0 { // else rules may lead where they did
			m.loops.clear()
		}
	}
	m.metrics.applied(m.render.Family, m.engine, res, time.Since(start))
	out := report(res)
	out.Written += m.sets.made
	out.Refused = append(out.Refused, m.sets.report()...)
	m.loops.report(&out)
	return out, err
}

// stage renders what changed into the chains to hand to the engine. Of those of many
// ports it has handed over some already.
func (m *Mode) stage(ctx context.Context, d proxier.Desired) map[ruleset.ChainKey]*ruleset.Chain {
	staged := map[ruleset.ChainKey]*ruleset.Chain{}
	roots := map[ruleset.ChainKey]bool{} // to put together again
	if !m.started {
		maps.Copy(staged, m.render.fixedChains())
		for _, p := range portalKinds() {
			roots[p.Root] = true
		}
		m.started = true
	}
	changed := map[model.ServicePortName]bool{}
	for _, name := range slices.Concat(m.checkSets(d), m.loops.check(d.Verify), d.Changed) {
		changed[name] = true
	}
	if affected := m.affected(m.stageNode(d, staged, roots), d); affected != nil {
		for p := range d.Snapshot.All() {
			changed[p.Name] = changed[p.Name] || affected(p)
		}
	}
	m.fillLoops(changed, d.Snapshot)
	m.stagePorts(ctx, changed, d.Snapshot, staged)
	m.portals.Stage(staged, roots, func(root ruleset.ChainKey) []ruleset.Rule {
		if root == natServices {
			return m.render.nodePortRules(m.node.NodePorts)
		}
		return nil
	})
	return staged
}

// fillLoops adds what ports need of the set of endpoints that reach themselves, of
// all in one go. Where the kernel refuses, each port tries by itself.
func (m *Mode) fillLoops(changed map[model.ServicePortName]bool, s *model.Snapshot) {
	lacks := map[ipset.Element]bool{}
	for name, is := range changed {
		if p := s.Get(name); is && p != nil && m.render.compacts(p) {
			for _, e := range m.loops.lacks(loopsOf(p)) {
				lacks[e] = true
			}
		}
	}
	_ = m.loops.add(slices.Collect(maps.Keys(lacks)))
}

// checkSets reads what sets there are, where that is not known or is to be
// verified, and returns the ports that are without some of theirs.
func (m *Mode) checkSets(d proxier.Desired) []model.ServicePortName {
	if m.sets.kernel == nil || m.sets.listed && !d.Verify {
		return nil
	}
	m.sets.list(m.ports)
	return m.sets.lacking(m.ports)
}

// nodeChange tells what has changed of the node that ports depend on.
type nodeChange struct{ podCIDRs, ip bool }

// stageNode renders what depends on the node alone, where that has changed.
func (m *Mode) stageNode(d proxier.Desired, staged map[ruleset.ChainKey]*ruleset.Chain, roots map[ruleset.ChainKey]bool) nodeChange {
	if !m.node.NodePorts.Equal(d.Node.NodePorts) {
		roots[natServices] = true
	}
	c := nodeChange{
		podCIDRs: m.render.NodePodCIDRs && !slices.Equal(m.node.PodCIDRs, d.Node.PodCIDRs),
		ip:       m.node.IP != d.Node.IP,
	}
	if c.podCIDRs {
		m.render.PodCIDRs = idiom.Writable(d.Node.PodCIDRs)
		staged[ruleset.ChainKey{Table: ruleset.NAT, Name: idiom.MarkOutside}] = nil
		maps.Copy(staged, m.render.fixedChains())
	}
	m.render.nodeIP = d.Node.IP
	m.node = d.Node
	return c
}

// manyEndpoints is how many endpoints there are at most while all rules have
// comments, which are 40 % of the text. It is kube-proxy's bound, so that taking
// over from it finds rules that are the same.
const manyEndpoints = 1000

// affected returns which ports are to be rendered although they have not
// changed, nil for none.
func (m *Mode) affected(c nodeChange, d proxier.Desired) func(*model.ServicePort) bool {
	for _, name := range d.Changed {
		m.endpoints += endpointsOf(d.Snapshot.Get(name)) - m.ports[name].endpoints
	}
	bare := m.endpoints > manyEndpoints
	all := c.podCIDRs || bare != m.render.bare
	m.render.bare = bare
	if !all && !c.ip {
		return nil
	}
	return func(p *model.ServicePort) bool { return all || p.Restricted }
}

// endpointsOf returns how many endpoints a port has, nil being none. As
// kube-proxy does, it counts those, too, that no rule leads to.
func endpointsOf(p *model.ServicePort) int {
	if p == nil {
		return 0
	}
	return p.Known
}

// report puts an engine's result in a mode's words.
func report(res ruleset.Result) proxier.Report {
	out := proxier.Report{Unverified: res.Unverified, Unsettled: res.Unsettled}
	for _, k := range res.Drift {
		out.Repaired = append(out.Repaired, k.String())
	}
	for _, n := range res.Written {
		out.Written += n
	}
	out.Refused = idiom.Refusals(res)
	return out
}

// AdoptedUDP returns where clients could send UDP to by the rules that the first
// Sync found, as idiom.AdoptedUDP does.
func (m *Mode) AdoptedUDP() []netip.AddrPort { return m.adopted }
