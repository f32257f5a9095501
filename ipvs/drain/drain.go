// SPDX-License-Identifier: Apache-2.0

// Package drain decides when a destination that is no longer wanted may go: it has
// weight 0, and goes when it has no connections or has had its time. It looks at
// no clock and no kernel.
package drain

import (
	"net/netip"
	"slices"
	"time"

	"fairlead/ipvs/servers"
)

// Interval is how often the destinations that drain are to be looked at: the kernel
// tells of no connection's end.
const Interval = 10 * time.Second

// Drains are the destinations that drain. It is not safe for concurrent use.
type Drains struct {
	period time.Duration
	ends   map[servers.Key]map[netip.AddrPort]time.Time
}

// New returns none. A destination drains for no longer than period.
func New(period time.Duration) *Drains {
	return &Drains{period: period, ends: map[servers.Key]map[netip.AddrPort]time.Time{}}
}

// Worth tells whether destinations of a protocol drain: of UDP they go at once, as
// a client would not learn that it is to ask another.
func Worth(p servers.Protocol) bool { return p != servers.UDP }

// Start notes that a destination has got weight 0, or has been found with it. One
// that drains already goes on as before.
func (d *Drains) Start(key servers.Key, addr netip.AddrPort, now time.Time) {
	if d.ends[key] == nil {
		d.ends[key] = map[netip.AddrPort]time.Time{}
	}
	if _, ok := d.ends[key][addr]; !ok {
		d.ends[key][addr] = now.Add(d.period)
	}
}

// Stop notes that a destination has gone or is wanted again.
func (d *Drains) Stop(key servers.Key, addr netip.AddrPort) {
	delete(d.ends[key], addr)
	if len(d.ends[key]) == 0 {
		delete(d.ends, key)
	}
}

// Forget notes that a virtual server has gone.
func (d *Drains) Forget(key servers.Key) { delete(d.ends, key) }

// Draining tells whether a destination drains.
func (d *Drains) Draining(key servers.Key, addr netip.AddrPort) bool {
	_, ok := d.ends[key][addr]
	return ok
}

// Len returns how many destinations drain.
func (d *Drains) Len() (n int) {
	for _, ends := range d.ends {
		n += len(ends)
	}
	return n
}

// Servers returns the virtual servers that have destinations to look at, in order.
func (d *Drains) Servers() []servers.Key {
	out := make([]servers.Key, 0, len(d.ends))
	for k := range d.ends {
		out = append(out, k)
	}
	slices.SortFunc(out, servers.Key.Compare)
	return out
}

// Done returns the destinations of a virtual server, as the kernel lists it, that
// are to go now, in order: they drain, are there, and have no connections or have
// had their time. Those that drain and are not there any more it forgets. The others
// stay until Stop.
func (d *Drains) Done(l servers.Listed, now time.Time) []netip.AddrPort {
	var out []netip.AddrPort
	there := map[netip.AddrPort]bool{}
	for _, s := range l.Destinations {
		there[s.Addr] = true
		end, draining := d.ends[l.Key][s.Addr]
		if draining && (s.ActiveConns+s.InactiveConns == 0 || !now.Before(end)) {
			out = append(out, s.Addr)
		}
	}
	for addr := range d.ends[l.Key] {
		if !there[addr] {
			d.Stop(l.Key, addr)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}
