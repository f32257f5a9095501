// SPDX-License-Identifier: Apache-2.0

// Package fake keeps the addresses of a dummy device in memory, for tests, and
// refuses what the kernel would refuse.
package fake

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Device does what device.Device does. The zero value is a device of IPv4 that is
// not there. It is safe for concurrent use. Its fields are set before it is used.
type Device struct {
	// IPv6 is the family; addresses of the other are refused.
	IPv6 bool
	// Fault, where set, is asked before each operation, which is as in Ops, and makes
	// it fail.
	Fault func(op string) error

	mu     sync.Mutex
	exists bool
	addrs  map[netip.Addr]bool
	ops    []string
}

var (
	errMissing = errors.New("no such device")
	errFamily  = errors.New("an address of the other family")
)

// do notes an operation, and does it unless it is to fail. f runs with mu held.
func (d *Device) do(op string, f func() error) error {
	d.mu.Lock()
	d.ops = append(d.ops, op)
	d.mu.Unlock()
	if d.Fault != nil {
		if err := d.Fault(op); err != nil {
			return fmt.Errorf("device: %s: %w", op, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := f(); err != nil {
		return fmt.Errorf("device: %s: %w", op, err)
	}
	return nil
}

// Close does nothing.
func (d *Device) Close() {}

// Ensure makes the device, unless it is there.
func (d *Device) Ensure() error {
	return d.do("ensure", func() error { d.make(); return nil })
}

// List returns the addresses on the device.
func (d *Device) List() (addrs []netip.Addr, found bool, err error) {
	err = d.do("list", func() error {
		for a := range d.addrs {
			addrs = append(addrs, a)
		}
		found = d.exists
		return nil
	})
	return addrs, found, err
}

// Add adds addresses, which may be there.
func (d *Device) Add(addrs ...netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		errs = append(errs, d.add(a))
	}
	return errors.Join(errs...)
}

func (d *Device) add(addr netip.Addr) error {
	return d.do("add "+addr.String(), func() error {
		if addr.Is6() != d.IPv6 {
			return errFamily
		}
		if !d.exists {
			return errMissing
		}
		d.addrs[addr] = true
		return nil
	})
}

// Remove removes an address, which may not be there.
func (d *Device) Remove(addr netip.Addr) error {
	return d.do("remove "+addr.String(), func() error { delete(d.addrs, addr); return nil })
}

// Destroy removes the device, if it is there.
func (d *Device) Destroy() error {
	return d.do("destroy", func() error { d.exists, d.addrs = false, nil; return nil })
}

// Save returns what is there, an address on each line, in order; nothing where
// there is no device. Neither Ops nor Fault know of it, nor of Put and Take.
func (d *Device) Save() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.exists {
		return ""
	}
	var b strings.Builder
	b.WriteString("kube-ipvs0\n")
	for _, a := range slices.SortedFunc(maps.Keys(d.addrs), netip.Addr.Compare) {
		b.WriteString("    " + netip.PrefixFrom(a, a.BitLen()).String() + "\n")
	}
	return b.String()
}

// Has tells whether an address is on the device.
func (d *Device) Has(addr netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.addrs[addr]
}

// Put makes the device with addresses, or adds them, as somebody else would.
func (d *Device) Put(addrs ...netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.make()
	for _, a := range addrs {
		d.addrs[a] = true
	}
}

// Take removes addresses, as somebody else would.
func (d *Device) Take(addrs ...netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addrs {
		delete(d.addrs, a)
	}
}

// Ops returns the operations so far that were asked for, and forgets them:
// "ensure", "list", "add 10.96.0.1", "remove 10.96.0.1", "destroy".
func (d *Device) Ops() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.ops
	d.ops = nil
	return out
}

// make makes the device. mu must be held.
func (d *Device) make() {
	if !d.exists {
		d.exists, d.addrs = true, map[netip.Addr]bool{}
	}
}
