// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"maps"
	"net/netip"
	"slices"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// HostPort is a port of the node that leads to a pod.
type HostPort struct {
	// HostIP is the node's address, invalid for all that it has.
	HostIP   netip.Addr
	Protocol model.Protocol
	Port     uint16
	// To is the pod's address and port.
	To netip.AddrPort
	// Except are addresses on which the port is not the pod's, where it is on all.
	Except []netip.Addr
	// Masqueraded are whose packets to the pod get the node's address.
	Masqueraded []netip.Prefix
	// Comment is for people.
	Comment string
}

// PodMasquerade is what pods need to reach the outside. Its zero value masquerades nobody.
type PodMasquerade struct {
	// Pods are where the pods have their addresses, and Exempt the destinations that see
	// them.
	Pods, Exempt []netip.Prefix
}

// The sets for what there is besides Services.
const (
	hostPorts          = "host-ports"
	hostPortsOnAddress = "host-ports-on-address"
	hostPortsExcept    = "host-ports-except"
	hostPortsMasq      = "host-ports-masqueraded"
	masqueradedPods    = "masqueraded-pods"
	nonMasquerade      = "non-masquerade-cidrs"
)

// unit is a part of what there is besides Services: pod masquerading, or one host port.
type unit struct {
	what string
	at   place
}

func (u unit) compare(o unit) int {
	return compareStrings(u.what, o.what, string(u.at.key()), string(o.at.key()))
}

// String names the unit to people.
func (u unit) String() string {
	if u.what == ofHostPort {
		return "host port " + u.at.String()
	}
	return u.what
}

const (
	ofHostPort      = "host port"
	ofPodMasquerade = "pod masquerade"
)

// annex is what there is to be besides Services, told before a Sync.
type annex struct {
	// wanted has what there is to be, and touched the units that no Sync has written as
	// they are wanted.
	wanted  map[unit][]entry
	touched map[unit]bool
	// podsKnown is set once it has been told who is masqueraded. Before, what the table
	// has stays.
	podsKnown bool
}

// SetHostPorts notes which host ports have gone, and then which there are or have
// changed. The next Sync writes it.
func (m *Mode) SetHostPorts(gone, now []HostPort) {
	for _, h := range gone {
		m.want(unit{ofHostPort, h.at()}, nil)
	}
	for _, h := range now {
		m.want(unit{ofHostPort, h.at()}, h.entries())
	}
}

// SetPodMasquerade notes what pods need. The next Sync writes it.
func (m *Mode) SetPodMasquerade(p PodMasquerade) {
	m.annex.podsKnown = true
	m.want(unit{what: ofPodMasquerade}, p.entries())
}

func (m *Mode) want(u unit, entries []entry) {
	if m.annex.wanted[u] = entries; len(entries) == 0 {
		delete(m.annex.wanted, u)
	}
	m.annex.touched[u] = true
}

func (h HostPort) at() place { return place{h.HostIP, protocolNumber(h.Protocol), h.Port} }

// entries renders a host port.
func (h HostPort) entries() []entry {
	at, proto := h.at(), protocolNumber(h.Protocol)
	out := []entry{{named(at, hostPortsOnAddress, hostPorts), table.Element{
		Key: string(at.key()), Data: string(endpointData(h.To)), Comment: table.Shorten(h.Comment),
	}}}
	for _, a := range h.Except {
		out = append(out, entry{hostPortsExcept, table.Element{Key: string(place{a, proto, h.Port}.key())}})
	}
	to := string(place{h.To.Addr(), proto, h.To.Port()}.key())
	for _, p := range disjoint(h.Masqueraded) {
		out = append(out, entry{hostPortsMasq, table.Element{
			Key: to + string(table.Key(nil).Addr(p.Addr())), End: to + table.LastOf(p),
		}})
	}
	return out
}

// entries renders who is masqueraded, and where not.
func (p PodMasquerade) entries() []entry {
	return slices.Concat(ranges(masqueradedPods, p.Pods), ranges(nonMasquerade, p.Exempt))
}

