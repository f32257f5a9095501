// SPDX-License-Identifier: Apache-2.0

// Package device keeps the dummy device whose addresses make the addresses of
// virtual servers local: the kernel delivers packets to them, and IPVS takes them
// on their way in. The device is never up, so nothing is sent through it.
package device

import (
	"errors"
	"net/netip"
)

// Name is the device's name, in kube-proxy too.
const Name = "kube-ipvs0"

// ErrAnotherKind is why a device cannot be used that has the right name.
var ErrAnotherKind = errors.New("there is a device of another kind with this name")

// Device is the device in the network namespace of the thread that called New, and
// the addresses of one family on it. Both families have one device. Its methods may
// be called from any thread. It is safe for concurrent use.
type Device struct{}

// New opens a socket; it makes no device.
func New(name string, ipv6 bool) (*Device, error) { return nil, errors.ErrUnsupported }

// Close closes the socket.
func (d *Device) Close() {}

// Ensure makes the device, or takes one that is there with its addresses. One that
// is up is put down.
func (d *Device) Ensure() error { return errors.ErrUnsupported }

// List returns the addresses on the device, in no particular order: those of the
// family that are alone in their network (/32, /128). Others are not ours. found is
// false where there is no device.
func (d *Device) List() (addrs []netip.Addr, found bool, err error) {
	return nil, false, errors.ErrUnsupported
}

// Add adds an address, which may be there.
func (d *Device) Add(netip.Addr) error { return errors.ErrUnsupported }

// Remove removes an address, which may not be there; nor may the device.
func (d *Device) Remove(netip.Addr) error { return errors.ErrUnsupported }

// Destroy removes the device, if it is there, with all addresses of both families.
func (d *Device) Destroy() error { return errors.ErrUnsupported }
