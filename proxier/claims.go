// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// A Service that has another's cluster IP as an external address would take
// over its traffic, or that of a Service yet to come (CVE-2020-8554). Which
// addresses are cluster IPs is known only of all Services together, and which
// may become one of the ServiceCIDRs, so it is here that such an address is
// refused.

// Reasons for which an external address is refused.
const (
	reasonClusterIP   = "is a cluster IP"
	reasonServiceCIDR = "is inside a ServiceCIDR"
)

// RefusedAddr is an external address that a Service may not have.
type RefusedAddr struct {
	// Field is the list that it is in, as the Kubernetes API spells it.
	Field string
	Addr  netip.Addr
	// Reason says why, in a few words.
	Reason string
}

// String returns the address and the reason.
func (r RefusedAddr) String() string { return r.Addr.String() + " " + r.Reason }

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
		if before == 0 || before+by == 0 {
			t.markClaims(ip)
		}
	}
}

// setServiceCIDR takes over a ServiceCIDR, nil where it is gone, and marks the
// Services whose external addresses have come into it or left it.
func (t *Tracker) setServiceCIDR(key model.ObjectKey, now *model.ServiceCIDR) {
	old := t.serviceCIDRs[key]
	if now == nil {
		delete(t.serviceCIDRs, key)
	} else {
		t.serviceCIDRs[key] = now
	}
	if old == nil || now == nil || !slices.Equal(old.CIDRs, now.CIDRs) {
		t.markDue()
	}
	for ip := range t.claims {
		if before, after := old != nil && old.Contains(ip), now != nil && now.Contains(ip); before != after {
			t.markClaims(ip)
		}
	}
}

// allServiceCIDRs returns the ranges of all ServiceCIDRs, sorted.
func (t *Tracker) allServiceCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range t.serviceCIDRs {
		out = append(out, c.CIDRs...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// markClaims marks the Services that have an address as an external one.
func (t *Tracker) markClaims(ip netip.Addr) {
	if v := t.views[model.FamilyOf(ip)]; v != nil {
		for key := range t.claims[ip] {
			v.mark(key)
		}
	}
}

// withoutRefused returns a Service without the external addresses that it may
// not have, and those of family f. It leaves svc alone.
func (t *Tracker) withoutRefused(svc *model.Service, f model.Family) (_ *model.Service, refused []RefusedAddr) {
	if svc == nil {
		return nil, nil
	}
	external, r1 := t.sort("spec.externalIPs", svc.ExternalIPs)
	ingress, r2 := t.sort("status.loadBalancer.ingress", svc.LoadBalancerIPs)
	if len(r1)+len(r2) == 0 {
		return svc, nil
	}
	out := *svc
	out.ExternalIPs, out.LoadBalancerIPs = external, ingress
	isOther := func(r RefusedAddr) bool { return model.FamilyOf(r.Addr) != f }
	return &out, slices.DeleteFunc(append(r1, r2...), isOther)
}

// sort returns the addresses of a field that a Service may have, and the others.
func (t *Tracker) sort(field string, addrs []netip.Addr) (allowed []netip.Addr, refused []RefusedAddr) {
	for _, ip := range addrs {
		if reason := t.whyRefused(ip); reason != "" {
			refused = append(refused, RefusedAddr{Field: field, Addr: ip, Reason: reason})
		} else {
			allowed = append(allowed, ip)
		}
	}
	return allowed, refused
}

// whyRefused returns why no Service may have an external address, empty where
// one may.
func (t *Tracker) whyRefused(ip netip.Addr) string {
	if t.clusterIPs[ip] > 0 {
		return reasonClusterIP
	}
	for _, c := range t.serviceCIDRs {
		if c.Contains(ip) {
			return reasonServiceCIDR
		}
	}
	return ""
}

// externalAddrs returns the external addresses of a Service, nil of none.
func externalAddrs(svc *model.Service) []netip.Addr {
	if svc == nil {
		return nil
	}
	return slices.Concat(svc.ExternalIPs, svc.LoadBalancerIPs)
}
