// SPDX-License-Identifier: Apache-2.0

package suite

import "slices"

// The endpoints that most scenarios have: one pod of each node.
const (
	local  = "node-1-pod-1"
	second = "node-1-pod-2"
	remote = "node-2-pod-1"
)

// What is asked of Services that can be reached from outside.
var (
	toNode     = []target{toClusterIP, toNodePort}
	toBalancer = []target{toClusterIP, toNodePort, toLoadBalancer}
	toHealthy  = []target{toClusterIP, toNodePort, toLoadBalancer, toHealthCheck}
	toPublic   = []target{toClusterIP, toExternalIP}
	toAll      = []target{toClusterIP, toNodePort, toLoadBalancer, toExternalIP}
)

// aroundHeld are those who reach the address that node-1 has.
var aroundHeld = []string{"node-1-pod-3", "node-1", "client"}

// scenarios are the suite.
var scenarios = slices.Concat(inside, policies, ports, balancers, filtered, publicOnes, topologies)

// inside are about the cluster IP and the choice of endpoints.
var inside = []scenario{
	{
		name:     "cluster-ip",
		services: []service{web(at(local, remote))},
		to:       []target{toClusterIP, toOtherClusterIP},
	},
	{
		name:     "no-endpoints",
		services: []service{web(nil, loadBalanced, public)},
		to:       toAll,
	},
	{
		name:     "not-ready",
		services: []service{web([]endpoint{unready(local), at(remote)[0]}, nodePorts)},
		to:       toNode,
	},
	{
		name:     "none-ready",
		services: []service{web([]endpoint{unready(local), unready(remote)}, nodePorts)},
		to:       toNode,
	},
	{
		name:     "draining-beside-ready",
		services: []service{web([]endpoint{draining(local), at(remote)[0]}, nodePorts)},
		to:       toNode,
	},
	{
		name:     "only-draining",
		services: []service{web([]endpoint{draining(local), draining(remote), closed(second)}, loadBalanced)},
		to:       toBalancer,
	},
	{
		name:     "only-closed",
		services: []service{web([]endpoint{closed(local), closed(remote)}, nodePorts)},
		to:       toNode,
	},
	{
		name:     "hairpin-alone",
		services: []service{web(at(local), loadBalanced, public)},
		to:       toAll,
		from:     []string{local},
	},
	{
		name:     "hairpin-local",
		services: []service{web(at(local), loadBalanced, public, externalLocal, internalLocal)},
		to:       toAll,
		from:     []string{local},
	},
	{
		name:     "hairpin-among-others",
		services: []service{web(at(local, remote), nodePorts)},
		to:       toNode,
		from:     []string{local, remote},
	},
	{
		name:     "host-network",
		services: []service{web(at("node-1", "node-2"), loadBalanced)},
		to:       toBalancer,
	},
	{
		name:     "host-network-local",
		services: []service{web(at("node-1"), loadBalanced, externalLocal, internalLocal)},
		to:       toHealthy,
	},
	{
		// All on one node, so that whoever asks is seen the same by each.
		name:     "affinity",
		services: []service{web(at("node-2-pod-1", "node-2-pod-2"), loadBalanced, sticky)},
		to:       toBalancer,
		sticky:   true,
	},
	{
		name:     "affinity-local",
		services: []service{web(at("node-2-pod-1", "node-2-pod-2"), nodePorts, externalLocal, internalLocal, sticky)},
		to:       toNode,
		sticky:   true,
	},
	{
		name:     "other-proxy",
		services: []service{web(at(local, remote), nodePorts, otherProxy)},
		to:       toNode,
	},
}

// policies are about internalTrafficPolicy.
var policies = []scenario{
	{
		name:     "internal-local",
		services: []service{web(at(local, second, remote), internalLocal)},
		to:       []target{toClusterIP},
	},
	{
		name:     "internal-local-on-one-node",
		services: []service{web(at(local), internalLocal)},
		to:       []target{toClusterIP},
	},
	{
		name:     "internal-local-no-endpoints",
		services: []service{web(nil, internalLocal)},
		to:       []target{toClusterIP},
	},
	{
		name:     "internal-local-draining",
		services: []service{web([]endpoint{at(local)[0], draining(second), draining(remote)}, internalLocal)},
		to:       []target{toClusterIP},
	},
	{
		name:     "internal-local-balanced",
		services: []service{web(at(remote), loadBalanced, internalLocal)},
		to:       toBalancer,
	},
}

