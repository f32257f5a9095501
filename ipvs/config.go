// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"slices"
	"time"

	"fairlead/iptables/idiom"
	"fairlead/ipvs/servers"
	"fairlead/proxier/model"
)

// Config is what IPVS mode depends on besides the Services.
type Config struct {
	Family model.Family
	// PodCIDRs and PodInterface tell the traffic of pods, as idiom.Pods says. With
	// neither, nobody is known to be a pod.
	PodCIDRs     []netip.Prefix
	PodInterface string
	// NodePodCIDRs takes the pod CIDRs of this node from its Node object, in
	// the place of PodCIDRs.
	NodePodCIDRs bool
	// MasqueradeAll masquerades all traffic to cluster IPs.
	MasqueradeAll bool
	// MasqueradeNeighbours masquerades what pods send through a Service to endpoints of
	// this node: where packets between two ports of one bridge do not pass the rules,
	// the answer would not be translated back. It goes by PodCIDRs.
	MasqueradeNeighbours bool
	// MasqueradeBit is the bit of the packet mark, 0 to 31, that says that a
	// packet is to be masqueraded.
	MasqueradeBit int
	// KeepInvalid forwards packets that conntrack finds invalid, which
	// otherwise are dropped, and counted by the nfacct object InvalidCounter unless
	// that is empty.
	KeepInvalid    bool
	InvalidCounter string
	// LocalhostNodePorts lets node ports answer on 127.0.0.1.
	LocalhostNodePorts bool
	// LocalhostHostPorts is set where others let host ports do so.
	LocalhostHostPorts bool
	// Scheduler is for Services that do not name one.
	Scheduler model.Scheduler
	// HasScheduler tells whether the kernel has a scheduler; nil has all. A Service that
	// names one that is not there gets the default.
	HasScheduler func(name string) bool
	// ExcludeCIDRs have virtual servers and addresses that are not ours, unless this
	// process has made them.
	ExcludeCIDRs []netip.Prefix
	// GracePeriod is how long a destination that is no longer wanted may keep its
	// connections.
	GracePeriod time.Duration
}

// pods tells the traffic of pods.
func (c Config) pods() idiom.Pods { return idiom.Pods{CIDRs: c.PodCIDRs, Interface: c.PodInterface} }

// ipv6 tells the family.
func (c Config) ipv6() bool { return c.Family == model.IPv6 }

// excluded tells whether an address is one to keep off.
func (c Config) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(c.ExcludeCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// DefaultScheduler is kube-proxy's.
const DefaultScheduler = "rr"

// flagsOf returns the kernel's flags for a scheduler.
func flagsOf(s model.Scheduler) servers.Flags {
	var f servers.Flags
	if s.Fallback {
		f |= servers.HashFallback
	}
	if s.Port {
		f |= servers.HashPort
	}
	return f
}
