// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// NodePortAddresses says on which of the node's addresses node ports answer.
// The zero value means on all.
type NodePortAddresses struct {
	// CIDRs select the addresses that are in one of them. In a family that no
	// address matches, node ports do not answer, whereas kube-proxy would open
	// all of it.
	CIDRs []netip.Prefix
	// Primary selects the node's own address instead.
	Primary bool
}

// resolve returns where node ports answer in a family, given the addresses of
// the node's interfaces and its own, which may be invalid.
func (n NodePortAddresses) resolve(f model.Family, addrs []netip.Addr, nodeIP netip.Addr) NodePorts {
	switch {
	case n.Primary && nodeIP.IsValid() && !nodeIP.IsLoopback(): // which others reach
		return NodePorts{Addrs: []netip.Addr{nodeIP}}
	case n.Primary:
		return NodePorts{}
	}
	cidrs := rangesOfFamily(n.CIDRs, f)
	if len(n.CIDRs) == 0 || slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Bits() == 0 }) {
		return NodePorts{All: true}
	}
	var out []netip.Addr
	for _, a := range ofFamily(addrs, f) {
		if slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(a) }) {
			out = append(out, a)
		}
	}
	return NodePorts{Addrs: sorted(out)}
}

func sorted(addrs []netip.Addr) []netip.Addr {
	return slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare))
}
