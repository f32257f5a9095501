// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"fairlead/config"
	"fairlead/iptables/ruleset"
	"fairlead/ipvs/device"
	"fairlead/nat/conntrack"
	"fairlead/nat/nfacct"
	"fairlead/nat/nodeaddr"
	"fairlead/nat/sysctl"
	"fairlead/proxier"
	"fairlead/proxier/health"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/apiserver"
	"fairlead/proxier/source/manifests"
)

// run is the agent: it wires the parts and runs them until ctx is done.
func run(ctx context.Context, cfg *agentConfig, line *config.CommandLine) error {
	small := &footprint{}
	small.adjust()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	reload := newReloader(line, cfg, reg)
	src, err := newSource(cfg, reg)
	if err != nil {
		return err
	}
	node, err := probeNode(ctx, cfg.variant, cfg.needsIptables())
	if err != nil {
		return err
	}
	node.metrics = ruleset.NewMetrics(reg, names(node.families)...)
	settings := sysctl.New("")
	mode, err := newBackend(ctx, cfg, node, settings, reg)
	if err != nil {
		return err
	}
	_, syncPeriod := mode.periods()
	klog.FromContext(ctx).Info("Starting", "version", buildVersion(), "node", cfg.nodeName,
		"proxyMode", mode.name(), "iptablesVariant", node.variant, "families", fmt.Sprint(node.families))

	setOOMScore(ctx, cfg.Settings)
	state, err := health.New(health.Config{Timeout: 2 * syncPeriod, Families: node.families, Stale: stale(src), Registerer: reg})
	if err != nil {
		return err
	}
	metrics := proxier.NewMetrics(reg, node.families)
	tracker := proxier.NewTracker(proxier.TrackerConfig{Families: node.families, Health: state, Metrics: metrics})
	nfacct.RegisterInvalidDropped(reg, invalidDropped(mode)...)

	addrs, err := nodeaddr.List(device.Name) // before the first sync, which needs them
	if err != nil {
		return err
	}
	setAddrs := func(a nodeaddr.Addrs) {
		tracker.Update(model.Changes{NodeAddrs: &model.NodeAddrs{Addrs: a.Addrs, Links: a.Links}})
	}
	setAddrs(addrs)

	beside := newBeside(ctx, cfg, node, settings, src, reg)
	prepareKernel(ctx, settings, sysctl.ConntrackConfig(cfg.Conntrack), node.families)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return nodeaddr.Watch(ctx, device.Name, setAddrs) })
	g.Go(func() error { beside.egress.follow(ctx, tracker.Poke); return nil })
	g.Go(func() error { return src.Run(ctx, tracker) })
	g.Go(func() error { return reload.run(ctx) })
	if cfg.startupTaint.Key != "" {
		g.Go(func() error { removeStartupTaint(ctx, cfg, src, state.Ready()); return nil })
	}
	a := &assembly{
		cfg: cfg, node: node, mode: mode, settings: settings, state: state, metrics: metrics, tracker: tracker, beside: beside, small: small,
		carried: newTraffic(ctx, cfg, node, mode, reg), flowMetrics: conntrack.NewMetrics(reg, node.families),
	}
	a.warner, _ = src.(proxier.Warner) // as apiserver's is; a directory has nowhere to write Events
	g.Go(func() error { a.carried.run(ctx, state.Ready()); return nil })
	for _, f := range node.families {
		if err := a.family(ctx, g, f); err != nil {
			return err
		}
	}
	serve := func(name, addr, flag string, h http.Handler) {
		if addr != "" {
			g.Go(func() error {
				return health.Serve(ctx, health.ServeConfig{Name: name, Addr: addr, Flag: flag, HardFail: cfg.BindHardFail, Handler: h})
			})
		}
	}
	serve("healthz", cfg.healthz, "--healthz-bind-address", state.Handler())
	serve("metrics", cfg.metrics, "--metrics-bind-address", health.MetricsHandler(ctx, health.MetricsConfig{
		Gatherer: reg, ProxyMode: mode.name(), Profiling: cfg.Profiling,
		Config: cfg.Documents(), SetVerbosity: setVerbosity, Flags: line.Flags(), Version: buildVersion(),
	}))
	err = g.Wait()
	klog.FromContext(ctx).Info("Stopped, the rules stay in place")
	return err
}

