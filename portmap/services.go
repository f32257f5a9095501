// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// place is a port of the node on one of its addresses, or, where there is none, on all
// that node ports answer on.
type place struct {
	Port
	addr netip.Addr
}

// services know which ports of nodes are Services', whatever endpoints these have.
type services struct {
	ports map[model.ServicePortName]*model.ServicePort
	// at has the Services that claim a place, sorted.
	at map[place][]model.ServicePortName
}

func newServices() services {
	return services{ports: map[model.ServicePortName]*model.ServicePort{}, at: map[place][]model.ServicePortName{}}
}

// set takes over a port of a Service, nil where it is gone, and calls touch for the
// ports of the node that it has come to claim or claims no more.
func (s services) set(name model.ServicePortName, now *model.ServicePort, touch func(Port)) {
	before, after := places(s.ports[name]), places(now)
	if delete(s.ports, name); len(after) > 0 {
		s.ports[name] = now
	}
	for _, p := range before {
		if slices.Contains(after, p) {
			continue
		}
		touch(p.Port)
		rest := slices.DeleteFunc(s.at[p], func(o model.ServicePortName) bool { return o == name })
		if s.at[p] = rest; len(rest) == 0 {
			delete(s.at, p)
		}
	}
	for _, p := range after {
		if i, found := slices.BinarySearchFunc(s.at[p], name, model.ServicePortName.Compare); !found {
			s.at[p] = slices.Insert(s.at[p], i, name)
			touch(p.Port)
		}
	}
}

// places returns what a port of a Service claims of any node. Its health check node
// port is answered by the agent.
func places(p *model.ServicePort) []place {
	if p == nil {
		return nil
	}
	var out []place
	if p.NodePort != 0 {
		out = append(out, place{Port: Port{p.Name.Protocol, p.NodePort}})
	}
	if p.HealthCheckNodePort != 0 {
		out = append(out, place{Port: Port{model.TCP, p.HealthCheckNodePort}})
	}
	for _, addrs := range [][]netip.Addr{p.ExternalIPs, p.LoadBalancerIPs} {
		for _, a := range addrs {
			out = append(out, place{Port{p.Name.Protocol, p.Port}, a})
		}
	}
	return out
}

// service names the Service that a port of the node is for on one of its addresses, or
// on all of them if addr is invalid; empty if there is none.
func (c *claims) service(p Port, addr netip.Addr) string {
	if names := c.services.at[place{Port: p}]; len(names) > 0 && c.hasNodePorts(addr) {
		return "a node port of Service " + names[0].Service.String()
	}
	if names := c.services.at[place{p, addr}]; len(names) > 0 && addr.IsValid() {
		return "a port of Service " + names[0].Service.String()
	}
	return ""
}

// except returns the addresses of the node on which a port is a Service's.
func (c *claims) except(p Port) []netip.Addr {
	var out []netip.Addr
	for _, a := range c.node.Addrs {
		if (c.localhost || !a.IsLoopback()) && c.service(p, a) != "" {
			out = append(out, a)
		}
	}
	return out
}

// hasNodePorts tells whether node ports answer on an address, or on all if it is
// invalid.
func (c *claims) hasNodePorts(addr netip.Addr) bool {
	if addr.IsLoopback() && !c.localhostNodePorts {
		return false
	}
	return c.node.AllNodePorts || slices.Contains(c.node.NodePorts, addr)
}
