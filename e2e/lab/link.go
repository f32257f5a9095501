// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead/proxier/model"
)

// sysctl is one setting, its name relative to /proc/sys.
type sysctl struct {
	name, value string
	// optional settings are skipped where the kernel does not have them.
	optional bool
}

// hostSysctls make a namespace a plain host whose addresses work at once, and
// that never learns routes behind the tests' back.
var hostSysctls = []sysctl{
	{name: "net/ipv4/ip_forward", value: "0"},
	{name: "net/ipv4/conf/all/accept_redirects", value: "0"},
	{name: "net/ipv4/conf/default/accept_redirects", value: "0"},
	{name: "net/ipv6/conf/all/disable_ipv6", value: "0"},
	{name: "net/ipv6/conf/default/disable_ipv6", value: "0"},
	{name: "net/ipv6/conf/all/forwarding", value: "0"},
	{name: "net/ipv6/conf/all/accept_dad", value: "0"},
	{name: "net/ipv6/conf/default/accept_dad", value: "0"},
	{name: "net/ipv6/conf/all/accept_ra", value: "0"},
	{name: "net/ipv6/conf/default/accept_ra", value: "0"},
	{name: "net/ipv6/conf/default/accept_redirects", value: "0"},
	{name: "net/bridge/bridge-nf-call-iptables", value: "0", optional: true},
	{name: "net/bridge/bridge-nf-call-ip6tables", value: "0", optional: true},
}

// loudSysctls lift the limits on ICMP errors: a REJECT that is probed in quick
// succession would else look like a DROP.
var loudSysctls = []sysctl{
	{name: "net/ipv4/icmp_ratelimit", value: "0"},
	{name: "net/ipv4/icmp_ratemask", value: "0"},
	{name: "net/ipv6/icmp/ratelimit", value: "0"},
	{name: "net/ipv6/icmp/ratemask", value: "\n", optional: true},
}

// nodeSysctls make a namespace a node.
var nodeSysctls = []sysctl{
	{name: "net/ipv4/ip_forward", value: "1"},
	{name: "net/ipv4/conf/all/send_redirects", value: "0"},
	{name: "net/ipv4/conf/default/send_redirects", value: "0"},
	{name: "net/ipv6/conf/all/forwarding", value: "1"},
	{name: "net/bridge/bridge-nf-call-iptables", value: "1", optional: true},
	{name: "net/bridge/bridge-nf-call-ip6tables", value: "1", optional: true},
}

// SetSysctl sets a kernel setting of the namespace, its name relative to
// /proc/sys: "net/ipv4/ip_forward".
func (ns *NS) SetSysctl(name, value string) error {
	return ns.setSysctls([]sysctl{{name: name, value: value}})
}

func (ns *NS) setSysctls(list []sysctl) error {
	return ns.Do(func() error {
		for _, s := range list {
			err := os.WriteFile(filepath.Join("/proc/sys", s.name), []byte(s.value), 0o644)
			if err != nil && !(s.optional && errors.Is(err, os.ErrNotExist)) {
				return fmt.Errorf("set sysctl in %s: %w", ns.Label, err)
			}
		}
		return nil
	})
}

// bridgeNetfilter tells whether bridged packets pass the iptables rules here.
func (ns *NS) bridgeNetfilter() (bool, error) {
	found := false
	err := ns.Do(func() error {
		_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
		found = err == nil
		return nil
	})
	return found, err
}

// withNetlink calls fn with a netlink handle of the namespace.
func (ns *NS) withNetlink(fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(ns.handle, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", ns.Label, err)
	}
	defer h.Close()
	return fn(h)
}

// withLink calls fn with a netlink handle and one link of the namespace.
func (ns *NS) withLink(name string, fn func(*netlink.Handle, netlink.Link) error) error {
	return ns.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link %s in %s: %w", name, ns.Label, err)
		}
		return fn(h, link)
	})
}

