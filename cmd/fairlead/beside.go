// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/iptables/ruleset"
	"fairlead/nat/egress"
	"fairlead/nat/sysctl"
	"fairlead/portmap"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// beside makes what the agent does beside Services: what pods send to the outside, and
// host ports. It is the same in every mode.
type beside struct {
	cfg      *agentConfig
	node     *nodeKernel
	settings *sysctl.Settings
	owns     *ownership
	egress   *egressConfig
	ports    *hostPortMetrics
	warner   podWarner // may be nil
}

func newBeside(ctx context.Context, cfg *agentConfig, node *nodeKernel, settings *sysctl.Settings, src source.Source, reg prometheus.Registerer) *beside {
	b := &beside{
		cfg: cfg, node: node, settings: settings, owns: newOwnership(cfg.StateFile, node.families, reg),
		egress: readEgress(ctx, cfg), ports: newHostPortMetrics(reg, node.families),
	}
	b.warner, _ = src.(podWarner) // as apiserver's is; a directory has nowhere to write Events
	return b
}

// contributions are a mode's, and those beside it.
func (c *agentConfig) contributions(ctx context.Context, f model.Family, node *nodeKernel, mode ruleset.Contribution) []ruleset.Contribution {
	return append([]ruleset.Contribution{mode}, besideMode(f, node.chainReader(ctx, f), switchFlag(c.HostPorts.Mode), c.HostPorts.Localhost)...)
}

// besideMode are the contributions beside a mode's. The chains of host ports are not
// ours to write while they have rules of others, unless host ports are to be ours by all
// means.
func besideMode(f model.Family, chain func(name string) []ruleset.Rule, hostPorts switchFlag, localhost bool) []ruleset.Contribution {
	out := []ruleset.Contribution{egress.Contribution()}
	if hostPorts != switchOn && portmap.Foreign(chain(portmap.Root)) {
		return out
	}
	return append(out, portmap.Contribution(portmap.Config{Family: f, Localhost: localhost}))
}
