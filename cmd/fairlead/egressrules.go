// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"fairlead/iptables/ruleset"
	"fairlead/nat/egress"
	"fairlead/nat/ipset"
	"fairlead/nftables"
	"fairlead/proxier/model"
)

// egressRules returns where a mode has what pods need to reach the outside.
func (b *beside) egressRules(f model.Family, own served) egressRules {
	var chains *egressChains
	if own.engine != nil {
		var set egress.Set // stays nil where rules cannot use sets
		if b.node.sets[f] != nil {
			set = ipset.NewSet(egress.SetName(f == model.IPv6), ipset.HashNet, f == model.IPv6)
		}
		chains = &egressChains{engine: own.engine, exempt: egress.NewExempt(set)}
	}
	if own.annex != nil {
		return &egressSets{annex: own.annex, chains: chains}
	}
	return chains
}

// egressChains are chains of iptables, and a set where these are better off with one.
type egressChains struct {
	engine *ruleset.Engine
	exempt *egress.Exempt
	// staged is what was staged last, and dropped is set once the set is known to be
	// gone.
	staged  *egress.Rules
	dropped bool
}

var _ egressRules = (*egressChains)(nil)

func (c *egressChains) keep(ctx context.Context) error { return c.engine.Adopt(ctx, egress.Keys()...) }

func (c *egressChains) write(r egress.Rules, check bool) error {
	if check {
		c.exempt.Check()
	}
	r, err := c.exempt.Use(r)
	if c.staged == nil || !c.staged.Same(r) {
		c.staged = &r
		c.engine.Stage(r.Chains())
	}
	return err
}

// tidy removes the set that no rule names any more.
func (c *egressChains) tidy() error {
	used := c.staged == nil || c.staged.Set != ""
	if c.dropped = c.dropped && !used; c.dropped || used {
		return nil
	}
	err := c.exempt.Drop()
	c.dropped = err == nil
	return err
}

// egressSets are sets of nf_tables, beside a chain of iptables where there is that:
// what its policy drops a table cannot let through.
type egressSets struct {
	annex  annex
	chains *egressChains // nil without iptables
}

var _ egressRules = (*egressSets)(nil)

func (s *egressSets) keep(ctx context.Context) error {
	if s.chains == nil {
		return nil
	}
	return s.chains.keep(ctx)
}

func (s *egressSets) write(r egress.Rules, _ bool) error {
	var p nftables.PodMasquerade
	if len(r.Pods) > 0 {
		if exempt, all := r.Exempt(); !all {
			p = nftables.PodMasquerade{Pods: r.Pods, Exempt: exempt}
		}
	}
	s.annex.SetPodMasquerade(p)
	if s.chains != nil && (s.chains.staged == nil || !s.chains.staged.Same(r)) {
		s.chains.staged = &r
		s.chains.engine.Stage(r.Forwarding())
	}
	return nil
}

// tidy removes the set that another mode has left.
func (s *egressSets) tidy() error {
	if s.chains == nil {
		return nil
	}
	return s.chains.tidy()
}
