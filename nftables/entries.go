// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"net/netip"
	"slices"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// place is a destination that a port of a Service wants: an address, protocol and port,
// or with an invalid address a port of the node.
type place struct {
	addr  netip.Addr
	proto uint8
	port  uint16
}

// String returns something like "192.0.2.1 80/tcp", or "80/tcp".
func (p place) String() string {
	out := fmt.Sprintf("%d/%s", p.port, table.ProtocolName(p.proto))
	if p.addr.IsValid() {
		return p.addr.String() + " " + out
	}
	return out
}

func (p place) front() front {
	if p.addr.IsValid() {
		return byAddress
	}
	return byNodePort
}

// key is the place as the key of an element.
func (p place) key() table.Key {
	if p.addr.IsValid() {
		return table.Key(nil).Addr(p.addr).Proto(p.proto).Port(p.port)
	}
	return table.Key(nil).Proto(p.proto).Port(p.port)
}

// placeOf reads the key of an element.
func placeOf(key string, f front, fam table.Family) (place, bool) {
	n := 0
	if f == byAddress {
		if n = 4; fam == table.IPv6 {
			n = 16
		}
	}
	if len(key) < n+8 {
		return place{}, false
	}
	addr, _ := netip.AddrFromSlice([]byte(key[:n]))
	return place{addr, key[n], uint16(key[n+4])<<8 | uint16(key[n+5])}, true
}

// places are the destinations that a port wants, its cluster IP first, and each once.
func places(p *model.ServicePort) []place {
	proto := protocolNumber(p.Name.Protocol)
	out := []place{{p.ClusterIP, proto, p.Port}}
	for _, ips := range [][]netip.Addr{p.ExternalIPs, p.LoadBalancerIPs} {
		for _, ip := range ips {
			if pl := (place{ip, proto, p.Port}); !slices.Contains(out, pl) {
				out = append(out, pl)
			}
		}
	}
	if p.NodePort != 0 {
		out = append(out, place{proto: proto, port: p.NodePort})
	}
	return out
}

// entry is an element that there is to be, of a set that is told by its name, or by the
// class or the timeout that it is of.
type entry struct {
	of any
	table.Element
}

// shared tells whether several ports may want the same element.
func (e entry) shared() bool {
	switch e.of {
	case clusterIPs, externalIPs, hairpin, ownEndpoints, hostPortsMasq:
		return true
	}
	return false
}

// setName is the name of the entry's set.
func (e entry) setName() string {
	switch of := e.of.(type) {
	case class:
		return of.name()
	case timeout:
		return of.name()
	}
	return e.of.(string)
}

// id tells entries apart.
type id struct{ set, key, end string }

func (e entry) id() id { return id{e.setName(), e.Key, e.End} }

// placed are the endpoints of a port in their slots, by policy.
type placed [2][]netip.AddrPort

// place gives endpoints their slots: those that have one keep it as far as they can,
// so that a change concerns the endpoints that change and at most as many others. Where
// keep is set, none of those that have a slot loses it.
func arrange(had []netip.AddrPort, want []model.Endpoint, keep bool) []netip.AddrPort {
	wanted := make(map[netip.AddrPort]bool, len(want))
	for _, e := range want {
		wanted[e.AddrPort] = true
	}
	out := slices.Clone(had)
	var holes []int
	for i, ep := range had {
		if wanted[ep] {
			delete(wanted, ep)
		} else if !keep {
			holes = append(holes, i)
		}
	}
	for _, e := range want { // in order, so that the result is always the same
		switch {
		case !wanted[e.AddrPort]:
			continue
		case len(holes) > 0:
			out[holes[0]], holes = e.AddrPort, holes[1:]
		default:
			out = append(out, e.AddrPort)
		}
		delete(wanted, e.AddrPort)
	}
	for len(holes) > 0 { // the last one fills the first hole
		last := len(out) - 1
		if holes[len(holes)-1] == last {
			holes = holes[:len(holes)-1]
		} else {
			out[holes[0]], holes = out[last], holes[1:]
		}
		out = out[:last]
	}
	return out
}

// renderer turns ports into entries. It is pure.
type renderer struct {
	Config
	node nodeView
}

// port renders one port whose endpoints are in slots, for those of its places that it
// has.
func (r renderer) port(p *model.ServicePort, slots placed, has func(place) bool) []entry {
	w := &portWriter{renderer: r, ServicePort: p, slots: slots, comment: table.Shorten(p.Name.String())}
	for i, pl := range places(p) {
		if !has(pl) {
			continue
		}
		if i == 0 {
			w.internal(pl)
		} else {
			w.external(pl)
		}
	}
	w.loops()
	return w.out
}

// state renders what there is of one port, with what counts it.
func (r renderer) state(st *portState) []entry {
	out := r.port(st.port, st.slots, st.has)
	if st.counted {
		out = append(out, countingEntries(st.port, st.has)...)
	}
	return out
}

// portWriter is the work on one port.
type portWriter struct {
	renderer
	*model.ServicePort
	slots   placed
	comment string
	out     []entry
}

func (w *portWriter) add(of any, key table.Key) {
	w.out = append(w.out, entry{of, table.Element{Key: string(key)}})
}

// note adds a place to a set, with the name of the port for people.
func (w *portWriter) note(of any, pl place) {
	w.out = append(w.out, entry{of, table.Element{Key: string(pl.key()), Comment: w.comment}})
}

