// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables/ruleset"
	"fairlead/nftables"
	"fairlead/nftables/nfnetlink"
	"fairlead/nftables/table"
)

// rehearse tells why an agent that starts on this node with a changed configuration would
// end at once or lack something: credentials, a mode, an address. It changes nothing, and
// what only the start itself can tell it does not find out.
func rehearse(ctx context.Context, cfg, running *agentConfig) error {
	ctx = klog.NewContext(ctx, klog.New(nil)) // the start says again what there is to say
	if _, err := newSource(cfg, prometheus.NewRegistry()); err != nil {
		return err
	}
	node, err := probeNode(ctx, cfg.variant, cfg.needsIptables())
	if err != nil {
		return err
	}
	if err := canHaveMode(cfg, node); err != nil {
		return err
	}
	for _, l := range []struct{ name, addr string }{
		{"healthz-bind-address", cfg.healthz}, {"metrics-bind-address", cfg.metrics},
	} {
		if err := canListen(ctx, l.addr, running.healthz, running.metrics); err != nil {
			return fmt.Errorf("%s: %w", cfg.Where(l.name), err)
		}
	}
	return nil
}

// canListen tells why an address cannot be listened on. Ports of the running agent's own
// are free once it has ended.
func canListen(ctx context.Context, addr string, own ...string) error {
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	if addr == "" || slices.ContainsFunc(own, func(o string) bool { return port(o) == port(addr) }) {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// canHaveMode tells why none of the modes is possible on this node.
func canHaveMode(cfg *agentConfig, node *nodeKernel) (err error) {
	for _, name := range cfg.modes {
		if err = canHave(name, cfg, node); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s %s: %w", cfg.Where("proxy-mode"), cfg.Mode, err)
}

func canHave(name string, cfg *agentConfig, node *nodeKernel) error {
	if name == nftablesName {
		return canHaveTable(node)
	}
	if len(node.commands) < len(node.families) {
		return ruleset.ErrNoCommand
	}
	if name != ipvsName {
		return nil
	}
	all, err := openServers(cfg, node)
	for _, k := range all {
		k.Close()
	}
	return err
}

func canHaveTable(node *nodeKernel) error {
	for _, f := range node.families {
		if err := nftables.Probe(f, func(t table.Family, name string) (nftables.Kernel, error) { return nfnetlink.New(t, name) }); err != nil {
			return err
		}
	}
	return nil
}
