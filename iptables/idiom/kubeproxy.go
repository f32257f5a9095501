// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"slices"

	"fairlead/iptables/ruleset"
	"fairlead/nat"
)

// KubeProxyIPTables is what kube-proxy's iptables mode writes, as of v1.36
// (pkg/proxy/iptables/proxier.go).
func KubeProxyIPTables() ruleset.Heir {
	return ruleset.Heir{
		Chains: slices.Concat(
			keys(ruleset.NAT, Services, NodePorts, ServicePrefix+"*", LocalPrefix+"*", ExternalPrefix+"*", FirewallPrefix+"*", EndpointPrefix+"*"),
			keys(ruleset.Filter, Services, ExternalServices, NodePorts, Forward, ProxyFirewall, kubeFirewall),
			nat.Contribution().Owns, Relics()),
		Jumps: append(ServiceJumps(), nat.Contribution().Jumps...),
	}
}

// ServiceJumps lead to chains of Services in iptables mode, kube-proxy's and ours. Their
// order, matches and comments are kube-proxy's.
func ServiceJumps() []ruleset.Jump {
	const (
		firewall = "kubernetes load balancer firewall"
		portals  = "kubernetes service portals"
		external = "kubernetes externally-visible service portals"
	)
	return []ruleset.Jump{
		Jump(ruleset.Filter, "INPUT", NewOnly, firewall, ProxyFirewall),
		Jump(ruleset.Filter, "INPUT", "", "kubernetes health check service ports", NodePorts),
		Jump(ruleset.Filter, "INPUT", NewOnly, external, ExternalServices),
		Jump(ruleset.Filter, "FORWARD", NewOnly, firewall, ProxyFirewall),
		Jump(ruleset.Filter, "FORWARD", "", "kubernetes forwarding rules", Forward),
		Jump(ruleset.Filter, "FORWARD", NewOnly, portals, Services),
		Jump(ruleset.Filter, "FORWARD", NewOnly, external, ExternalServices),
		Jump(ruleset.Filter, "OUTPUT", NewOnly, firewall, ProxyFirewall),
		Jump(ruleset.Filter, "OUTPUT", NewOnly, portals, Services),
		Jump(ruleset.NAT, "PREROUTING", "", portals, Services),
		Jump(ruleset.NAT, "OUTPUT", "", portals, Services),
	}
}

// KubeProxyIPVS is what kube-proxy's IPVS mode writes, as of v1.36
// (pkg/proxy/ipvs/proxier.go). Of canaries only iptables mode has any.
func KubeProxyIPVS() ruleset.Heir {
	const (
		firewall = "kube-proxy firewall rules"
		portals  = "kubernetes service portals"
	)
	return ruleset.Heir{
		Chains: slices.Concat(
			keys(ruleset.NAT, Services, NodePort, loadBalancer),
			keys(ruleset.Filter, Forward, NodePort, ProxyFirewall, SourceRanges, IPVSFilter, IPVSOutFilter),
			nat.Contribution().Owns),
		Jumps: append([]ruleset.Jump{
			Jump(ruleset.Filter, "INPUT", "", "kubernetes health check rules", NodePort),
			Jump(ruleset.Filter, "INPUT", "", firewall, ProxyFirewall),
			Jump(ruleset.Filter, "INPUT", "", IPVSAccess, IPVSFilter),
			Jump(ruleset.Filter, "FORWARD", "", "kubernetes forwarding rules", Forward),
			Jump(ruleset.Filter, "FORWARD", "", firewall, ProxyFirewall),
			Jump(ruleset.Filter, "OUTPUT", "", IPVSAccess, IPVSOutFilter),
			Jump(ruleset.NAT, "PREROUTING", "", portals, Services),
			Jump(ruleset.NAT, "OUTPUT", "", portals, Services),
		}, nat.Contribution().Jumps...),
	}
}

// keys are chains of one table.
func keys(t ruleset.Table, names ...string) []ruleset.ChainKey {
	out := make([]ruleset.ChainKey, 0, len(names))
	for _, name := range names {
		out = append(out, ruleset.ChainKey{Table: t, Name: name})
	}
	return out
}
