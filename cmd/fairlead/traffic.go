// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// counters tell what the Services of one family carry, and follow which there are.
type counters interface {
	traffic.Source
	proxier.Follower
}

// trafficMetrics tell what Services carry.
type trafficMetrics struct {
	collector *traffic.Collector // nil where nobody asked, or the mode does not count
}

// newTraffic returns what tells of the Services that were selected.
func newTraffic(ctx context.Context, cfg *agentConfig, mode string, reg prometheus.Registerer) trafficMetrics {
	if cfg.counted.Empty() {
		return trafficMetrics{}
	}
	if mode == nftablesName {
		klog.FromContext(ctx).Info("Nothing is counted for Services in nftables mode, --service-metrics has no effect")
		return trafficMetrics{}
	}
	return trafficMetrics{traffic.New(traffic.Config{
		Selection: cfg.counted, Limit: cfg.Traffic.Limit, Packets: mode == ipvsName, Registerer: reg, Logger: klog.FromContext(ctx),
	})}
}

// followers returns what is to follow a family's rules.
func (t trafficMetrics) followers(f model.Family, c counters) []proxier.Follower {
	if t.collector == nil {
		return nil
	}
	return []proxier.Follower{c, t.collector.Family(f, c)}
}

// run has metrics begin once all rules are in place for the first time.
func (t trafficMetrics) run(ctx context.Context, ready <-chan struct{}) {
	if t.collector != nil {
		t.collector.Begin(ctx, ready)
	}
}

// countedRules reads a family's rules with their counters.
func (n *nodeKernel) countedRules(f model.Family) iptables.CountedRules {
	return func(ctx context.Context, t ruleset.Table, visit func(ruleset.ChainKey, uint64, []byte)) error {
		return n.commands[f].Counters(ctx, ruleset.SystemExec{}, t, visit)
	}
}
