// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"net/netip"
	"sync/atomic"
)

// Ports hands out source ports in turn, so that one recurs only after all others
// have been used. It may be used by several goroutines. A nil one leaves the
// choice to the kernel, which soon makes the same one again.
type Ports struct {
	first, last uint16
	used        atomic.Uint32
}

// NewPorts hands out the ports from first to last.
func NewPorts(first, last uint16) *Ports { return &Ports{first: first, last: last} }

// len is how many there are, 0 where the kernel chooses.
func (p *Ports) len() int {
	if p == nil {
		return 0
	}
	return int(p.last-p.first) + 1
}

// next returns a port, 0 for any.
func (p *Ports) next() uint16 {
	if p == nil {
		return 0
	}
	return p.first + uint16((p.used.Add(1)-1)%uint32(p.last-p.first+1))
}

// local returns what a socket for a request of the probe is to be bound to, and
// whether to anything.
func (p Probe) local() (_ netip.AddrPort, bound bool) {
	from := p.Source
	if !from.IsValid() {
		if from = netip.IPv6Unspecified(); p.To.Addr().Is4() {
			from = netip.IPv4Unspecified()
		}
	}
	return netip.AddrPortFrom(from, p.Ports.next()), p.Source.IsValid() || p.Ports != nil
}
