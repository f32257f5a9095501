// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"fairlead/proxier/model"
)

// here is the name of the node that the tests run on.
const here = "here"

func objectKey(name string) model.ObjectKey { return model.ObjectKey{Namespace: "shop", Name: name} }

// service returns a Service with cluster IPs ("10.96.0.1 fd00::1") and ports
// ("http 80/TCP", or "80/TCP" for an unnamed one).
func service(name, ips string, ports ...string) *model.Service {
	s := &model.Service{Key: objectKey(name), Ports: parsePorts(ports)}
	for _, ip := range strings.Fields(ips) {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(ip))
	}
	return s
}

// conditions are what is written at the end of an endpoint: ready, serving,
// terminating.
var conditions = map[string][3]bool{
	"":   {true, true, false},
	"!":  {false, false, false},
	"?":  {false, true, false},
	"~":  {false, true, true},
	"~!": {false, false, true},
	"~+": {true, true, true}, // of a Service that publishes addresses that are not ready
}

// slice returns an EndpointSlice of a Service with ports (comma-separated) and
// endpoints ("10.1.0.1@node", with conditions at the end). Its family is that of
// the first endpoint, IPv4 if there is none.
func slice(name, svc, ports string, endpoints ...string) *model.EndpointSlice {
	s := &model.EndpointSlice{Key: objectKey(name), Service: objectKey(svc), Family: model.IPv4}
	if ports != "" {
		s.Ports = parsePorts(strings.Split(ports, ", "))
	}
	for _, e := range endpoints {
		bare := strings.TrimRight(e, "!?~+")
		ip, node, _ := strings.Cut(bare, "@")
		is, ok := conditions[e[len(bare):]]
		if !ok {
			panic("unknown conditions of endpoint " + e)
		}
		s.Endpoints = append(s.Endpoints, model.SliceEndpoint{
			Addr: netip.MustParseAddr(ip), NodeName: node, Ready: is[0], Serving: is[1], Terminating: is[2],
		})
	}
	if len(s.Endpoints) > 0 {
		s.Family = model.FamilyOf(s.Endpoints[0].Addr)
	}
	return s
}

// triggered returns s with a trigger time.
func triggered(s *model.EndpointSlice, t time.Time) *model.EndpointSlice {
	next := *s
	next.TriggerTime = t
	return &next
}

func parsePorts(specs []string) []model.Port {
	var ports []model.Port
	for _, spec := range specs {
		var p model.Port
		number := spec
		if name, rest, ok := strings.Cut(spec, " "); ok {
			p.Name, number = name, rest
		}
		if _, err := fmt.Sscanf(number, "%d/%s", &p.Number, &p.Protocol); err != nil {
			panic(fmt.Sprintf("parse port %q: %v", spec, err))
		}
		ports = append(ports, p)
	}
	return ports
}

// services makes a step of a source of Services, with "-name" for one that is
// gone.
func services(svcs ...any) model.Changes {
	c := model.Changes{Services: map[model.ObjectKey]*model.Service{}}
	for _, s := range svcs {
		switch s := s.(type) {
		case *model.Service:
			c.Services[s.Key] = s
		case string:
			c.Services[objectKey(strings.TrimPrefix(s, "-"))] = nil
		}
	}
	return c
}

// slicesOf makes a step of a source of EndpointSlices, with "-name" for one
// that is gone.
func slicesOf(objs ...any) model.Changes {
	c := model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{}}
	for _, s := range objs {
		switch s := s.(type) {
		case *model.EndpointSlice:
			c.EndpointSlices[s.Key] = s
		case string:
			c.EndpointSlices[objectKey(strings.TrimPrefix(s, "-"))] = nil
		}
	}
	return c
}

// with returns the step that is both a and b.
func with(a, b model.Changes) model.Changes {
	if b.Services != nil {
		a.Services = b.Services
	}
	if b.EndpointSlices != nil {
		a.EndpointSlices = b.EndpointSlices
	}
	if b.Status != nil {
		a.Status = b.Status
	}
	return a
}

// listed says that all was listed and could be read.
func listed() model.Changes {
	return model.Changes{Status: &model.SourceStatus{Listed: true, Complete: true}}
}

// incomplete says that all was listed, and something could not be read.
func incomplete() model.Changes {
	return model.Changes{Status: &model.SourceStatus{Listed: true}}
}

// portText writes a port as "name/TCP 10.96.0.1:80: 10.1.0.1:8080 10.1.0.2:8080*",
// with a star at local endpoints.
func portText(p *model.ServicePort) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v/%s %v:", nameText(p.Name), p.Name.Protocol, netip.AddrPortFrom(p.ClusterIP, p.Port))
	for _, ep := range p.Endpoints {
		fmt.Fprintf(&b, " %v", ep.AddrPort)
		if ep.Local {
			b.WriteByte('*')
		}
	}
	return b.String()
}

// nameText writes a port's name without the namespace.
func nameText(n model.ServicePortName) string { return strings.TrimPrefix(n.String(), "shop/") }
