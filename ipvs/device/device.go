// SPDX-License-Identifier: Apache-2.0

// Package device keeps the dummy device whose addresses make the addresses of
// virtual servers local: the kernel delivers packets to them, and IPVS takes them
// on their way in. The device is never up, so nothing is sent through it.
package device

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairlead/ipvs/batch"
)

// Name is the device's name, in kube-proxy too.
const Name = "kube-ipvs0"

// patience is how long, about, a list is tried that others interrupt, and the kernel may
// do nothing about the routes of addresses.
const patience = 2 * time.Second

// ErrAnotherKind is why a device cannot be used that has the right name.
var ErrAnotherKind = errors.New("there is a device of another kind with this name")

// Device is the device in the network namespace of the thread that called New, and
// the addresses of one family on it. Both families have one device. Its methods may
// be called from any thread. It is safe for concurrent use.
type Device struct {
	name, kind string
	family     int

	mu      sync.Mutex
	netlink *netlink.Handle
	many    *batch.Socket
	index   int // of the device, 0 where it is not known or not there
}

// New opens sockets; it makes no device.
func New(name string, ipv6 bool) (*Device, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	many, err := batch.Open(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, err
	}
	d := &Device{name: name, kind: "dummy", family: unix.AF_INET, netlink: h, many: many}
	if ipv6 {
		d.family = unix.AF_INET6
	}
	return d, nil
}

// Close closes the sockets.
func (d *Device) Close() {
	d.netlink.Close()
	d.many.Close()
}

// Ensure makes the device, or takes one that is there with its addresses. One that
// is up is put down, by which it loses those of IPv6.
func (d *Device) Ensure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	link, err := d.find()
	if err == nil && link == nil {
		attrs := netlink.LinkAttrs{Name: d.name}
		err = d.netlink.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: d.kind})
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: load the module %s on the host", err, d.kind)
		}
		if err == nil || errors.Is(err, unix.EEXIST) { // the other family's may have been faster
			link, err = d.find()
		}
	}
	if err == nil && link != nil && link.Attrs().Flags&net.FlagUp != 0 {
		err = d.netlink.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("make device %s: %w", d.name, err)
	}
	return nil
}

