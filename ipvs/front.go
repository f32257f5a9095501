// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/idiom"
	"fairlead/ipvs/servers"
	"fairlead/nat/ipset"
	"fairlead/proxier/model"
)

// place is a destination that connections may have.
type place struct {
	// Key has no address where the place is a port of the node, whichever address.
	dispatch.Key
	// health is set for health check node ports, which share their numbers with
	// nothing else that the API server lets through.
	health bool
}

// server returns what the kernel finds the place's virtual server by.
func (p place) server() servers.Key {
	return servers.Key{Addr: p.Addr, Protocol: servers.Protocol(idiom.ProtocolNumber(p.Protocol)), Port: p.Port}
}

// placeOf returns the place of a virtual server.
func placeOf(k servers.Key) place {
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		if idiom.ProtocolNumber(p) == uint8(k.Protocol) {
			return place{Key: dispatch.Key{Addr: k.Addr, Protocol: p, Port: k.Port}}
		}
	}
	return place{}
}

// front is what there is to be for a place.
type front struct {
	// sets are those that have the place as an element.
	sets setMask
	// vip is set where the device is to have the address.
	vip bool
	// server is nil where nothing serves.
	server *virtual
	// admits are the sources that may come, where the place is firewalled.
	admits []netip.Prefix
	// leads are rules in shared chains that lead to one of the port's own.
	leads []idiom.Place
}

// virtual is a virtual server.
type virtual struct {
	scheduler   model.Scheduler
	persistence time.Duration
	endpoints   []model.Endpoint // in no particular order
}

func (v *virtual) equal(o *virtual) bool {
	if v == nil || o == nil {
		return v == o
	}
	return v.scheduler == o.scheduler && v.persistence == o.persistence && slices.Equal(v.endpoints, o.endpoints)
}

// element returns the place as an element of a set.
func (p place) element(id setID) ipset.Element {
	if setKinds()[id].typ == ipset.BitmapPort {
		return ipset.Element{Port: p.Port}
	}
	return ipset.Element{Addr: p.Addr, Protocol: idiom.ProtocolNumber(p.Protocol), Port: p.Port}
}

// byNodePort tells whether a set of ports is for the place's protocol.
func (p place) byNodePort(id setID) bool {
	switch id {
	case nodePortsTCP, nodePortsLocalTCP:
		return p.Protocol == model.TCP
	case nodePortsUDP, nodePortsLocalUDP:
		return p.Protocol == model.UDP
	}
	return false
}

// elements calls yield for each element that a place has in a set.
func (f *front) elements(p place, yield func(setID, ipset.Element)) {
	if f == nil {
		return
	}
	for id := range setCount {
		if f.sets.has(id) {
			yield(id, p.element(id))
		}
	}
	for _, from := range f.admits {
		e := p.element(firewalled)
		e.Net = from
		if from.IsSingleIP() {
			yield(sourceIPs, e)
		} else {
			yield(sourceCIDRs, e)
		}
	}
}

// rank orders those who want one place: who can serve comes first, then by the
// kind of the place.
type rank uint8

// The kinds of places; a rank of one that cannot serve has idle added.
const (
	ofCluster rank = iota
	ofExternal
	ofNodePort
	idle rank = 8
)

// claim is what one port of a Service wants of a place.
type claim struct {
	place
	rank  rank
	owner model.ServicePortName
	front *front
}

func (c claim) compare(o claim) int {
	return cmp.Or(cmp.Compare(c.rank, o.rank), c.owner.Compare(o.owner))
}

// ledger knows who wants which places. A place belongs to the first of those who
// want it; the others have nothing of it, so that two Services with one address do
// not mix.
type ledger struct {
	claims map[place][]claim
}

// owner returns what there is to be for a place, nil for nothing.
func (l ledger) owner(p place) *front {
	if cs := l.claims[p]; len(cs) > 0 {
		return cs[0].front
	}
	return nil
}

// replace puts what a port wants now in the place of what it wanted, and calls
// changed for each place of which there is to be something else.
func (l ledger) replace(old, now []claim, changed func(p place, old, now *front)) {
	before := map[place]*front{}
	for _, c := range old {
		before[c.place] = l.owner(c.place)
		l.remove(c)
	}
	for _, c := range now {
		if _, ok := before[c.place]; !ok {
			before[c.place] = l.owner(c.place)
		}
		l.add(c)
	}
	for p, was := range before {
		changed(p, was, l.owner(p))
	}
}

func (l ledger) remove(c claim) {
	cs := slices.DeleteFunc(l.claims[c.place], func(o claim) bool { return o.owner == c.owner })
	if len(cs) == 0 {
		delete(l.claims, c.place)
	} else {
		l.claims[c.place] = cs
	}
}

func (l ledger) add(c claim) {
	cs := l.claims[c.place]
	i, _ := slices.BinarySearchFunc(cs, c, claim.compare)
	l.claims[c.place] = slices.Insert(cs, i, c)
}
