// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/nat/ipset"
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
func newTraffic(ctx context.Context, cfg *agentConfig, node *nodeKernel, mode backend, reg prometheus.Registerer) trafficMetrics {
	if tables, ok := mode.(*nftablesBackend); cfg.counted.Empty() || ok && !tables.counting {
		return trafficMetrics{}
	}
	var directions []string
	switch {
	case mode.name() != iptablesName:
		directions = []string{"in", "out"}
	case len(node.sets) == len(node.families):
		directions = []string{"in"}
	default:
		klog.FromContext(ctx).Info("Of Services connections are counted, and no packets: rules cannot use sets here")
	}
	return trafficMetrics{traffic.New(traffic.Config{
		Directions: directions, Registerer: reg, Logger: klog.FromContext(ctx),
	})}
}

// roster returns which ports are counted one by one in a family, nil where nothing is.
func (c *agentConfig) roster() *traffic.Roster {
	if c.counted.Empty() {
		return nil
	}
	return traffic.NewRoster(c.counted, c.Traffic.Limit)
}

// followers returns what is to follow a family's rules.
func (t trafficMetrics) followers(f model.Family, own served) []proxier.Follower {
	if t.collector == nil {
		return nil
	}
	return []proxier.Follower{own.counters, t.collector.Family(f, own.counters, own.roster)}
}

// run has metrics begin once all rules are in place for the first time.
func (t trafficMetrics) run(ctx context.Context, ready <-chan struct{}) {
	if t.collector != nil {
		t.collector.Begin(ctx, ready)
	}
}

// connectionsAndPackets are the counters of iptables mode.
type connectionsAndPackets struct {
	*iptables.Traffic
	packets *iptables.Packets
}

// Follow implements proxier.Follower.
func (c connectionsAndPackets) Follow(ctx context.Context, d proxier.Desired) error {
	return errors.Join(c.Traffic.Follow(ctx, d), c.packets.Follow(ctx, d))
}

// Read implements traffic.Source.
func (c connectionsAndPackets) Read(ctx context.Context, yield func(traffic.Sample)) error {
	return errors.Join(c.Traffic.Read(ctx, yield), c.packets.Read(ctx, yield))
}

// packetCounters returns what counts packets in iptables mode, nil for nothing.
func packetCounters(ctx context.Context, cfg *agentConfig, node *nodeKernel, f model.Family) *iptables.Packets {
	if cfg.counted.Empty() || node.sets[f] == nil {
		return nil
	}
	p, err := iptables.NewPackets(trafficSet(f))
	if err != nil {
		klog.FromContext(ctx).Error(err, "Packets to Services are not counted", "ipFamily", f)
		return nil
	}
	return p
}

func trafficSet(f model.Family) *ipset.Set {
	return ipset.NewCountingSet(iptables.TrafficSet(f == model.IPv6), ipset.HashIPPort, f == model.IPv6)
}

// unusedTrafficSet removes the set by which packets of one family were counted, once no
// rule names it any more.
func unusedTrafficSet(f model.Family) *once {
	return &once{do: func(context.Context) error {
		if err := trafficSet(f).Destroy(); errors.Is(err, ipset.ErrBusy) {
			return errNotYet // the kernel frees it in a moment
		}
		return nil // where there are no sets there is none
	}}
}

// countedRules reads a family's rules with their counters.
func (n *nodeKernel) countedRules(f model.Family) iptables.CountedRules {
	return func(ctx context.Context, t ruleset.Table, visit func(ruleset.ChainKey, uint64, []byte)) error {
		return n.commands[f].Counters(ctx, ruleset.SystemExec{}, t, visit)
	}
}