// ports are about node ports.
var ports = []scenario{
	{
		name:     "node-port",
		services: []service{web(at(local, remote), nodePorts)},
		to:       toNode,
	},
	{
		name:     "node-port-local",
		services: []service{web(at(local, remote), nodePorts, externalLocal)},
		to:       toNode,
	},
	{
		name:     "node-port-local-on-one-node",
		services: []service{web(at(local), nodePorts, externalLocal)},
		to:       toNode,
	},
	{
		name:     "node-port-local-no-endpoints",
		services: []service{web(nil, nodePorts, externalLocal)},
		to:       toNode,
	},
}

// balancers are about load balancers, and what they ask the health check port.
var balancers = []scenario{
	{
		name:     "load-balancer",
		services: []service{web(at(local, remote), loadBalanced)},
		to:       []target{toClusterIP, toNodePort, toLoadBalancer, toOtherLoadBalancer, toHealthCheck},
	},
	{
		name:     "load-balancer-local",
		services: []service{web(at(local, second, remote), loadBalanced, externalLocal)},
		to:       toHealthy,
	},
	{
		name:     "load-balancer-local-on-the-other-node",
		services: []service{web(at(remote), loadBalanced, externalLocal)},
		to:       toHealthy,
	},
	{
		name:     "load-balancer-local-no-endpoints",
		services: []service{web(nil, loadBalanced, externalLocal)},
		to:       toHealthy,
	},
	{
		name:     "load-balancer-local-draining",
		services: []service{web([]endpoint{draining(local), at(remote)[0]}, loadBalanced, externalLocal)},
		to:       toHealthy,
	},
	{
		name:     "load-balancer-all-local",
		services: []service{web(at(remote), loadBalanced, internalLocal, externalLocal)},
		to:       toHealthy,
	},
	{
		name:     "load-balancer-on-a-node",
		services: []service{web(at(local, remote), held)},
		to:       []target{toHeld},
		from:     aroundHeld,
	},
	{
		name:     "load-balancer-without-node-ports",
		services: []service{web(at(local, remote), loadBalanced, withoutNodePorts)},
		to:       []target{toClusterIP, toLoadBalancer},
	},
	{
		name:     "load-balancer-proxy-mode",
		services: []service{web(at(local, remote), loadBalanced, proxied)},
		to:       toBalancer,
	},
	{
		name:     "load-balancer-proxy-mode-local",
		services: []service{web(at(local), loadBalanced, proxied, externalLocal)},
		to:       toHealthy,
	},
}

// filtered are about loadBalancerSourceRanges.
var filtered = []scenario{
	{
		name:     "source-ranges-with-client",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("192.0.2.100/32", "2001:db8::100/128"))},
		to:       toBalancer,
	},
	{
		name:     "source-ranges-without-client",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("198.51.100.0/24", "2001:db8:e::/48"))},
		to:       toBalancer,
	},
	{
		name:     "source-ranges-with-nodes",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("192.0.2.8/29", "2001:db8::10/124"))},
		to:       toBalancer,
	},
	{
		name:     "source-ranges-with-the-node-that-has-the-address",
		services: []service{web(at(local, remote), held, sourceRanges("192.0.2.8/29", "2001:db8::10/124"))},
		to:       []target{toHeld},
		from:     aroundHeld,
	},
	{
		name:     "source-ranges-without-the-node-that-has-the-address",
		services: []service{web(at(local, remote), held, sourceRanges("192.0.2.100/32", "2001:db8::100/128"))},
		to:       []target{toHeld},
		from:     aroundHeld,
	},
	{
		name:     "source-ranges-with-pods",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("10.244.0.0/16", "fd00:10:244::/48"))},
		to:       toBalancer,
	},
	{
		name:     "source-ranges-with-all",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("198.51.100.0/24", "0.0.0.0/0", "::/0"))},
		to:       toBalancer,
	},
	{
		name:     "source-ranges-of-ipv4-alone",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("192.0.2.100/32"))},
		to:       toBalancer,
	},
	{
		name: "source-ranges-local",
		services: []service{web(at(local, remote), loadBalanced, externalLocal,
			sourceRanges("192.0.2.100/32", "2001:db8::100/128"))},
		to: toBalancer,
	},
	{
		name: "source-ranges-no-endpoints",
		services: []service{web(nil, loadBalanced,
			sourceRanges("198.51.100.0/24", "2001:db8:e::/48"))},
		to: toBalancer,
	},
}