// setUp brings a link up. A link discards packets for a moment after that; to
// ask for a neighbour's address again may then not take the usual second.
func (ns *NS) setUp(name string) error {
	err := ns.setSysctls([]sysctl{
		{name: "net/ipv4/neigh/" + name + "/retrans_time_ms", value: "10", optional: true},
		{name: "net/ipv4/neigh/" + name + "/mcast_solicit", value: "300", optional: true},
		{name: "net/ipv6/neigh/" + name + "/retrans_time_ms", value: "10", optional: true},
		{name: "net/ipv6/neigh/" + name + "/mcast_solicit", value: "300", optional: true},
	})
	if err != nil {
		return err
	}
	return ns.withLink(name, func(h *netlink.Handle, link netlink.Link) error {
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set link %s up in %s: %w", name, ns.Label, err)
		}
		return nil
	})
}

// addBridge makes a bridge whose link-layer address holds an IPv4 address of
// it. Without one of its own a bridge takes that of some port, another one with
// every port, and neighbours that remember the former one are lost.
func (ns *NS) addBridge(name string, addr netip.Addr) error {
	return ns.withNetlink(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.HardwareAddr = append(net.HardwareAddr{2, 0}, addr.AsSlice()...)
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add bridge %s in %s: %w", name, ns.Label, err)
		}
		return nil
	})
}

// plug connects host to a bridge of ns: host gets the link eth0, the bridge a
// port called port that may send packets back where they came from.
func (ns *NS) plug(bridge, port string, host *NS) error {
	return ns.withLink(bridge, func(h *netlink.Handle, br netlink.Link) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		attrs.MasterIndex = br.Attrs().Index
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(host.handle)}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s for %s: %w", port, host.Label, err)
		}
		if err := h.LinkSetHairpin(veth, true); err != nil {
			return fmt.Errorf("set hairpin on %s: %w", port, err)
		}
		if err := h.LinkSetUp(veth); err != nil {
			return fmt.Errorf("set link %s up: %w", port, err)
		}
		return host.setUp("eth0")
	})
}

// AddAddr adds an address to a link of the namespace, usable at once.
func (ns *NS) AddAddr(link string, p netip.Prefix) error {
	return ns.withLink(link, func(h *netlink.Handle, l netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if p.Addr().Is4() {
			addr.Flags = 0
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s to %s in %s: %w", p, link, ns.Label, err)
		}
		return nil
	})
}

// DelAddr removes an address from a link of the namespace.
func (ns *NS) DelAddr(link string, p netip.Prefix) error {
	return ns.withLink(link, func(h *netlink.Handle, l netlink.Link) error {
		if err := h.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
			return fmt.Errorf("delete address %s from %s in %s: %w", p, link, ns.Label, err)
		}
		return nil
	})
}

// addRoute routes a prefix over eth0 via a gateway on that link.
func (ns *NS) addRoute(p netip.Prefix, via netip.Addr) error { return ns.addRouteOn("eth0", p, via) }

// addRouteOn routes a prefix over a link via a gateway on it.
func (ns *NS) addRouteOn(link string, p netip.Prefix, via netip.Addr) error {
	return ns.withLink(link, func(h *netlink.Handle, l netlink.Link) error {
		route := &netlink.Route{
			LinkIndex: l.Attrs().Index,
			Dst:       ipNet(p),
			Gw:        via.AsSlice(),
			Flags:     int(netlink.FLAG_ONLINK),
		}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("add route %s via %s in %s: %w", p, via, ns.Label, err)
		}
		return nil
	})
}

// addBlackhole makes the namespace silently discard what it has no route for;
// without, it would answer that there is none.
func (ns *NS) addBlackhole() error {
	return ns.withNetlink(func(h *netlink.Handle) error {
		for _, p := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
			if err := h.RouteAdd(&netlink.Route{Dst: ipNet(p), Type: unix.RTN_BLACKHOLE}); err != nil {
				return fmt.Errorf("add blackhole route %s in %s: %w", p, ns.Label, err)
			}
		}
		return nil
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func familyOf(a netip.Addr) model.Family { return model.FamilyOf(a) }
