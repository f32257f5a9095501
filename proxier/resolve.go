// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"fairlead/proxier/model"
)

// Locality is where this node is: what makes an endpoint local, or near.
type Locality struct {
	// Node is the node's name.
	Node string
	// Zone is the node's zone, empty where unknown.
	Zone string
}

// Resolve returns what a node has to do for a Service in a family, a
// ServicePort for each of its ports; nothing where the Service is nil or has no
// cluster IP of the family. It is pure; the order of slices does not matter.
func Resolve(svc *model.Service, slices []*model.EndpointSlice, at Locality, f model.Family) []*model.ServicePort {
	if svc == nil {
		return nil
	}
	ip, ok := svc.ClusterIP(f)
	if !ok {
		return nil
	}
	common := model.ServicePort{
		ClusterIP:            ip,
		ExternalIPs:          ofFamily(svc.ExternalIPs, f),
		LoadBalancerIPs:      ofFamily(svc.LoadBalancerIPs, f),
		Restricted:           svc.Restricted,
		SourceRanges:         rangesOfFamily(svc.SourceRanges, f),
		ExternalTrafficLocal: svc.ExternalTrafficLocal,
		InternalTrafficLocal: svc.InternalTrafficLocal,
		HealthCheckNodePort:  svc.HealthCheckNodePort,
		AffinityTimeout:      svc.AffinityTimeout,
		Scheduler:            svc.Scheduler,
		Balancing:            svc.Balancing,
	}
	ports := make([]*model.ServicePort, 0, len(svc.Ports))
	for _, p := range svc.Ports {
		port := common
		port.Name = model.ServicePortName{Service: svc.Key, Port: p.Name, Protocol: p.Protocol}
		port.Port, port.NodePort = p.Number, p.NodePort
		if svc.InternalTrafficLocal || svc.ExternalTrafficLocal {
			port.SparePort = sparePort(svc.Ports, p)
		}
		choose(&port, candidatesOf(p, slices, at, f), at)
		ports = append(ports, &port)
	}
	return ports
}

// sparePort returns a number that none of the ports of p's protocol has, a different
// one for each of them. It stays while other ports come and go, unless one of them
// takes it.
func sparePort(ports []model.Port, p model.Port) uint16 {
	const half = 1 << 15
	taken := map[uint16]bool{0: true}
	var others []uint16
	for _, o := range ports {
		if o.Protocol == p.Protocol {
			taken[o.Number] = true
			others = append(others, o.Number)
		}
	}
	for _, n := range others { // each has the other half's number first
		if spare := n ^ half; n == p.Number && !taken[spare] {
			return spare
		}
		taken[n^half] = true
	}
	slices.Sort(others)
	spare := uint16(0)
	for _, n := range others { // those that cannot have it share out the rest
		if !slices.Contains(others, n^half) && n != half {
			continue
		}
		for taken[spare] {
			spare++
		}
		taken[spare] = true
		if n == p.Number {
			break
		}
	}
	return spare
}

func ofFamily(ips []netip.Addr, f model.Family) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if model.FamilyOf(ip) == f {
			out = append(out, ip)
		}
	}
	return out
}

func rangesOfFamily(ranges []netip.Prefix, f model.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		if model.FamilyOf(r.Addr()) == f {
			out = append(out, r)
		}
	}
	return out
}

// candidate is an endpoint of a port, whatever its condition.
type candidate struct {
	model.Endpoint
	text string // of its address and port, which is the order
	*model.SliceEndpoint
}

// draining tells whether the endpoint serves on while it terminates: the last
// resort where there is no ready one (KEP-1669).
func (c candidate) draining() bool { return c.Serving && c.Terminating }

// candidatesOf returns the endpoints of a Service port, in the order of their
// text form, as kube-proxy has them, so that a takeover finds the rules in the
// order in which it would write them.
//
// An address may be in several slices at once, while it moves between them or
// while its old pod terminates and a new one has it. It counts once, as the one
// that does not terminate (kubernetes/kubernetes#135593), that is ready, that
// serves, that is local, in this order.
func candidatesOf(p model.Port, all []*model.EndpointSlice, at Locality, f model.Family) []candidate {
	n := 0
	for _, s := range all {
		n += len(s.Endpoints)
	}
	out := make([]candidate, 0, n)
	for _, s := range all {
		number, ok := portOf(s, p)
		if s.Family != f || !ok {
			continue
		}
		for i := range s.Endpoints {
			ep := &s.Endpoints[i]
			addr := netip.AddrPortFrom(ep.Addr, number)
			out = append(out, candidate{
				Endpoint: model.Endpoint{AddrPort: addr, Local: at.Node != "" && ep.NodeName == at.Node},
				text:     addr.String(), SliceEndpoint: ep,
			})
		}
	}
	slices.SortStableFunc(out, func(a, b candidate) int {
		if order := cmp.Compare(a.text, b.text); order != 0 {
			return order
		}
		return cmp.Or(first(!a.Terminating, !b.Terminating), first(a.Ready, b.Ready),
			first(a.Serving, b.Serving), first(a.Local, b.Local),
			cmp.Compare(a.Hints.Nodes(), b.Hints.Nodes()), cmp.Compare(a.Hints.Zones(), b.Hints.Zones()))
	})
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.AddrPort == b.AddrPort })
}

