// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// scenario is a list of Services and what is asked of them.
type scenario struct {
	name     string
	services []service
	to       []target
	// from are those who ask, if not everybody.
	from []string
	// sticky scenarios are those in which a client is to stay with the endpoint
	// that it got first, whichever that is.
	sticky bool
}

// askers are, in this order, a pod on the node that the client asks, the node
// itself, the same of another node, and a client outside. None is an endpoint
// of a Service, unless a scenario says so.
var askers = []string{"node-1-pod-3", "node-1", "node-2-pod-3", "node-2", "client"}

// target is a kind of address of the Service "web".
type target string

// The targets. Those of a node stand for each address of each node, and the
// loopback addresses of the one that asks.
const (
	toClusterIP         target = "clusterIP"
	toLoadBalancer      target = "loadBalancer"
	toHeld              target = "loadBalancer on node-1"
	toExternalIP        target = "externalIP"
	toNodeIP            target = "node-1" // as an external IP, on the Service's port
	toOtherClusterIP    target = "clusterIP, other port"
	toOtherLoadBalancer target = "loadBalancer, other port"
	toOtherExternalIP   target = "externalIP, other port"
	toNodePort          target = "nodePort"
	toHealthCheck       target = "healthCheck"
)

// place is one address of a target.
type place struct {
	target target
	// node and spot are for the targets of nodes: "node-1" and "bridge", say.
	node string
	spot spot
}

// spot tells an address of a node.
type spot string

// The spots: the address on the outside network, that towards its pods, and
// those of the loopback interface.
const (
	onLAN    spot = ""
	onBridge spot = " bridge"
	onLo     spot = "localhost"
)

func (p place) String() string {
	switch {
	case p.node == "":
		return string(p.target)
	case p.spot == onLo:
		return fmt.Sprintf("%s at localhost", p.target)
	}
	return fmt.Sprintf("%s at %s%s", p.target, p.node, p.spot)
}

// places returns the addresses of a target that somebody asks.
func (to target) places(from string) []place {
	if to != toNodePort && to != toHealthCheck {
		return []place{{target: to}}
	}
	var out []place
	for _, node := range []string{"node-1", "node-2"} {
		out = append(out, place{to, node, onLAN}, place{to, node, onBridge})
		if from == node {
			out = append(out, place{to, node, onLo})
		}
	}
	return out
}

// addr returns where a place is in a family.
func (p place) addr(topo *topology, f model.Family) netip.AddrPort {
	switch p.target {
	case toClusterIP:
		return netip.AddrPortFrom(clusterAddr(f, webHost), servicePort)
	case toOtherClusterIP:
		return netip.AddrPortFrom(clusterAddr(f, webHost), otherPort)
	case toLoadBalancer:
		return netip.AddrPortFrom(publicAddr(f, webHost), servicePort)
	case toHeld:
		return netip.AddrPortFrom(publicAddr(f, heldHost), servicePort)
	case toOtherLoadBalancer:
		return netip.AddrPortFrom(publicAddr(f, webHost), otherPort)
	case toExternalIP:
		return netip.AddrPortFrom(publicAddr(f, publicHost), servicePort)
	case toOtherExternalIP:
		return netip.AddrPortFrom(publicAddr(f, publicHost), otherPort)
	case toNodeIP:
		return netip.AddrPortFrom(topo.hosts["node-1"].Addr(f), servicePort)
	case toHealthCheck:
		return netip.AddrPortFrom(p.nodeAddr(topo, f), healthCheckPort)
	default:
		return netip.AddrPortFrom(p.nodeAddr(topo, f), nodePortNumber)
	}
}

func (p place) nodeAddr(topo *topology, f model.Family) netip.Addr {
	switch p.spot {
	case onBridge:
		for _, n := range topo.lab.Nodes {
			if n.Label == p.node {
				return bridgeAddr(n, f)
			}
		}
	case onLo:
		if f == model.IPv4 {
			return netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return netip.IPv6Loopback()
	}
	return topo.hosts[p.node].Addr(f)
}

// cell is one question of a scenario: who asks whom, and how.
type cell struct {
	place place
	from  string
	flow  flow
}

// flow is a family and "tcp" or "udp".
type flow struct {
	family  model.Family
	network string
}

func (f flow) String() string { return f.family.String() + " " + f.network }

func (c cell) String() string { return fmt.Sprintf("%s | %s | %s", c.place, c.from, c.flow) }

// cells returns the questions of a scenario, in the order of the reference.
func (s scenario) cells() []cell {
	from := s.from
	if from == nil {
		from = askers
	}
	var out []cell
	for _, to := range s.to {
		for _, asker := range from {
			for _, p := range to.places(asker) {
				for _, f := range model.Families() {
					out = append(out, cell{p, asker, flow{f, "tcp"}})
					if to != toHealthCheck {
						out = append(out, cell{p, asker, flow{f, "udp"}})
					}
				}
			}
		}
	}
	return out
}

// requests is how many requests find all endpoints: of n fair choices, one is
// missed less than once in 10⁹ cells.
func (s scenario) requests() int {
	n := 1.0
	for _, svc := range s.services {
		n = max(n, float64(len(svc.endpoints)))
	}
	if n == 1 {
		return leastRequests
	}
	return max(leastRequests, int(math.Ceil(math.Log(n*1e9)/-math.Log1p(-1/n))))
}

// asks tells whether the scenario has that target.
func (s scenario) asks(to target) bool { return slices.Contains(s.to, to) }
