// SPDX-License-Identifier: Apache-2.0

package nodeaddr

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What an address is that leads to no pod.
const (
	isOwn     = "is the node's own"
	isNowhere = "has no route but the default one"
)

// Astray tells why packets to the address of a pod of this node would not get to it:
// the node has the address itself, or no route but the default one leads there. It
// returns an empty string where they would get somewhere, or that cannot be seen. Which
// route that is does not matter: to a bridge, to an interface of the pod's own, or to
// the network that the node is in.
func Astray(addr netip.Addr) string {
	routes, err := netlink.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return isNowhere // the last three are routes that say so
	case err != nil || len(routes) == 0:
		return ""
	}
	switch r := routes[0]; {
	case r.Type == unix.RTN_LOCAL:
		return isOwn
	case r.Type == unix.RTN_BLACKHOLE, r.Type == unix.RTN_UNREACHABLE, r.Type == unix.RTN_PROHIBIT:
		return isNowhere
	case r.Dst == nil:
		return isNowhere
	default:
		if bits, _ := r.Dst.Mask.Size(); bits == 0 {
			return isNowhere
		}
		return ""
	}
}
