// SPDX-License-Identifier: Apache-2.0

package ipset

import "net/netip"

// Loop is an endpoint that may reach itself: of a set of destinations and
// sources, the element that has the endpoint's address as both.
type Loop struct {
	// Protocol is a number of IP, IPPROTO_TCP for example.
	Protocol uint8
	AddrPort netip.AddrPort
}

// Loops is a set of endpoints of one family, in the network namespace of the
// thread that calls its methods.
type Loops struct{ set *Set }

// NewLoops returns the set of a name, which may not be there.
func NewLoops(name string, ipv6 bool) *Loops {
	return &Loops{NewSet(name, HashIPPortIP, ipv6)}
}

// Name returns the name of the set.
func (l *Loops) Name() string { return l.set.Name() }

// List returns what is in the set; found is false where there is no set. Elements
// of two addresses, which somebody else must have added, are left out.
func (l *Loops) List() (in []Loop, found bool, err error) {
	elements, found, err := l.set.List()
	for _, e := range elements {
		if e.Net == Single(e.Addr) {
			in = append(in, Loop{Protocol: e.Protocol, AddrPort: netip.AddrPortFrom(e.Addr, e.Port)})
		}
	}
	return in, found, err
}

// Create makes the set. One that is there and would be the same stays as it is.
func (l *Loops) Create() error { return l.set.Create(0) }

// Add adds elements; some may be there already. After an error some may be.
func (l *Loops) Add(loops ...Loop) error { return l.set.Add(elements(loops)...) }

// Remove removes elements; some may not be there.
func (l *Loops) Remove(loops ...Loop) error { return l.set.Remove(elements(loops)...) }

// Destroy removes the set, if it is there. It fails as Sets.Destroy does.
func (l *Loops) Destroy() error { return l.set.Destroy() }

func elements(loops []Loop) []Element {
	out := make([]Element, len(loops))
	for i, l := range loops {
		out[i] = Element{Addr: l.AddrPort.Addr(), Protocol: l.Protocol, Port: l.AddrPort.Port(), Net: Single(l.AddrPort.Addr())}
	}
	return out
}