// find returns the device, nil where there is none. mu must be held.
func (d *Device) find() (netlink.Link, error) {
	d.index = 0
	link, err := d.netlink.LinkByName(d.name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if link.Type() != d.kind {
		return nil, ErrAnotherKind
	}
	d.index = link.Attrs().Index
	return link, nil
}

// List returns the addresses on the device, in no particular order: those of the
// family that are alone in their network (/32, /128). Others are not ours. found is
// false where there is no device.
func (d *Device) List() (addrs []netip.Addr, found bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	link, err := d.find()
	if err == nil && link == nil {
		return nil, false, nil
	}
	var list []netlink.Addr
	if err == nil {
		list, err = d.list(link)
	}
	if err != nil {
		return nil, false, fmt.Errorf("list addresses of device %s: %w", d.name, err)
	}
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ones, bits := a.Mask.Size(); ok && ones == bits && a.Peer == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs, true, nil
}

// list lists the addresses of the family on the device. It begins again where some
// have changed meanwhile, on whatever device. Each new one of IPv6 does so twice: the
// kernel takes it into use by and by (addrconf_dad_work in net/ipv6/addrconf.c), which
// with thousands takes seconds.
func (d *Device) list(link netlink.Link) ([]netlink.Addr, error) {
	for pause := time.Millisecond; ; pause *= 2 {
		list, err := d.netlink.AddrList(link, d.family)
		if !errors.Is(err, netlink.ErrDumpInterrupted) || pause > patience {
			return list, err
		}
		time.Sleep(pause)
	}
}

// Add adds addresses, which may be there, many in one message: after each message the
// kernel looks through all addresses there are for those that expire
// (check_lifetime in net/ipv4/devinet.c). It goes on after one that the kernel refuses.
// Once it returns, packets to them come to the node.
func (d *Device) Add(addrs ...netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	refused := func(a netip.Addr, err error) error {
		return fmt.Errorf("add address %s to device %s: %w", a, d.name, err)
	}
	for _, a := range addrs {
		if a.Is6() != (d.family == unix.AF_INET6) {
			return refused(a, unix.EAFNOSUPPORT)
		}
	}
	for again := false; ; again = true {
		if d.index == 0 {
			if _, err := d.find(); err != nil {
				return refused(addrs[0], err)
			}
		}
		gone, err := d.add(addrs, refused)
		if len(gone) == 0 && err == nil {
			return d.awaitLocal(addrs)
		}
		if len(gone) == 0 || err != nil || again {
			return errors.Join(append(gone, err)...)
		}
		d.index = 0 // and it may be another now
	}
}

// add adds addresses to the device as it is known. gone are the errors of those for
// which there is no such device.
func (d *Device) add(addrs []netip.Addr, refused func(netip.Addr, error) error) (gone []error, err error) {
	var requests []*nl.NetlinkRequest
	for _, a := range addrs {
		requests = append(requests, d.newAddress(a))
	}
	var errs []error
	err = d.many.Do(requests, func(i int, err error) {
		switch {
		case errors.Is(err, unix.EEXIST):
		case errors.Is(err, unix.ENODEV):
			gone = append(gone, refused(addrs[i], err))
		default:
			errs = append(errs, refused(addrs[i], err))
		}
	})
	return gone, errors.Join(append(errs, err)...)
}

// awaitLocal waits until the routes of addresses of IPv6 are there, which the kernel adds
// by and by, without duplicate address detection, too (addrconf_dad_start in
// net/ipv6/addrconf.c). A packet that came before would be sent on, and conntrack remember
// it as one that nobody translates: no other one of that connection would come to IPVS and
// back.
func (d *Device) awaitLocal(addrs []netip.Addr) error {
	if d.family != unix.AF_INET6 {
		return nil
	}
	const first = time.Millisecond / 4
	for pause := first; ; pause *= 2 {
		left, err := d.notLocal(addrs)
		if err != nil {
			return fmt.Errorf("look for routes of addresses of device %s: %w", d.name, err)
		}
		if len(left) == 0 {
			return nil
		}
		if len(left) < len(addrs) {
			pause = first
		}
		if addrs = left; pause > patience {
			return fmt.Errorf("address %s is on device %s, and has no route: is it removed by others?", addrs[0], d.name)
		}
		time.Sleep(pause)
	}
}

// notLocal returns the addresses that packets do not come to. To look at all routes takes
// a time that grows with their number, to ask for one always the same; but to ask for 5,000
// one by one takes four times as long as to add them.
func (d *Device) notLocal(addrs []netip.Addr) (left []netip.Addr, err error) {
	const few = 100
	local := func(a netip.Addr) bool {
		routes, err := d.netlink.RouteGet(a.AsSlice())
		return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
	}
	if len(addrs) > few {
		routes, err := d.netlink.RouteListFiltered(d.family, &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: d.index}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, err
		}
		there := map[netip.Addr]bool{}
		for _, r := range routes {
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && r.Type == unix.RTN_LOCAL {
				there[a] = true
			}
		}
		local = func(a netip.Addr) bool { return there[a] }
	}
	for _, a := range addrs {
		if !local(a) {
			left = append(left, a)
		}
	}
	return left, nil
}

// newAddress returns the request to add an address. Nobody else is to be asked whether
// he has it, too: other nodes do.
func (d *Device) newAddress(a netip.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(d.family)
	msg.Index, msg.Prefixlen = uint32(d.index), uint8(a.BitLen())
	if a.Is6() {
		msg.IfAddrmsg.Flags = unix.IFA_F_NODAD
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	return req
}

// Remove removes an address, which may not be there; nor may the device. Where the
// device is not the one that it was, it looks for it once.
func (d *Device) Remove(addr netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if addr.Is6() != (d.family == unix.AF_INET6) {
		return fmt.Errorf("remove address %s from device %s: %w", addr, d.name, unix.EAFNOSUPPORT)
	}
	err := error(unix.ENODEV)
	if d.index != 0 {
		err = d.netlink.AddrDel(nil, d.addr(addr))
	}
	if errors.Is(err, unix.ENODEV) {
		link, e := d.find()
		switch {
		case e != nil:
			err = e
		case link != nil:
			err = d.netlink.AddrDel(nil, d.addr(addr))
		}
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove address %s from device %s: %w", addr, d.name, err)
	}
	return nil
}

// addr returns an address as the library has it.
func (d *Device) addr(addr netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet:     &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
		LinkIndex: d.index,
	}
}

// Destroy removes the device, if it is there, with all addresses of both families.
func (d *Device) Destroy() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	link, err := d.find()
	if err == nil && link != nil {
		err = d.netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", d.name, err)
	}
	d.index = 0
	return nil
}
