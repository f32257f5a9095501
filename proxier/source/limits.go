// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"strconv"
)

// Bounds of the lists of one object. What is beyond is refused, so that nobody
// who may write an object can take a node's memory, or make one restore so
// large that it fails or holds up all others. None is near what is in use.
const (
	// maxPorts, maxEndpoints and maxHints are what the API allows an
	// EndpointSlice (v1.36). It does not bound the ports of a Service, but those
	// beyond could not be joined to a slice.
	maxPorts     = 20000
	maxEndpoints = 1000
	maxHints     = 8

	// maxExternal bounds the external IPs of a Service, and the addresses of its
	// load balancer. Clusters that list every node there do so by the dozen.
	maxExternal = 256
	// maxExternalPorts bounds each of them times the ports, as every port of
	// every address is a rule of its own: about as many as 10,000 Services have.
	maxExternalPorts = 1 << 16

	// maxSourceRanges and maxSourceRangePorts bound the source ranges likewise:
	// they are checked one after the other, for each port.
	maxSourceRanges     = 2048
	maxSourceRangePorts = 1 << 16

	// maxNodeAddrs bounds the addresses and the pod CIDRs of a Node.
	maxNodeAddrs = 64

	// maxServiceCIDRs bounds the CIDRs of a ServiceCIDR. The API allows one of
	// each family (v1.36).
	maxServiceCIDRs = 64
)

// forPorts returns how many elements a list may have of which there are rules
// for each of that many ports: at most limit, and at most product rules.
func forPorts(limit, product, ports int) int {
	return min(limit, product/max(ports, 1))
}

// bounded returns the first elements of a list, as many as limit. What is
// beyond is refused in one refusal.
func bounded[T any](r *refusals, field string, list []T, limit int) []T {
	if len(list) <= limit {
		return list
	}
	r.addTooMany(field, len(list), limit, "")
	return list[:limit]
}

// boundedForPorts is bounded, for a list whose limit follows from the number of
// ports.
func boundedForPorts[T any](r *refusals, field string, list []T, limit, ports int) []T {
	if len(list) <= limit {
		return list
	}
	r.addTooMany(field, len(list), limit, fmt.Sprintf(" (at %d ports)", ports))
	return list[:limit]
}

// addTooMany adds the one refusal of all that is beyond the limit in a list of
// n elements.
func (r *refusals) addTooMany(field string, n, limit int, when string) {
	r.add(field, strconv.Itoa(n)+" elements",
		fmt.Sprintf("is more than %d%s, the last %d are left out", limit, when, n-limit))
}
