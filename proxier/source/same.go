// SPDX-License-Identifier: Apache-2.0

package source

import (
	"slices"

	"fairlead/proxier/model"
)

// SameService reports whether a and b mean the same to a consumer; nil stands
// for no object.
func SameService(a, b *model.Service) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return a.Key == b.Key &&
		slices.Equal(a.ClusterIPs, b.ClusterIPs) &&
		slices.Equal(a.Ports, b.Ports) &&
		slices.Equal(a.ExternalIPs, b.ExternalIPs) &&
		slices.Equal(a.LoadBalancerIPs, b.LoadBalancerIPs) &&
		a.Restricted == b.Restricted &&
		slices.Equal(a.SourceRanges, b.SourceRanges) &&
		a.ExternalTrafficLocal == b.ExternalTrafficLocal &&
		a.InternalTrafficLocal == b.InternalTrafficLocal &&
		a.HealthCheckNodePort == b.HealthCheckNodePort &&
		a.AffinityTimeout == b.AffinityTimeout &&
		a.Scheduler == b.Scheduler && a.Balancing == b.Balancing
}

// SameEndpointSlice reports whether a and b mean the same to a consumer; nil
// stands for no object. TriggerTime does not count: without another change
// there is nothing to program, hence no latency to measure.
func SameEndpointSlice(a, b *model.EndpointSlice) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return a.Key == b.Key && a.Service == b.Service && a.Family == b.Family &&
		slices.Equal(a.Ports, b.Ports) &&
		slices.Equal(a.Endpoints, b.Endpoints)
}

// SameServiceCIDR reports whether a and b mean the same to a consumer; nil
// stands for no object.
func SameServiceCIDR(a, b *model.ServiceCIDR) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return a.Key == b.Key && slices.Equal(a.CIDRs, b.CIDRs)
}

// SameNode reports whether a and b mean the same to a consumer; nil stands for
// no object.
func SameNode(a, b *model.Node) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && a.Zone == b.Zone &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PodCIDRs, b.PodCIDRs) &&
		a.Deleting == b.Deleting && a.ToBeDeleted == b.ToBeDeleted
}
