// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"k8s.io/klog/v2"

	"fairlead/nat/egress"
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
	out                  egressRules
	others               *lookout // nil where it does not matter who else masquerades
	owned                func(owned bool, reason string)

	// rules are what was last decided, from a Config, and staged is set once they are
	// all that is wanted.
	rules  *egress.Rules
	from   *egress.Config
	staged bool
}

// egressRules is where it is written what pods need.
type egressRules interface {
	// keep leaves what an earlier agent has left.
	keep(ctx context.Context) error
	// write has the next sync write rules. Others may have changed what there is where
	// check is set. An error says that these are not the best ones.
	write(r egress.Rules, check bool) error
	// tidy removes what no rule uses any more, after a sync.
	tidy() error
}

var (
	_ proxier.Contributor = (*podEgress)(nil)
	_ proxier.Follower    = (*podEgress)(nil)
)

// Contribute implements proxier.Contributor.
func (e *podEgress) Contribute(ctx context.Context, d proxier.Desired) {
	config := e.config.current.Load()
	if config == nil && e.when != switchOff { // what an earlier agent has made of the file is the best there is
		if err := e.out.keep(ctx); err != nil {
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
	if e.staged && !d.Verify && e.from == config && e.rules != nil &&
		slices.Equal(e.rules.Pods, rules.Pods) && slices.Equal(e.rules.Cluster, rules.Cluster) {
		return
	}
	err := e.out.write(rules, d.Verify)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot use a set, there is a rule for each destination that is not masqueraded", "ipFamily", e.family)
	}
	e.from, e.rules, e.staged = config, &rules, err == nil
}

// Follow implements proxier.Follower.
func (e *podEgress) Follow(_ context.Context, d proxier.Desired) error {
	if !d.Prune {
		return nil
	}
	return e.out.tidy()
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
func (b *beside) podEgress(ctx context.Context, f model.Family, own served) *podEgress {
	e := &podEgress{
		family: f, when: switchFlag(b.cfg.PodMasquerade.Mode), clusterCIDRs: b.cfg.podCIDRs[f], nodePodCIDRs: b.cfg.nodePodCIDRs,
		random: b.cfg.PodMasquerade.RandomFully, config: b.egress, out: b.egressRules(f, own),
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
