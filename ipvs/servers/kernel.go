// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"net/netip"
)

// Kernel has the virtual servers of one family in the network namespace of the
// thread that called New; its methods may be called from any. It is safe for
// concurrent use.
type Kernel struct{}

// New opens the kernel's IPVS of a family, and has the module loaded if it is not.
// It fails with ErrNotSupported where there is none to be had.
func New(ipv6 bool) (*Kernel, error) { return nil, ErrNotSupported }

// Close closes the socket.
func (k *Kernel) Close() {}

// List returns all virtual servers of the family with their destinations, in no
// particular order. It takes one dump, and one more for each virtual server.
func (k *Kernel) List() ([]Listed, error) { return nil, ErrNotSupported }

// Get returns one virtual server with its destinations.
func (k *Kernel) Get(key Key) (Listed, error) { return Listed{}, ErrNotSupported }

// Create makes a virtual server without destinations: until it has one, packets to
// it are dropped or refused.
func (k *Kernel) Create(s Server) error { return ErrNotSupported }

// Update makes a virtual server that is there as Create would. Its destinations
// and connections stay.
func (k *Kernel) Update(s Server) error { return ErrNotSupported }

// Delete removes a virtual server and its destinations. The kernel drops packets
// of connections to them.
func (k *Kernel) Delete(key Key) error { return ErrNotSupported }

// AddDestination adds a destination.
func (k *Kernel) AddDestination(key Key, d Destination) error { return ErrNotSupported }

// UpdateDestination gives a destination that is there another weight. Connections
// to it go on.
func (k *Kernel) UpdateDestination(key Key, d Destination) error { return ErrNotSupported }

// DeleteDestination removes a destination. The kernel drops packets of connections
// to it.
func (k *Kernel) DeleteDestination(key Key, addr netip.AddrPort) error { return ErrNotSupported }

// Timeouts returns the times after which connections are forgotten.
func (k *Kernel) Timeouts() (Timeouts, error) { return Timeouts{}, ErrNotSupported }

// SetTimeouts sets those of them that are not 0.
func (k *Kernel) SetTimeouts(t Timeouts) error { return ErrNotSupported }

// Schedulers returns those of names that the kernel has, as it says itself when
// asked to use one: it loads their modules where it can. To ask, it makes and
// removes a virtual server on an address for documentation.
func (k *Kernel) Schedulers(names ...string) ([]string, error) { return nil, ErrNotSupported }

// AllSchedulers returns the names of all schedulers that Linux has.
func AllSchedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}
}
