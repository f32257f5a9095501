// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat/sysctl"
	"fairlead/nftables"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// initOnly does what takes full privileges, so that an agent that has CAP_NET_ADMIN
// alone, and cannot write kernel settings, finds them as it needs them.
func initOnly(ctx context.Context, cfg *agentConfig) error {
	node, err := probeNode(ctx, cfg.variant, cfg.needsIptables())
	if err != nil {
		return err
	}
	settings := sysctl.New("")
	mode, err := newBackend(ctx, cfg, node, settings, prometheus.NewRegistry()) // which sets those of its mode
	if err != nil {
		return err
	}
	if mode.name() == ipvsName {
		sysctl.Warn(ctx, settings.ReserveNodePorts(ctx))
	}
	prepareKernel(ctx, settings, sysctl.ConntrackConfig(cfg.Conntrack), node.families)
	for _, f := range node.families {
		_, problems := settings.BridgeNetfilter(ctx, f)
		sysctl.Warn(ctx, problems)
	}
	if err := initLocalnet(ctx, cfg, node, mode, settings); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Kernel settings are as they should be as far as nothing was said, done")
	return nil
}

// initLocalnet has the kernel route packets for 127.0.0.1, where that is wanted. The
// rule that keeps the neighbours away is in place before (CVE-2020-8558), and stays.
func initLocalnet(ctx context.Context, cfg *agentConfig, node *nodeKernel, mode backend, settings *sysctl.Settings) error {
	if !slices.Contains(node.families, model.IPv4) || !cfg.HostPorts.Localhost && !(cfg.IPTables.LocalhostNodePorts && mayBeLoopback(cfg.nodePorts)) {
		return nil
	}
	if b, ok := mode.(*nftablesBackend); ok {
		if err := nftables.GuardLoopback(b.kernels[model.IPv4]); err != nil {
			return fmt.Errorf("write the rule that keeps neighbours from 127.0.0.1: %w", err)
		}
		sysctl.Warn(ctx, settings.SetRouteLocalnet(ctx))
		return nil
	}
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: ruleset.SystemExec{}, Commands: node.commands[model.IPv4], Variant: node.variant,
		Contributions: []ruleset.Contribution{{Name: "localnet", Guests: []ruleset.Guest{idiom.Localnet(model.IPv4, true)}}},
	})
	res, err := engine.Apply(ctx, ruleset.Options{})
	if err == nil && len(res.Refused) > 0 {
		err = fmt.Errorf("the kernel refuses it")
	}
	if err != nil {
		return fmt.Errorf("write the rule that keeps neighbours from 127.0.0.1: %w; or start with --iptables-localhost-nodeports=false", err)
	}
	sysctl.Warn(ctx, settings.SetRouteLocalnet(ctx))
	return nil
}

// mayBeLoopback tells whether node ports may be to answer on loopback addresses.
func mayBeLoopback(n proxier.NodePortAddresses) bool {
	return !n.Primary && (len(n.CIDRs) == 0 || slices.ContainsFunc(n.CIDRs, func(p netip.Prefix) bool {
		return p.Bits() == 0 || p.Addr().IsLoopback()
	}))
}
