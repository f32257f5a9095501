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
	"golang.org/x/sys/unix"
)

// Name is the device's name, in kube-proxy too.
const Name = "kube-ipvs0"

// patience is how long, about, a list is tried that others interrupt.
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
	index   int // of the device, 0 where it is not known or not there
}

// New opens a socket; it makes no device.
func New(name string, ipv6 bool) (*Device, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	d := &Device{name: name, kind: "dummy", family: unix.AF_INET, netlink: h}
	if ipv6 {
		d.family = unix.AF_INET6
	}
	return d, nil
}

// Close closes the socket.
func (d *Device) Close() { d.netlink.Close() }

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

// Add adds an address, which may be there. One of IPv6 is local a moment later: the
// kernel adds its route by and by, without duplicate address detection, too
// (addrconf_dad_start in net/ipv6/addrconf.c).
func (d *Device) Add(addr netip.Addr) error {
	return d.change("add address %s to device %s: %w", addr, unix.EEXIST, d.netlink.AddrAdd)
}

// Remove removes an address, which may not be there; nor may the device.
func (d *Device) Remove(addr netip.Addr) error {
	err := d.change("remove address %s from device %s: %w", addr, unix.EADDRNOTAVAIL, d.netlink.AddrDel)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// change does f, for which done is as good as no error. Where the device is not
// the one that it was, it looks for it once.
func (d *Device) change(format string, addr netip.Addr, done error, f func(netlink.Link, *netlink.Addr) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if addr.Is6() != (d.family == unix.AF_INET6) {
		return fmt.Errorf(format, addr, d.name, unix.EAFNOSUPPORT)
	}
	err := error(unix.ENODEV)
	if d.index != 0 {
		err = f(nil, d.addr(addr))
	}
	if errors.Is(err, unix.ENODEV) {
		link, e := d.find()
		switch {
		case e != nil:
			err = e
		case link != nil:
			err = f(nil, d.addr(addr))
		}
	}
	if err != nil && !errors.Is(err, done) {
		return fmt.Errorf(format, addr, d.name, err)
	}
	return nil
}

// addr returns an address as the library has it. Nobody else is to be asked whether
// he has it, too: other nodes do.
func (d *Device) addr(addr netip.Addr) *netlink.Addr {
	out := &netlink.Addr{
		IPNet:     &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
		LinkIndex: d.index,
	}
	if addr.Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	return out
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
