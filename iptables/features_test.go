// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"time"

	"fairlead/nat/nfacct"
	"fairlead/proxier"
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

func loadBalancer6(p *model.ServicePort) {
	p.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("2001:db8:f::80")}
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
	for i := range p.LocalEndpoints {
		p.LocalEndpoints[i].Local = true
	}
	if !p.UsesCluster() {
		p.Endpoints = nil
	}
}

func healthCheck(p *model.ServicePort) { p.HealthCheckNodePort = 32000 }

func affinity(p *model.ServicePort) { p.AffinityTimeout = 3 * time.Hour }

// here puts the first endpoint onto this node.
func here(p *model.ServicePort) {
	p.Endpoints = append([]model.Endpoint(nil), p.Endpoints...)
	p.Endpoints[0].Local = true
}

func compact(cfg RenderConfig) RenderConfig {
	cfg.Compact = true
	return cfg
}

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
	counted := v4
	counted.InvalidCounter = nfacct.InvalidDropped
	neighbours := v4
	neighbours.MasqueradeNeighbours, neighbours.KeepInvalid = true, true
	node := func(ip string, nodePortsOn ...string) *proxier.NodeState {
		out := &proxier.NodeState{IP: netip.MustParseAddr(ip), NodePorts: proxier.NodePorts{All: len(nodePortsOn) == 0}}
		for _, a := range nodePortsOn {
			out.NodePorts.Addrs = append(out.NodePorts.Addrs, netip.MustParseAddr(a))
		}
		return out
	}
	ports := func(p *model.ServicePort, changes ...func(*model.ServicePort)) []*model.ServicePort {
		return []*model.ServicePort{with(p, changes...)}
	}
	return []renderCase{
		{name: "node-port", cfg: v4, ports: ports(two, nodePort)},
		{name: "node-port-ipv6", cfg: v6(), ports: ports(six, nodePort)},
		{name: "node-port-no-localhost", cfg: noLocalhost, ports: ports(two, nodePort)},
		{name: "node-port-no-endpoints", cfg: v4, ports: ports(none, nodePort)},
		{name: "node-port-local", cfg: v4, ports: ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
		{name: "node-port-local-none-here", cfg: v4, ports: ports(two, nodePort, externalLocal())},
		{name: "node-port-local-no-cluster-cidr", cfg: without(v4), ports: ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
		{name: "node-port-addresses", cfg: v4, ports: ports(two, nodePort), node: node("192.0.2.11", "127.0.0.1", "192.0.2.11")},
		{name: "node-port-addresses-no-localhost", cfg: noLocalhost, ports: ports(two, nodePort), node: node("192.0.2.11", "127.0.0.1", "192.0.2.11")},
		{name: "node-port-addresses-ipv6", cfg: v6(), ports: ports(six, nodePort), node: node("2001:db8::11", "::1", "2001:db8::11")},
		{name: "node-port-no-addresses", cfg: v4, ports: ports(two, nodePort), node: &proxier.NodeState{}},
		{name: "external-ip", cfg: v4, ports: ports(two, externalIP)},
		{name: "external-ip-no-endpoints", cfg: v4, ports: ports(none, externalIP)},
		{name: "external-ip-local", cfg: v4, ports: ports(two, externalIP, externalLocal("10.244.0.1:8080"))},
		{name: "external-ip-local-none-here", cfg: v4, ports: ports(two, externalIP, externalLocal())},
		{name: "load-balancer", cfg: v4, ports: ports(two, loadBalancer, nodePort)},
		{name: "load-balancer-local", cfg: v4, ports: ports(two, loadBalancer, nodePort, externalLocal("10.244.0.1:8080"), healthCheck)},
		{name: "load-balancer-no-endpoints", cfg: v4, ports: ports(none, loadBalancer, nodePort)},
		{name: "load-balancer-local-no-endpoints", cfg: v4, ports: ports(none, loadBalancer, nodePort, externalLocal(), healthCheck)},
		{name: "load-balancer-ranges", cfg: v4, ports: ports(two, loadBalancer, ranges("198.51.100.0/24", "192.0.2.0/25"))},
		{name: "load-balancer-ranges-of-the-other-family", cfg: v4, ports: ports(two, loadBalancer, ranges())},
		{name: "load-balancer-ranges-with-node", cfg: v4, ports: ports(two, loadBalancer, ranges("192.0.2.0/25")), node: node("192.0.2.11")},
		{name: "load-balancer-ranges-with-node-ipv6", cfg: v6(), ports: ports(six, loadBalancer6, ranges("2001:db8::/64")), node: node("2001:db8::11")},
		{name: "load-balancer-ranges-local", cfg: v4, ports: ports(two, loadBalancer, ranges("192.0.2.0/25"), externalLocal("10.244.0.1:8080"))},
		{name: "load-balancer-ranges-no-endpoints", cfg: v4, ports: ports(none, loadBalancer, ranges("192.0.2.0/25"))},
		{name: "load-balancer-ranges-no-address", cfg: v4, ports: ports(two, nodePort, ranges("192.0.2.0/25"))},
		{name: "load-balancer-open-range", cfg: v4, ports: ports(two, loadBalancer, ranges("0.0.0.0/0"))},
		{name: "internal-local", cfg: v4, ports: ports(two, internalLocal("10.244.0.1:8080"))},
		{name: "internal-local-none-here", cfg: v4, ports: ports(two, internalLocal())},
		{name: "both-local", cfg: v4, ports: ports(two, nodePort, internalLocal("10.244.0.1:8080"), externalLocal("10.244.0.1:8080"))},
		{name: "affinity", cfg: v4, ports: ports(two, affinity)},
		{name: "affinity-ipv6", cfg: v6(), ports: ports(six, affinity)},
		{name: "sets-affinity", cfg: v4, ports: ports(two, affinity)},
		{name: "sets-affinity-ipv6", cfg: v6(), ports: ports(six, affinity)},
		{name: "sets-affinity-local", cfg: v4, ports: ports(two, affinity, nodePort, externalLocal("10.244.0.1:8080"))},
		{name: "sets-no-affinity", cfg: v4, ports: ports(two)},
		{name: "several-pod-cidrs", cfg: cidrs, ports: ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
		{name: "invalid-counted", cfg: counted},
		{name: "masquerade-neighbours", cfg: neighbours, ports: ports(two, here)},
		{name: "compact", cfg: compact(v4), ports: []*model.ServicePort{port(web, "10.96.0.10", 80, "10.244.0.1:8080", "10.244.0.2:8080", "10.244.1.3:8080")}},
		{name: "compact-ipv6", cfg: compact(v6()), ports: ports(six, here, nodePort)},
		{name: "compact-udp", cfg: compact(v4), ports: []*model.ServicePort{with(port(portName("kube-system", "kube-dns", "dns", model.UDP), "10.96.0.53", 53, "10.244.0.3:53", "10.244.1.3:53"), here)}},
		{name: "compact-local", cfg: compact(v4), ports: ports(two, here, nodePort, loadBalancer, externalLocal("10.244.0.1:8080"))},
		{name: "compact-internal-local", cfg: compact(v4), ports: ports(two, internalLocal("10.244.0.1:8080"))},
		{name: "compact-node-port", cfg: compact(v4), ports: ports(two, here, nodePort, loadBalancer, ranges("198.51.100.0/24"))},
		{name: "sets-compact-affinity", cfg: compact(v4), ports: append(ports(two, here), with(port(portName("shop", "cart", "", model.TCP), "10.96.0.11", 80, "10.244.0.1:8080", "10.244.1.2:8080"), affinity, here))},
		{name: "pod-interface", cfg: bridge, ports: ports(two, nodePort, externalLocal("10.244.0.1:8080"))},
	}
}