// first orders true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// portOf finds the port of a slice that serves a Service port.
func portOf(s *model.EndpointSlice, p model.Port) (uint16, bool) {
	for _, sp := range s.Ports {
		if sp.Name == p.Name && sp.Protocol == p.Protocol {
			return sp.Number, true
		}
	}
	return 0, false
}

// choose sets which endpoints take the port's connections on this node. The
// two policies choose independently: each has its ready endpoints, and where it
// has none, its draining ones.
func choose(p *model.ServicePort, all []candidate, at Locality) {
	p.Known = len(all)
	p.Usable = slices.ContainsFunc(all, func(c candidate) bool { return c.Ready || c.draining() })
	if p.UsesCluster() {
		near := topology(all, at)
		p.Endpoints = firstOf(all, func(c candidate) bool { return c.Ready && near(c) }, candidate.draining)
	}
	if p.UsesLocal() {
		p.LocalEndpoints = firstOf(all, func(c candidate) bool { return c.Local && c.Ready },
			func(c candidate) bool { return c.Local && c.draining() })
	}
	if p.HealthCheckNodePort != 0 {
		p.LocalReady = addrsOf(all, func(c candidate) bool { return c.Local && c.Ready })
	}
	if p.Name.Protocol == model.UDP {
		p.Serving = those(all, func(c candidate) bool { return c.Ready || c.Serving },
			func(c candidate) netip.AddrPort { return c.AddrPort })
	}
}

// firstOf returns the endpoints that the first of the tests accepts that
// accepts any.
func firstOf(all []candidate, tests ...func(candidate) bool) []model.Endpoint {
	for _, accepts := range tests {
		if out := those(all, accepts, func(c candidate) model.Endpoint { return c.Endpoint }); len(out) > 0 {
			return out
		}
	}
	return nil
}

// those returns a part of each candidate that accepts names, in a slice that has
// no room for more: most of a snapshot's memory is endpoints.
func those[T any](all []candidate, accepts func(candidate) bool, part func(candidate) T) []T {
	n := 0
	for _, c := range all {
		if accepts(c) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]T, 0, n)
	for _, c := range all {
		if accepts(c) {
			out = append(out, part(c))
		}
	}
	return out
}

// addrsOf returns the distinct addresses of the candidates that accepts names.
func addrsOf(all []candidate, accepts func(candidate) bool) []netip.Addr {
	var out []netip.Addr
	for _, c := range all {
		if accepts(c) && !slices.Contains(out, c.AddrPort.Addr()) {
			out = append(out, c.AddrPort.Addr())
		}
	}
	return out
}

// topology returns which endpoints are near enough. Hints count only if every
// ready endpoint has them and one of them names this node, or else this zone: a
// Service whose hints are half written is better served from everywhere. Hints
// for nodes go before hints for zones (KEP-2433, KEP-3015).
func topology(all []candidate, at Locality) func(candidate) bool {
	switch {
	case at.Node != "" && hinted(all, model.Hints.Nodes, at.Node):
		return func(c candidate) bool { return includes(c.Hints.Nodes(), at.Node) }
	case at.Zone != "" && hinted(all, model.Hints.Zones, at.Zone):
		return func(c candidate) bool { return includes(c.Hints.Zones(), at.Zone) }
	}
	return func(candidate) bool { return true }
}

// hinted tells whether all ready endpoints have hints of a kind and some hint
// names here.
func hinted(all []candidate, of func(model.Hints) string, here string) bool {
	found := false
	for _, c := range all {
		if !c.Ready {
			continue
		}
		hints := of(c.Hints)
		if hints == "" {
			return false
		}
		found = found || includes(hints, here)
	}
	return found
}

// includes tells whether a name is among those in list, which has commas between
// them.
func includes(list, name string) bool {
	for other := range strings.SplitSeq(list, ",") {
		if other == name {
			return true
		}
	}
	return false
}
