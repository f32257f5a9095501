// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"slices"
	"strings"

	"fairlead/proxier/model"
)

// Resolve returns what the node named node has to do for a Service in a
// family, a ServicePort for each of its ports; nothing where the Service is nil
// or has no cluster IP of the family. It is pure; the order of slices does not
// matter.
func Resolve(svc *model.Service, slices []*model.EndpointSlice, node string, f model.Family) []*model.ServicePort {
	if svc == nil {
		return nil
	}
	ip, ok := svc.ClusterIP(f)
	if !ok {
		return nil
	}
	ports := make([]*model.ServicePort, 0, len(svc.Ports))
	for _, p := range svc.Ports {
		ports = append(ports, &model.ServicePort{
			Name:      model.ServicePortName{Service: svc.Key, Port: p.Name, Protocol: p.Protocol},
			ClusterIP: ip,
			Port:      p.Number,
			Endpoints: endpointsOf(p, slices, node, f),
		})
	}
	return ports
}

// endpointsOf returns the ready endpoints of a Service port. An address may be
// in several slices at once, while it moves between them or while its old pod
// terminates and a new one has it; it counts once, and as ready if one of them
// says so.
func endpointsOf(p model.Port, all []*model.EndpointSlice, node string, f model.Family) []model.Endpoint {
	var out []model.Endpoint
	for _, s := range all {
		if s.Family != f {
			continue
		}
		number, ok := portOf(s, p)
		if !ok {
			continue
		}
		for _, ep := range s.Endpoints {
			if ep.Ready {
				out = append(out, model.Endpoint{
					AddrPort: netip.AddrPortFrom(ep.Addr, number),
					Local:    node != "" && ep.NodeName == node,
				})
			}
		}
	}
	return sortEndpoints(out)
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

// sortEndpoints orders endpoints by their text form, as kube-proxy does, so
// that a takeover finds the rules in the order in which it would write them,
// and drops duplicates; a local one stays.
func sortEndpoints(eps []model.Endpoint) []model.Endpoint {
	type keyed struct {
		text string
		model.Endpoint
	}
	ks := make([]keyed, len(eps))
	for i, ep := range eps {
		ks[i] = keyed{ep.AddrPort.String(), ep}
	}
	slices.SortFunc(ks, func(a, b keyed) int {
		if c := strings.Compare(a.text, b.text); c != 0 || a.Local == b.Local {
			return c
		}
		if a.Local {
			return -1
		}
		return 1
	})
	ks = slices.CompactFunc(ks, func(a, b keyed) bool { return a.AddrPort == b.AddrPort })
	out := eps[:0]
	for _, k := range ks {
		out = append(out, k.Endpoint)
	}
	return slices.Clip(out)
}