// annexSets are the sets for what there is besides Services.
func (c Config) annexSets() []*table.Set {
	set := func(name, comment string, key ...table.Type) *table.Set {
		return &table.Set{Name: name, Comment: comment, Key: key}
	}
	ip := c.addr()
	all := set(hostPorts, "ports of the node that lead to pods", c.destination(byNodePort)...)
	one := set(hostPortsOnAddress, "ports that do so on one address of the node", c.destination(byAddress)...)
	all.Data, one.Data = c.endpoint(), c.endpoint()
	masq := set(hostPortsMasq, "whose packets to pods by host ports get the address of this node", c.destination(byAddress, ip)...)
	pods := set(masqueradedPods, "who comes to the outside with the address of this node", ip)
	exempt := set(nonMasquerade, "but not there", ip)
	masq.Interval, pods.Interval, exempt.Interval = true, true, true
	return []*table.Set{all, one, set(hostPortsExcept, "where Services have such a port", c.destination(byAddress)...), masq, pods, exempt}
}

// annexChains makes the chains for what there is besides Services. They come after those
// of others, too: whoever has translated a packet before has decided.
func (s *sketch) annexChains() {
	vip, np := s.to(byAddress), s.to(byNodePort)
	s.chain("host-ports",
		s.rule().DNAT(s.sets[hostPortsOnAddress], vip...),
		s.rule().In(s.sets[hostPortsExcept], vip...).Return(),
		s.rule().DNAT(s.sets[hostPorts], np...))
	own := s.rule()
	if s.f == table.IPv6 || !s.LocalhostHostPorts { // a packet from ::1 cannot leave the node
		own = own.NotLoopback()
	}
	s.base("nat-prerouting-last", "nat", "prerouting", -95, s.rule().NotLoopback().ToNode().Goto("host-ports"))
	s.base("nat-output-last", "nat", "output", -95, own.ToNode().Goto("host-ports"))

	masquerade := s.rule().Masquerade
	if s.KeepSourcePorts {
		masquerade = s.rule().MasqueradeKeepingPorts
	}
	s.chain("pods-to-outside",
		s.rule().ToNode().Return(),
		s.rule().In(s.sets[nonMasquerade], s.daddr()).Return(),
		masquerade())
	s.base("nat-postrouting-last", "nat", "postrouting", 105, s.rule().In(s.sets[masqueradedPods], s.saddr()).Goto("pods-to-outside"))
}

// hostPortSource masquerades what comes by a host port and would be answered past it.
func (s *sketch) hostPortSource() table.Rule {
	return s.rule().In(s.sets[hostPortsMasq], s.to(byAddress, s.saddr())...).Masquerade()
}

// unitDeltas are the changes of units since the last Sync.
func (w *writing) unitDeltas() []delta {
	var out []delta
	for _, u := range slices.SortedFunc(maps.Keys(w.annex.touched), unit.compare) {
		was, is := w.units[u], w.wantedOf(u)
		dl := delta{unit: u, entries: is}
		dl.dels, dl.add = w.compare(was, is)
		out = append(out, dl)
	}
	return out
}

// wantedOf returns what there is to be of a unit: while nothing may be removed, at least
// what there is.
func (w *writing) wantedOf(u unit) []entry {
	is := w.annex.wanted[u]
	if len(is) == 0 && !w.d.Prune && len(w.units[u]) > 0 {
		w.withheld = true
		return w.units[u]
	}
	return is
}

// allUnits returns all that there is to be besides Services, in order, given what there
// was and what the table has.
func (w *writing) allUnits(actual found) (order []unit, all map[unit][]entry) {
	all = maps.Clone(w.annex.wanted)
	if !w.d.Prune {
		for u, entries := range w.hadUnits {
			if len(all[u]) == 0 {
				all[u] = entries
				w.withheld = true
			}
		}
	}
	if !w.annex.podsKnown {
		delete(all, unit{what: ofPodMasquerade})
		for _, k := range slices.SortedFunc(maps.Keys(actual), id.compare) {
			if k.set == masqueradedPods || k.set == nonMasquerade {
				u := unit{what: ofPodMasquerade}
				all[u] = append(all[u], entry{k.set, actual[k]})
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), unit.compare), all
}
