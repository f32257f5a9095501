// SPDX-License-Identifier: Apache-2.0

package health

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// NodePortServices gathers from the ports of Services what NodePorts answer. It
// holds those of one family and is for one goroutine at a time.
type NodePortServices struct {
	services map[model.ObjectKey]map[model.ServicePortName]*model.ServicePort
	changed  bool
}

// NewNodePortServices returns NodePortServices of no Service.
func NewNodePortServices() *NodePortServices {
	return &NodePortServices{services: map[model.ObjectKey]map[model.ServicePortName]*model.ServicePort{}}
}

// Set takes over one port of a Service as it is now; p is nil where it is gone.
func (s *NodePortServices) Set(name model.ServicePortName, p *model.ServicePort) {
	ports := s.services[name.Service]
	s.changed = s.changed || !sameAnswer(ports[name], p)
	if p == nil || p.HealthCheckNodePort == 0 {
		delete(ports, name)
		if len(ports) == 0 {
			delete(s.services, name.Service)
		}
		return
	}
	if ports == nil {
		ports = map[model.ServicePortName]*model.ServicePort{}
		s.services[name.Service] = ports
	}
	ports[name] = p
}

// sameAnswer tells whether two states of a port, of which either may be nil,
// make no difference to what is answered.
func sameAnswer(a, b *model.ServicePort) bool {
	if a == nil || b == nil {
		return (a == nil || a.HealthCheckNodePort == 0) && (b == nil || b.HealthCheckNodePort == 0)
	}
	return a.HealthCheckNodePort == b.HealthCheckNodePort && slices.Equal(a.LocalReady, b.LocalReady)
}

// Changed tells whether Wanted may return something else than it did last.
func (s *NodePortServices) Changed() bool { return s.changed }

// Wanted returns what to hand to NodePorts.Sync. An endpoint counts once,
// however many ports of the Service it has.
func (s *NodePortServices) Wanted() map[uint16]NodePortService {
	s.changed = false
	out := make(map[uint16]NodePortService, len(s.services))
	for service, ports := range s.services {
		var number uint16
		ready := map[netip.Addr]bool{}
		for _, p := range ports {
			number = p.HealthCheckNodePort
			for _, ip := range p.LocalReady {
				ready[ip] = true
			}
		}
		// The API server gives no port twice; manifests may.
		if other, taken := out[number]; !taken || before(service, other.Service) {
			out[number] = NodePortService{Service: service, LocalEndpoints: len(ready)}
		}
	}
	return out
}

func before(a, b model.ObjectKey) bool {
	return a.Namespace < b.Namespace || a.Namespace == b.Namespace && a.Name < b.Name
}