// named returns one of two sets, by the way in which a place is reached.
func named(pl place, address, nodePort string) string {
	if pl.front() == byNodePort {
		return nodePort
	}
	return address
}

// internal renders the cluster IP.
func (w *portWriter) internal(pl place) {
	w.add(clusterIPs, table.Key(nil).Addr(pl.addr))
	p := cluster
	if w.InternalTrafficLocal {
		p = local
		if w.Usable {
			w.note(internalLocal, pl)
		}
	}
	w.serve(pl, p)
	if len(w.slots[p]) == 0 {
		w.refuse(pl)
	}
}

// external renders an address outside, or the node port.
func (w *portWriter) external(pl place) {
	if pl.front() == byAddress {
		w.add(externalIPs, table.Key(nil).Addr(pl.addr))
	}
	if !w.ExternalTrafficLocal {
		w.serve(pl, cluster)
		if len(w.slots[cluster]) == 0 {
			w.refuse(pl)
			return
		}
		w.note(named(pl, masquerade, masqueradeNP), pl)
	} else {
		if w.Usable {
			w.note(named(pl, externalLocal, externalLocalNP), pl)
			w.serve(pl, cluster, local)
		}
		if len(w.slots[local]) == 0 {
			w.refuse(pl)
		}
	}
	if pl.front() == byAddress && slices.Contains(w.LoadBalancerIPs, pl.addr) {
		w.admit(pl)
	}
}

// refuse renders that nobody serves a place: a Service without any endpoint refuses, one
// that has some on other nodes drops.
func (w *portWriter) refuse(pl place) {
	if w.Usable {
		w.note(named(pl, noLocal, noLocalNP), pl)
	} else {
		w.note(named(pl, noEndpoints, noEndpointsNP), pl)
	}
}

// serve renders the endpoints of a place.
func (w *portWriter) serve(pl place, policies ...policy) {
	key := pl.key()
	targets := map[netip.AddrPort]bool{}
	for _, p := range policies {
		if len(w.slots[p]) == 0 {
			continue
		}
		w.note(w.class(pl.front(), p), pl)
		m := endpointsName(pl.front(), p)
		for i, ep := range w.slots[p] {
			w.out = append(w.out, entry{m, table.Element{
				Key:  string(append(key[:len(key):len(key)], table.Key(nil).Integer(uint32(i))...)),
				Data: string(endpointData(ep)),
			}})
			if w.AffinityTimeout > 0 && !targets[ep] {
				targets[ep] = true
				w.add(affinityTargetsName(pl.front()), append(key[:len(key):len(key)], endpointData(ep)...))
			}
		}
	}
	if len(targets) > 0 {
		w.note(timeout{pl.front(), w.AffinityTimeout}, pl)
	}
}

// class is that of a place under a policy.
func (w *portWriter) class(f front, p policy) class {
	n := len(w.slots[p])
	if how := w.balancing(w.ServicePort); how != model.Random {
		return class{f, p, n, how}
	}
	return class{f, p, slotsFor(n), model.Random}
}

func endpointData(ep netip.AddrPort) table.Key {
	return table.Key(nil).Addr(ep.Addr()).Port(ep.Port())
}

// admit renders the source ranges of a load balancer's address.
func (w *portWriter) admit(pl place) {
	all := slices.ContainsFunc(w.SourceRanges, func(p netip.Prefix) bool { return p.Bits() == 0 })
	if !w.Restricted || all || !w.Usable {
		return
	}
	w.note(restricted, pl)
	from := slices.Clone(w.SourceRanges)
	if slices.ContainsFunc(from, func(p netip.Prefix) bool { return p.Contains(w.node.ip) }) {
		// The node's own request to a load balancer's address that the node itself has
		// comes from that address.
		from = append(from, netip.PrefixFrom(pl.addr, pl.addr.BitLen()))
	}
	key := pl.key()
	for _, p := range disjoint(from) {
		w.out = append(w.out, entry{sourceRanges, table.Element{
			Key: string(append(key[:len(key):len(key)], table.Key(nil).Addr(p.Addr())...)),
			End: string(key) + table.LastOf(p),
		}})
	}
}

// loops renders the endpoints that may reach themselves, and those of this node.
func (w *portWriter) loops() {
	seen := map[netip.Addr]bool{}
	for _, ep := range w.MayReachThemselves() {
		if a := ep.Addr(); !seen[a] {
			seen[a] = true
			w.add(hairpin, table.Key(nil).Addr(a).Addr(a))
		}
	}
	if !w.MasqueradeNeighbours {
		return
	}
	own := map[netip.Addr]bool{}
	for _, eps := range [][]model.Endpoint{w.Endpoints, w.LocalEndpoints} {
		for _, ep := range eps {
			if a := ep.AddrPort.Addr(); ep.Local && !own[a] {
				own[a] = true
				w.add(ownEndpoints, table.Key(nil).Addr(a))
			}
		}
	}
}

// ofNode renders what the node itself is in, and what is there whatever Services there are.
func (r renderer) ofNode() []entry {
	out := append(ranges(podCIDRs, r.node.podCIDRs), ranges(serviceCIDRs, r.node.serviceCIDRs)...)
	if !r.node.nodePorts.All {
		for _, a := range r.node.nodePorts.Addrs {
			out = append(out, entry{nodePortIPs, table.Element{Key: string(table.Key(nil).Addr(a))}})
		}
	}
	return append(out, r.countingOthers()...)
}
