// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// Reasons for which an external address is refused.
const (
	reasonOwnClusterIP = "is a cluster IP of the same Service"
	reasonServiceCIDR  = "is inside a service CIDR"
	reasonPodCIDR      = "is inside a pod CIDR"
	reasonNotAllowed   = "is outside the CIDRs that external IPs are allowed in"
)

// Policy says which external addresses a Service may have, of those that make
// sense by themselves. Who may write a Service could otherwise take over the
// traffic to any address (CVE-2020-8554). The zero Policy allows all.
type Policy struct {
	// ServiceCIDRs and PodCIDRs are where cluster IPs and Pods have their
	// addresses: no external IP and no load balancer's address may be in one.
	ServiceCIDRs, PodCIDRs []netip.Prefix
	// RestrictExternalIPs allows external IPs in ExternalIPCIDRs only, hence
	// none at all where that is empty. The addresses of load balancers come
	// from whoever may write the status of Services, and are not restricted.
	RestrictExternalIPs bool
	ExternalIPCIDRs     []netip.Prefix
}

// check returns why an address may not be an external address, empty where it
// may.
func (p *Policy) check(addr netip.Addr) (reason string) {
	switch {
	case within(addr, p.ServiceCIDRs):
		return reasonServiceCIDR
	case within(addr, p.PodCIDRs):
		return reasonPodCIDR
	}
	return ""
}

// checkExternalIP is check, for one of the addresses that whoever writes the
// Service names.
func (p *Policy) checkExternalIP(addr netip.Addr) (reason string) {
	if reason := p.check(addr); reason != "" {
		return reason
	}
	if p.RestrictExternalIPs && !within(addr, p.ExternalIPCIDRs) {
		return reasonNotAllowed
	}
	return ""
}

func within(addr netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// addrList collects external addresses of a Service and keeps them free of
// duplicates.
type addrList struct {
	refused *refusals
	// clusterIPs are the Service's own.
	clusterIPs []netip.Addr
	check      func(netip.Addr) (reason string)

	addrs []netip.Addr
	seen  map[netip.Addr]struct{}
}

func newAddrList(s *model.Service, check func(netip.Addr) string, refused *refusals) *addrList {
	return &addrList{refused: refused, clusterIPs: s.ClusterIPs, check: check, seen: map[netip.Addr]struct{}{}}
}

// add takes the address, or refuses the value at the path that field returns.
func (l *addrList) add(value string, field func() string) {
	addr, reason := parseUnicast(value)
	if reason == "" && slices.Contains(l.clusterIPs, addr) {
		reason = reasonOwnClusterIP
	}
	if reason == "" {
		reason = l.check(addr)
	}
	if reason != "" {
		l.refused.add(field(), value, reason)
		return
	}
	if _, twice := l.seen[addr]; !twice {
		l.seen[addr] = struct{}{}
		l.addrs = append(l.addrs, addr)
	}
}
