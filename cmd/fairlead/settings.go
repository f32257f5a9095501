// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/pflag"

	"fairlead/iptables"
	"fairlead/nat/sysctl"
	"fairlead/proxier/model"
)

// conntrackFlags defines the flags of the connection table; their defaults are
// kube-proxy's.
func conntrackFlags(fs *pflag.FlagSet, c *sysctl.ConntrackConfig) {
	d := sysctl.DefaultConntrack()
	fs.IntVar(&c.MaxPerCore, "conntrack-max-per-core", d.MaxPerCore, "How many connections to track for each CPU; 0 leaves the kernel's limit as it is.")
	fs.IntVar(&c.Min, "conntrack-min", d.Min, "How many connections to track at least, whatever --conntrack-max-per-core says.")
	fs.DurationVar(&c.TCPEstablishedTimeout, "conntrack-tcp-timeout-established", d.TCPEstablishedTimeout, "How long to track an idle TCP connection; 0 leaves the kernel's timeout as it is.")
	fs.DurationVar(&c.TCPCloseWaitTimeout, "conntrack-tcp-timeout-close-wait", d.TCPCloseWaitTimeout, "How long to track a TCP connection that one side has closed; 0 leaves the kernel's timeout as it is.")
	fs.DurationVar(&c.UDPTimeout, "conntrack-udp-timeout", d.UDPTimeout, "How long to track an unanswered UDP flow; 0 leaves the kernel's timeout as it is.")
	fs.DurationVar(&c.UDPStreamTimeout, "conntrack-udp-timeout-stream", d.UDPStreamTimeout, "How long to track an answered UDP flow; 0 leaves the kernel's timeout as it is.")
	fs.BoolVar(&c.TCPBeLiberal, "conntrack-tcp-be-liberal", d.TCPBeLiberal, "Track TCP packets outside the window instead of dropping them as invalid.")
}

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
