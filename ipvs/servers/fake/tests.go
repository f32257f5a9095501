// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"net/netip"

	"fairlead/ipvs/servers"
)

// What follows is for tests to look at the kernel, and to be somebody else in it.
// It is neither in Ops nor does Fault see it.

// Servers returns all virtual servers.
func (k *Kernel) Servers() []servers.Listed {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.list()
}

// Save returns all virtual servers as ipvsadm -Sn prints them.
func (k *Kernel) Save() string { return servers.Save(k.Servers()) }

// Put makes a virtual server as it is listed, in place of one that is there.
func (k *Kernel) Put(l servers.Listed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &server{Server: l.Server, altered: l.Altered, stats: l.Stats, destinations: map[netip.AddrPort]servers.Status{}}
	for _, d := range l.Destinations {
		s.destinations[d.Addr] = d
	}
	k.put(s)
}

// Take removes a virtual server, if it is there.
func (k *Kernel) Take(key servers.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.servers, key)
}

// SetConns gives a destination that is there connections.
func (k *Kernel) SetConns(key servers.Key, addr netip.AddrPort, active, inactive int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.servers[key].destinations[addr]
	d.ActiveConns, d.InactiveConns = active, inactive
	k.servers[key].destinations[addr] = d
}

// Ops returns the operations so far that were asked for, and forgets them: as
// arguments of ipvsadm, "-a -t 10.96.0.1:80 -r 10.244.0.1:80 -m -w 1" for example.
// List is "-L", Get is "-L -t 10.96.0.1:80", Schedulers is "probe".
func (k *Kernel) Ops() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.ops
	k.ops = nil
	return out
}

// put adds a virtual server. mu must be held.
func (k *Kernel) put(s *server) {
	if k.servers == nil {
		k.servers = map[servers.Key]*server{}
	}
	k.servers[s.Key] = s
}

// list returns all virtual servers. mu must be held.
func (k *Kernel) list() []servers.Listed {
	var out []servers.Listed
	for _, s := range k.servers {
		out = append(out, s.listed())
	}
	return out
}

// listed returns the virtual server as the kernel lists it.
func (s *server) listed() servers.Listed {
	out := servers.Listed{Server: s.Server, Altered: s.altered, Stats: s.stats}
	for _, d := range s.destinations {
		out.Destinations = append(out.Destinations, d)
	}
	return out
}

// anyAddr returns an address of the family.
func (k *Kernel) anyAddr() netip.Addr {
	if k.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
