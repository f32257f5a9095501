// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ServeRange gives a pod of the node every address of a range: what the node,
// and who routes through it, sends there arrives at the pod's servers. So one
// server is as many endpoints as a measurement wants.
func (n *Node) ServeRange(pod *NS, p netip.Prefix) error {
	err := pod.withLink("lo", func(h *netlink.Handle, lo netlink.Link) error {
		return h.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: ipNet(p),
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST,
		})
	})
	if err != nil {
		return fmt.Errorf("make %s local in %s: %w", p, pod.Label, err)
	}
	return n.addRouteOn(podBridge, p, pod.Addr(familyOf(p.Addr())))
}

// RemoveNode removes a node and its pods with all that runs in them, and returns
// when the kernel has freed it, rules and all: that takes it seconds of work if
// there are many. No other node gets its name or its addresses.
func (l *Lab) RemoveNode(ctx context.Context, n *Node) error {
	var errs []error
	for _, ns := range append(slices.Clone(n.Pods), n.NS) {
		errs = append(errs, ns.close())
		l.all = slices.DeleteFunc(l.all, func(other *NS) bool { return other == ns })
	}
	l.Nodes = slices.DeleteFunc(l.Nodes, func(other *Node) bool { return other == n })
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return l.lan.awaitNoLink(ctx, n.Label)
}

// awaitNoLink waits until a link of the namespace is gone. The other end of a
// node's is among the last things of the node that the kernel removes.
func (ns *NS) awaitNoLink(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return ns.withNetlink(func(h *netlink.Handle) error {
		for {
			_, err := h.LinkByName(name)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				return nil
			}
			select {
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("wait until %s is freed (has it a socket or a process left?): %w", name, ctx.Err()), err)
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
}