// assembly are the parts that the families share.
type assembly struct {
	cfg         *agentConfig
	node        *nodeKernel
	mode        backend
	settings    *sysctl.Settings
	state       *health.State
	metrics     *proxier.Metrics
	tracker     *proxier.Tracker
	beside      *beside
	small       *footprint
	carried     trafficMetrics
	flowMetrics *conntrack.Metrics
	warner      proxier.Warner // nil where nobody is told
}

// family wires what serves one family, and has g run it until ctx is done.
func (a *assembly) family(ctx context.Context, g *errgroup.Group, f model.Family) error {
	checks := newHealthChecks(f, a.state, a.warner)
	g.Go(func() error { return checks.ports.Run(ctx) })
	own, err := a.mode.family(ctx, f)
	if err != nil {
		return err
	}
	followers := append(own.followers, nftablesLeftovers(f, a.mode.name() == nftablesName))
	followers = append(followers, a.carried.followers(f, own)...)
	if !own.packets {
		followers = append(followers, unusedTrafficSet(f))
	}
	pods, ports := a.beside.podEgress(ctx, f, own), a.beside.hostPorts(ctx, f, own)
	followers = append(followers, pods, newFlows(f, own, ports, a.flowMetrics), checks, a.small.follower(), servicesOwned{a.beside.owns.of(ctx, f, ownsServices)})
	nodePorts, hostPorts := a.cfg.IPTables.LocalhostNodePorts, a.cfg.HostPorts.Localhost
	if f == model.IPv4 && (nodePorts || hostPorts) {
		followers = append(followers, &localnet{settings: a.settings, nodePorts: nodePorts, hostPorts: hostPorts})
	}
	minSyncPeriod, syncPeriod := a.mode.periods()
	loop := proxier.NewLoop(proxier.LoopConfig{
		Family: f, Mode: own.mode, Contributors: []proxier.Contributor{pods, ports}, Followers: followers, Tracker: a.tracker,
		Health: a.state, Metrics: a.metrics, Warner: a.warner, NodeName: a.cfg.nodeName, NodePortAddresses: a.cfg.nodePorts, NodeIP: a.cfg.nodeIP,
		MinSyncPeriod: minSyncPeriod, SyncPeriod: syncPeriod, Foreign: own.watcher.Wake(), ForeignTable: own.table,
	})
	g.Go(func() error { return own.watcher.Run(ctx) })
	g.Go(func() error { return loop.Run(ctx) })
	return nil
}

var _ proxier.Warner = (*apiserver.Source)(nil)

// stale returns the function that tells what cannot be read; nil for a directory, which
// tells of each file by itself.
func stale(src source.Source) func() map[string]time.Time {
	if s, ok := src.(*apiserver.Source); ok {
		return s.Stale
	}
	return nil
}

func names(families []model.Family) (out []string) {
	for _, f := range families {
		out = append(out, f.String())
	}
	return out
}

// removeStartupTaint lets pods start on the node, once it is ready for them.
func removeStartupTaint(ctx context.Context, cfg *agentConfig, src source.Source, ready <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-ready:
		if s, ok := src.(*apiserver.Source); ok { // a directory has no Node to patch
			s.RemoveTaint(ctx, cfg.startupTaint)
		}
	}
}

// newSource returns the one source that the flags ask for. With a directory of
// manifests no API client is made, even if a kubeconfig is named.
func newSource(cfg *agentConfig, reg prometheus.Registerer) (source.Source, error) {
	if cfg.Manifests != "" {
		return manifests.New(manifests.Config{
			Dir: cfg.Manifests, NodeName: cfg.nodeName, Policy: cfg.policy,
			Metrics: source.NewMetrics(reg), FileMetrics: manifests.NewMetrics(reg),
		})
	}
	client, err := apiserver.NewClient(apiserver.ClientConfig{
		Kubeconfig: cfg.Kubeconfig, Master: cfg.Master, ServiceCIDRs: cfg.policy.ServiceCIDRs, Version: buildVersion(),
		ContentType: cfg.APIContentType, QPS: float32(cfg.APIQPS), Burst: cfg.APIBurst,
	})
	if err != nil {
		return nil, err
	}
	return apiserver.New(apiserver.Config{
		Client: client, NodeName: cfg.nodeName, Policy: cfg.policy, Metrics: source.NewMetrics(reg),
		Pods: switchFlag(cfg.HostPorts.Mode) != switchOff,
	})
}
