// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"fairlead/iptables"
	"fairlead/nat/sysctl"
	"fairlead/proxier/model"
)

// prepareKernel makes the kernel's settings what Services need, as far as it
// lets us, and warns of the rest.
func prepareKernel(ctx context.Context, s *sysctl.Settings, c sysctl.ConntrackConfig, families []model.Family) {
	sysctl.Warn(ctx, s.Forwarding(families...))
	sysctl.Warn(ctx, s.Conntrack(ctx, c))
}

// adaptTo makes rules suit the kernel's settings.
func adaptTo(ctx context.Context, s *sysctl.Settings, rules *iptables.RenderConfig) {
	rules.KeepInvalid = s.BeLiberal()
	passes, problems := s.BridgeNetfilter(ctx, rules.Family)
	sysctl.Warn(ctx, problems)
	rules.MasqueradeNeighbours = !passes
}
