// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/nat/nfacct"
	"fairlead/nat/sysctl"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// backend is a way to program the kernel: what a mode brings beside what all have.
type backend interface {
	name() string
	// periods are the least time between two syncs, and the time between two checks.
	periods() (minSync, sync time.Duration)
	// family returns what serves one family. It is called once for each.
	family(ctx context.Context, f model.Family) (served, error)
}

// served is what serves one family.
type served struct {
	mode    proxier.Mode
	engine  *ruleset.Engine // nil without iptables
	annex   annex           // where what there is besides Services has its rules, nil for chains
	watcher watcher
	table   <-chan struct{} // tells what others change of a mode's table, nil without
	// followers are those of this mode alone, and adopters tell what was there before.
	followers []proxier.Follower
	adopters  []adopter
	// moved returns, once, where UDP flows went by something that has gone since; it
	// may be nil.
	moved func() []netip.AddrPort
	// counters are nil where the mode counts nothing for Services, and so is roster, which
	// says what has series of its own.
	counters counters
	roster   *traffic.Roster
	// packets is set where these need a set.
	packets bool
}

// adopter tells what it has found.
type adopter interface {
	// AdoptedUDP returns where clients could send UDP to before the first Sync.
	AdoptedUDP() []netip.AddrPort
}

// newBackend returns the first of the modes that this node can.
func newBackend(ctx context.Context, cfg *agentConfig, node *nodeKernel, settings *sysctl.Settings, reg prometheus.Registerer) (backend, error) {
	var last error
	for _, name := range cfg.modes {
		if name == iptablesName && len(node.commands) == len(node.families) {
			b := &iptablesBackend{cfg: cfg, node: node, settings: settings, metrics: iptables.NewMetrics(reg, node.families)}
			b.device.Store(int32(len(node.families)))
			nfacct.RegisterLocalhostAccepted(reg)
			return b, nil
		}
		b, err := newOther(ctx, name, cfg, node, settings, reg)
		if err == nil {
			return b, nil
		}
		if len(cfg.modes) == 1 {
			return nil, fmt.Errorf("%s %s: %w", cfg.Where("proxy-mode"), name, err)
		}
		klog.FromContext(ctx).Info("This node cannot have a mode that is preferred", "proxyMode", name, "reason", err.Error())
		last = fmt.Errorf("%s %s: none of these is possible here; %s: %w", cfg.Where("proxy-mode"), cfg.Mode, name, err)
	}
	return nil, last
}

// newOther returns a mode that not every node can have.
func newOther(ctx context.Context, name string, cfg *agentConfig, node *nodeKernel, settings *sysctl.Settings, reg prometheus.Registerer) (backend, error) {
	if name != nftablesName && len(node.commands) < len(node.families) {
		return nil, ruleset.ErrNoCommand
	}
	if name == nftablesName {
		return newNftablesBackend(ctx, cfg, node, settings, reg)
	}
	return newIPVSBackend(ctx, cfg, node, settings)
}

// iptablesBackend is iptables mode.
type iptablesBackend struct {
	cfg      *agentConfig
	node     *nodeKernel
	settings *sysctl.Settings
	metrics  *iptables.Metrics
	// device counts the families that may have left something on IPVS mode's.
	device atomic.Int32
}

func (b *iptablesBackend) name() string { return iptablesName }

func (b *iptablesBackend) periods() (time.Duration, time.Duration) {
	return b.cfg.IPTables.MinSyncPeriod, b.cfg.IPTables.SyncPeriod
}

func (b *iptablesBackend) family(ctx context.Context, f model.Family) (served, error) {
	cfg, node := b.cfg, b.node
	rules := iptables.RenderConfig{
		Family:             f,
		PodCIDRs:           cfg.clusterCIDRs[f],
		PodInterface:       cfg.podInterface,
		NodePodCIDRs:       cfg.nodePodCIDRs,
		MasqueradeAll:      cfg.IPTables.MasqueradeAll,
		MasqueradeBit:      cfg.IPTables.MasqueradeBit,
		LocalhostNodePorts: cfg.IPTables.LocalhostNodePorts,
		LocalhostHostPorts: cfg.HostPorts.Localhost,
	}
	adaptTo(ctx, b.settings, &rules)
	if !rules.KeepInvalid {
		rules.InvalidCounter = node.counter(ctx, f, nfacct.InvalidDropped)
	}
	loops := node.loops(f)
	rules.Compact = cfg.IPTables.Compact && node.canCompact(ctx, loops, rules)
	var engine *ruleset.Engine // until there is one, nobody knows whose a chain is
	packets := packetCounters(ctx, cfg, node, f)
	var more []ruleset.Table
	if packets != nil {
		more = []ruleset.Table{ruleset.Mangle}
	}
	w := node.watcher(ctx, f, func(k ruleset.ChainKey) bool { return engine == nil || engine.Owns(k) }, more...)
	reading := node.readAhead(ctx, f, w)
	engine = node.engine(f, cfg.contributions(ctx, f, node, iptables.Contribution(rules))...)
	loopBack := ""
	if rules.Compact {
		loopBack = loops.Name()
	}
	localhost := ""
	if f == model.IPv4 && cfg.IPTables.LocalhostNodePorts {
		localhost = node.counter(ctx, f, nfacct.LocalhostAccepted)
	}
	engine.Stage(nat.Chains(cfg.IPTables.MasqueradeBit, loopBack, idiom.FromLocalhost(localhost)...))
	watched(engine, w)
	engine.Use(reading)
	mode := iptables.New(rules, engine, node.sets[f], loops, b.metrics)
	left := &ipvsLeftovers{
		family: f, device: &b.device, exclude: cfg.excludeCIDRs, keepLoops: rules.Compact, grace: cfg.IPVS.GracePeriod,
	}
	out := served{
		mode: mode, engine: engine, watcher: w, followers: []proxier.Follower{left}, adopters: []adopter{mode}, moved: left.moved,
		roster: cfg.roster(),
	}
	connections := iptables.NewTraffic(node.countedRules(f))
	if out.counters, out.packets = connections, packets != nil; out.packets {
		engine.Stage(packets.Chains())
		out.counters = connectionsAndPackets{connections, packets}
	}
	return out, nil
}
