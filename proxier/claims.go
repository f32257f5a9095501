// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// A Service that has another's cluster IP as an external address would take
// over its traffic (CVE-2020-8554). Which addresses are cluster IPs is known
// only of all Services together, so it is here that such an address is refused.

// setClaims takes over what a Service has for addresses, and marks the Services
// whose external addresses have become cluster IPs, or are none any more.
func (t *Tracker) setClaims(key model.ObjectKey, old, now *model.Service) {
	for _, ip := range externalAddrs(old) {
		if delete(t.claims[ip], key); len(t.claims[ip]) == 0 {
			delete(t.claims, ip)
		}
	}
	for _, ip := range externalAddrs(now) {
		if t.claims[ip] == nil {
			t.claims[ip] = map[model.ObjectKey]bool{}
		}
		t.claims[ip][key] = true
	}
	if old != nil {
		t.countClusterIPs(old.ClusterIPs, -1)
	}
	if now != nil {
		t.countClusterIPs(now.ClusterIPs, +1)
	}
}

// countClusterIPs counts the Services that have these cluster IPs up or down.
func (t *Tracker) countClusterIPs(ips []netip.Addr, by int) {
	for _, ip := range ips {
		before := t.clusterIPs[ip]
		if t.clusterIPs[ip] = before + by; t.clusterIPs[ip] == 0 {
			delete(t.clusterIPs, ip)
		}
		if before != 0 && before+by != 0 {
			continue
		}
		for key := range t.claims[ip] {
			if v := t.views[model.FamilyOf(ip)]; v != nil {
				v.mark(key)
			}
		}
	}
}

// withoutClusterIPs returns a Service without the external addresses that are
// cluster IPs, and these. It leaves svc alone.
func (t *Tracker) withoutClusterIPs(svc *model.Service) (_ *model.Service, refused []netip.Addr) {
	for _, ip := range externalAddrs(svc) {
		if t.clusterIPs[ip] > 0 {
			refused = append(refused, ip)
		}
	}
	if len(refused) == 0 {
		return svc, nil
	}
	isRefused := func(ip netip.Addr) bool { return slices.Contains(refused, ip) }
	out := *svc
	out.ExternalIPs = slices.DeleteFunc(slices.Clone(svc.ExternalIPs), isRefused)
	out.LoadBalancerIPs = slices.DeleteFunc(slices.Clone(svc.LoadBalancerIPs), isRefused)
	return &out, refused
}

// externalAddrs returns the external addresses of a Service, nil of none.
func externalAddrs(svc *model.Service) []netip.Addr {
	if svc == nil {
		return nil
	}
	return slices.Concat(svc.ExternalIPs, svc.LoadBalancerIPs)
}
