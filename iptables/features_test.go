// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"time"

	"fairlead/proxier/model"
)

// with returns a copy of a port, changed.
func with(p *model.ServicePort, changes ...func(*model.ServicePort)) *model.ServicePort {
	out := *p
	for _, change := range changes {
		change(&out)
	}
	return &out
}

func nodePort(p *model.ServicePort) { p.NodePort = 30080 }

func externalIP(p *model.ServicePort) {
	p.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.5")}
}

func loadBalancer(p *model.ServicePort) {
	p.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.80"), netip.MustParseAddr("203.0.113.81")}
}

func ranges(cidrs ...string) func(*model.ServicePort) {
	return func(p *model.ServicePort) {
		p.Restricted = true
		for _, c := range cidrs {
			p.SourceRanges = append(p.SourceRanges, netip.MustParsePrefix(c))
		}
	}
}

// externalLocal and internalLocal set a traffic policy to Local, with these
// endpoints on this node.
func externalLocal(endpoints ...string) func(*model.ServicePort) {
	return func(p *model.ServicePort) { p.ExternalTrafficLocal = true; local(p, endpoints) }
}

func internalLocal(endpoints ...string) func(*model.ServicePort) {
	return func(p *model.ServicePort) { p.InternalTrafficLocal = true; local(p, endpoints) }
}

func local(p *model.ServicePort, endpoints []string) {
	p.LocalEndpoints = port(p.Name, "10.96.0.1", 1, endpoints...).Endpoints
	if !p.UsesCluster() {
		p.Endpoints = nil
	}
}

func healthCheck(p *model.ServicePort) { p.HealthCheckNodePort = 32000 }

func affinity(p *model.ServicePort) { p.AffinityTimeout = 3 * time.Hour }

// featureCases has one example of each feature of a Service.
func featureCases() []renderCase {
	web := portName("shop", "web", "http", model.TCP)
	two := port(web, "10.96.0.10", 80, "10.244.0.1:8080", "10.244.1.2:8080")
	none := port(web, "10.96.0.10", 80)
	six := port(web, "fd00:96::a", 80, "[fd00:244::1]:8080", "[fd00:244:0:1::2]:8080")
	v4 := v4()
	cidrs, bridge, noLocalhost := v4, v4, v4
	cidrs.PodCIDRs = append(cidrs.PodCIDRs, netip.MustParsePrefix("10.245.0.0/16"))
	bridge.PodCIDRs, bridge.PodInterface = nil, "cni+"
	noLocalhost.LocalhostNodePorts = false
	neighbours := v4
	neighbours.MasqueradeNeighbours, neighbours.KeepInvalid = true, true
	here := func(p *model.ServicePort) {
		p.Endpoints = append([]model.Endpoint(nil), p.Endpoints...)
		p.Endpoints[0].Local = true
	}
	ports := func(p *model.ServicePort, changes ...func(*model.ServicePort)) []*model.ServicePort {
		return []*model.ServicePort{with(p, changes...)}
	}
	return []renderCase{
		{"node-port", v4, ports(two, nodePort)},
		{"node-port-ipv6", v6(), ports(six, nodePort)},
		{"node-port-no-localhost", noLocalhost, ports(two, nodePort)},
		{"node-port-no-endpoints", v4, ports(none, nodePort)},
		{"node-port-local", v4, ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
		{"node-port-local-none-here", v4, ports(two, nodePort, externalLocal())},
		{"external-ip", v4, ports(two, externalIP)},
		{"external-ip-no-endpoints", v4, ports(none, externalIP)},
		{"load-balancer", v4, ports(two, loadBalancer, nodePort)},
		{"load-balancer-local", v4, ports(two, loadBalancer, nodePort, externalLocal("10.244.0.1:8080"), healthCheck)},
		{"load-balancer-ranges", v4, ports(two, loadBalancer, ranges("198.51.100.0/24", "192.0.2.0/25"))},
		{"load-balancer-ranges-of-the-other-family", v4, ports(two, loadBalancer, ranges())},
		{"load-balancer-open-range", v4, ports(two, loadBalancer, ranges("0.0.0.0/0"))},
		{"internal-local", v4, ports(two, internalLocal("10.244.0.1:8080"))},
		{"internal-local-none-here", v4, ports(two, internalLocal())},
		{"both-local", v4, ports(two, nodePort, internalLocal("10.244.0.1:8080"), externalLocal("10.244.0.1:8080"))},
		{"affinity", v4, ports(two, affinity)},
		{"affinity-ipv6", v6(), ports(six, affinity)},
		{"sets-affinity", v4, ports(two, affinity)},
		{"sets-affinity-ipv6", v6(), ports(six, affinity)},
		{"sets-affinity-local", v4, ports(two, affinity, nodePort, externalLocal("10.244.0.1:8080"))},
		{"sets-no-affinity", v4, ports(two)},
		{"several-pod-cidrs", cidrs, ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
		{"masquerade-neighbours", neighbours, ports(two, here)},
		{"pod-interface", bridge, ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
	}
}
