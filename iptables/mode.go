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
	// started is set once the fixed chains are staged.
	started bool
}

var _ proxier.Mode = (*Mode)(nil)

// New returns a Mode that writes through engine, which must have been made
// with Contribution and with nat's.
func New(cfg RenderConfig, engine *ruleset.Engine, metrics *Metrics) *Mode {
	return &Mode{
		render: newRenderer(cfg), engine: engine, metrics: metrics,
		ports: map[model.ServicePortName]portRules{},
	}
}

// Sync implements proxier.Mode.
func (m *Mode) Sync(ctx context.Context, d proxier.Desired) (proxier.Report, error) {
	start := time.Now()
	m.engine.Stage(m.stage(d))
	res, err := m.engine.Apply(ctx, ruleset.Options{Prune: d.Prune, Verify: d.Verify})
	m.metrics.applied(m.render.Family, m.engine, res, time.Since(start))
	return report(res), err
}

// stage renders what changed into the chains to hand to the engine.
func (m *Mode) stage(d proxier.Desired) map[ruleset.ChainKey]*ruleset.Chain {
	staged := map[ruleset.ChainKey]*ruleset.Chain{}
	dispatch := !m.started
	if !m.started {
		m.started = true
		maps.Copy(staged, m.render.fixedChains())
	}
	for _, name := range d.Changed {
		old := m.ports[name]
		var now portRules
		if port := d.Snapshot.Get(name); port != nil {
			now = m.render.port(port)
		}
		for key := range old.chains {
			if _, still := now.chains[key]; !still {
				staged[key] = nil
			}
		}
		for key, chain := range now.chains {
			staged[key] = chain
			now.chains[key] = nil
		}
		if now.dispatch != old.dispatch || now.reject != old.reject {
			dispatch = true
		}
		m.keep(name, now)
	}
	if dispatch {
		maps.Copy(staged, m.dispatchChains())
	}
	return staged
}

func (m *Mode) keep(name model.ServicePortName, r portRules) {
	if r.dispatch == "" && r.reject == "" {
		delete(m.ports, name)
	} else {
		m.ports[name] = r
	}
}

// dispatchChains returns the chains that lead to Services, or refuse them.
func (m *Mode) dispatchChains() map[ruleset.ChainKey]*ruleset.Chain {
	lead, reject := &ruleset.Chain{}, &ruleset.Chain{}
	for _, name := range slices.SortedFunc(maps.Keys(m.ports), model.ServicePortName.Compare) {
		r := m.ports[name]
		if r.dispatch != "" {
			lead.Rules = append(lead.Rules, r.dispatch)
		}
		if r.reject != "" {
			reject.Rules = append(reject.Rules, r.reject)
		}
	}
	lead.Rules = append(lead.Rules, m.render.nodePortRule())
	return map[ruleset.ChainKey]*ruleset.Chain{
		{Table: ruleset.NAT, Name: services}:    lead,
		{Table: ruleset.Filter, Name: services}: reject,
	}
}

// report puts an engine's result in a mode's words.
func report(res ruleset.Result) proxier.Report {
	out := proxier.Report{Repaired: len(res.Drift)}
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
