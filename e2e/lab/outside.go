// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead/proxier/model"
)

// AddOutside makes the gateway a host that has the addresses, and answers there
// as an echo server of that name on each of the ports. A packet to a virtual IP
// that leaves a node untranslated is then seen to do so, and is told from one
// that was dropped.
//
// What the gateway answers the client goes by way of the first node, as the
// client's requests do: a node that sees one direction alone takes a connection
// for invalid.
func (l *Lab) AddOutside(ctx context.Context, name string, addrs []netip.Addr, ports ...uint16) error {
	for _, a := range addrs {
		if err := l.lan.AddAddr(lanBridge, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
		for _, port := range ports {
			if _, err := l.lan.Echo(ctx, name, netip.AddrPortFrom(a, port)); err != nil {
				return err
			}
		}
	}
	for _, f := range model.Families() {
		client := l.Client.Addr(f)
		if err := l.lan.addRouteOn(lanBridge, netip.PrefixFrom(client, client.BitLen()), l.Nodes[0].Addr(f)); err != nil {
			return err
		}
		for _, n := range l.Nodes {
			if err := l.lan.addRouteOn(lanBridge, n.PodCIDR(f), n.Addr(f)); err != nil {
				return err
			}
		}
	}
	return nil
}

// FlushConntrack makes the namespace forget all connections.
func (ns *NS) FlushConntrack() error {
	h, err := netlink.NewHandleAt(ns.handle, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", ns.Label, err)
	}
	defer h.Close()
	if err := h.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("flush connections in %s: %w", ns.Label, err)
	}
	return nil
}