// publicOnes are about external IPs.
var publicOnes = []scenario{
	{
		name:     "external-ip",
		services: []service{web(at(local, remote), public)},
		to:       []target{toClusterIP, toExternalIP, toOtherExternalIP},
	},
	{
		name:     "external-ip-local",
		services: []service{web(at(local, remote), public, externalLocal)},
		to:       toPublic,
	},
	{
		name:     "external-ip-local-on-the-other-node",
		services: []service{web(at(remote), public, externalLocal)},
		to:       toPublic,
	},
	{
		name:     "external-ip-no-endpoints",
		services: []service{web(nil, public)},
		to:       toPublic,
	},
	{
		name:     "external-ip-of-node",
		services: []service{web(at(local, remote), externalIPs(servicePort, "192.0.2.11", "2001:db8::11"))},
		to:       []target{toClusterIP, toNodeIP},
	},
	{
		name:     "external-ip-of-node-no-endpoints",
		services: []service{web(nil, externalIPs(servicePort, "192.0.2.11", "2001:db8::11"))},
		to:       []target{toClusterIP, toNodeIP},
	},
	{
		name: "external-ip-of-load-balancer",
		services: []service{web(at(local, remote), loadBalanced, sourceRanges("192.0.2.100/32", "2001:db8::100/128"),
			externalIPs(servicePort, both(publicAddr, webHost)...))},
		to: toBalancer,
	},
	{
		name: "external-ip-taken",
		services: []service{
			web(at(local)),
			{name: "thief", host: thiefHost, endpoints: at(remote), changes: []change{
				externalIPs(otherPort, both(clusterAddr, webHost)...)}},
		},
		to: []target{toClusterIP, toOtherClusterIP},
	},
}

// topologies are about hints.
var topologies = []scenario{
	{
		name: "hints-zones",
		services: []service{web([]endpoint{
			forZones(local, "zone-1"), forZones(second, "zone-1", "zone-3"), forZones(remote, "zone-2", "zone-3"),
		}, nodePorts)},
		to: toNode,
	},
	{
		name:     "hints-zones-elsewhere",
		services: []service{web([]endpoint{forZones(local, "zone-2"), forZones(remote, "zone-1")})},
		to:       []target{toClusterIP},
	},
	{
		name:     "hints-zones-one-missing",
		services: []service{web([]endpoint{forZones(local, "zone-1"), at(remote)[0]})},
		to:       []target{toClusterIP},
	},
	{
		name:     "hints-zones-missing-where-not-ready",
		services: []service{web([]endpoint{forZones(local, "zone-1"), forZones(remote, "zone-2"), unready(second)})},
		to:       []target{toClusterIP},
	},
	{
		name:     "hints-zones-not-ours",
		services: []service{web([]endpoint{forZones(local, "zone-1"), forZones(remote, "zone-1")})},
		to:       []target{toClusterIP},
	},
	{
		name: "hints-nodes",
		services: []service{web([]endpoint{
			forZones(local, "zone-1").forNode("node-1"), forZones(second, "zone-1").forNode("node-3"),
			forZones(remote, "zone-2").forNode("node-2"),
		}, nodePorts)},
		to: toNode,
	},
	{
		name: "hints-nodes-one-missing",
		services: []service{web([]endpoint{
			forZones(local, "zone-1").forNode("node-1"), forZones(second, "zone-1"), forZones(remote, "zone-2").forNode("node-2"),
		})},
		to: []target{toClusterIP},
	},
	{
		name: "hints-nodes-not-ours",
		services: []service{web([]endpoint{
			forZones(local, "zone-1").forNode("node-1"), forZones(remote, "zone-2").forNode("node-1"),
		})},
		to: []target{toClusterIP},
	},
	{
		name: "hints-local",
		services: []service{web([]endpoint{
			forZones(local, "zone-2"), forZones(remote, "zone-1"),
		}, nodePorts, externalLocal, internalLocal)},
		to: toNode,
	},
	{
		name: "hints-draining",
		services: []service{web([]endpoint{
			{at: local, conditions: conditions(false, true, true), hints: forZones(local, "zone-1").hints},
			{at: remote, conditions: conditions(false, true, true), hints: forZones(remote, "zone-2").hints},
		})},
		to: []target{toClusterIP},
	},
}
