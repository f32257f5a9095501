// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"k8s.io/klog/v2"

	"fairlead/iptables/ruleset"
	"fairlead/nat/egress"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// podEgress contributes what pods of one family need to reach the outside.
type podEgress struct {
	family model.Family
	// when is whether to: on, off, or auto, which leaves it to others who do.
	when switchFlag
	// clusterCIDRs are those of the family, nodePodCIDRs whether only this node's pods
	// are told from others, and random whether source ports are.
	clusterCIDRs         []netip.Prefix
	nodePodCIDRs, random bool
	config               *egressConfig
	engine               *ruleset.Engine
	exempt               *egress.Exempt
	others               *lookout // nil where it does not matter who else masquerades
	owned                func(owned bool, reason string)

	// rules are what was last decided, from a Config, and staged is set once they are
	// all that is wanted. dropped is set once the set is known to be gone.
	rules           *egress.Rules
	from            *egress.Config
	staged, dropped bool
}

var (
	_ proxier.Contributor = (*podEgress)(nil)
	_ proxier.Follower    = (*podEgress)(nil)
)

// Contribute implements proxier.Contributor.
func (e *podEgress) Contribute(ctx context.Context, d proxier.Desired) {
	config := e.config.current.Load()
	if config == nil && e.when != switchOff { // what an earlier agent has made of the file is the best there is
		if err := e.engine.Adopt(ctx, egress.Keys()...); err != nil {
			klog.FromContext(ctx).V(2).Info("Cannot read what is masqueraded, the sync to come tells", "reason", err.Error())
		}
		e.owned(false, egress.ErrUnknown.Error())
		return
	}
	pods, cluster := e.pods(d)
	who := ""
	if e.others != nil {
		who = e.others.ask(ctx, d.Verify)
	}
	rules := egress.Rules{IPv6: e.family == model.IPv6, RandomFully: e.random}
	reason := ""
	switch {
	case e.when == switchOff:
		reason = "--pod-masquerade=off"
	case len(pods) == 0:
		reason = "it is not known which addresses pods have; give --cluster-cidr"
	case who != "":
		reason = "done by " + who
	default:
		rules.Pods, rules.Cluster, rules.Config = pods, cluster, *config
	}
	e.owned(reason == "", reason)
	if d.Verify {
		e.exempt.Check()
	}
	if e.staged && !d.Verify && e.from == config && e.rules != nil &&
		slices.Equal(e.rules.Pods, rules.Pods) && slices.Equal(e.rules.Cluster, rules.Cluster) {
		return
	}
	rules, err := e.exempt.Use(rules)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot use a set, there is a rule for each destination that is not masqueraded", "ipFamily", e.family)
	}
	e.from, e.staged = config, err == nil
	if e.rules != nil && e.rules.Same(rules) {
		return
	}
	e.rules = &rules
	e.engine.Stage(rules.Chains())
}

// Follow implements proxier.Follower: it removes the set that no rule names any more.
func (e *podEgress) Follow(_ context.Context, d proxier.Desired) error {
	used := e.rules == nil || e.rules.Set != ""
	if e.dropped = e.dropped && !used; e.dropped || used || !d.Prune {
		return nil
	}
	err := e.exempt.Drop()
	e.dropped = err == nil
	return err
}

// pods returns where the pods have their addresses whose packets to masquerade, as
// local detection tells them, and where all of the cluster have. Unless told to do it
// by all means, this node's are not enough to know: to those of other nodes, pods come
// with their own addresses.
func (e *podEgress) pods(d proxier.Desired) (own, cluster []netip.Prefix) {
	own, cluster = e.clusterCIDRs, slices.Concat(e.clusterCIDRs, d.Node.PodCIDRs)
	if e.nodePodCIDRs && len(own) > 0 || len(own) == 0 && e.when == switchOn {
		own = d.Node.PodCIDRs
	}
	return own, cluster
}

// podEgress returns what pods of one family need to reach the outside.
func (b *beside) podEgress(ctx context.Context, f model.Family, engine *ruleset.Engine) *podEgress {
	var set egress.Set // stays nil where rules cannot use sets
	if b.node.sets[f] != nil {
		set = ipset.NewSet(egress.SetName(f == model.IPv6), ipset.HashNet, f == model.IPv6)
	}
	e := &podEgress{
		family: f, when: switchFlag(b.cfg.PodMasquerade.Mode), clusterCIDRs: b.cfg.podCIDRs[f], nodePodCIDRs: b.cfg.nodePodCIDRs,
		random: b.cfg.PodMasquerade.RandomFully, config: b.egress, exempt: egress.NewExempt(set), engine: engine,
		owned: b.owns.of(ctx, f, ownsPodMasquerade),
	}
	if e.when == switchAuto && len(e.clusterCIDRs) > 0 {
		e.others = lookAhead(ctx, func(ctx context.Context) string {
			chain := b.node.chainReader(ctx, f)
			return egress.Others{CNI: os.DirFS(b.cfg.CNIConfDir), Postrouting: chain("POSTROUTING"), Chain: chain, Tables: tables(ctx)}.Who(e.clusterCIDRs)
		})
	}
	return e
}

// egressConfig is what to masquerade of what pods send.
type egressConfig struct {
	file    *egress.File
	current atomic.Pointer[egress.Config] // nil while it is not known
}

// readEgress reads it for the first time. What is wrong with the file the log has.
func readEgress(ctx context.Context, cfg *agentConfig) *egressConfig {
	e := &egressConfig{file: egress.NewFile(cfg.PodMasquerade.Config, cfg.egress)}
	if c, _, err := e.file.Read(ctx); err == nil {
		e.current.Store(&c)
	}
	return e
}

// follow calls changed when it is another than before, until ctx is done.
func (e *egressConfig) follow(ctx context.Context, changed func()) {
	e.file.Follow(ctx, func(c egress.Config) {
		e.current.Store(&c)
		changed()
	})
}
