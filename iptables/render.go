// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"

	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// RenderConfig is what the rules depend on besides the Services.
type RenderConfig struct {
	Family model.Family
	// ClusterCIDR is where pods have their addresses; invalid where unknown.
	// Traffic from elsewhere to a cluster IP is masqueraded.
	ClusterCIDR netip.Prefix
	// MasqueradeAll masquerades all traffic to cluster IPs.
	MasqueradeAll bool
	// MasqueradeBit is the bit of the packet mark, 0 to 31, that says that a
	// packet is to be masqueraded.
	MasqueradeBit int
}

// renderer turns Services into rules. It is pure.
type renderer struct{ RenderConfig }

// newRenderer brings the configuration into the form in which it can be
// written into rules: iptables-save prints networks without host bits, and the
// nft variant refuses to match what is outside of all addresses.
func newRenderer(cfg RenderConfig) renderer {
	cfg.ClusterCIDR = cfg.ClusterCIDR.Masked()
	if cfg.ClusterCIDR.Bits() == 0 { // nothing comes from elsewhere
		cfg.ClusterCIDR = netip.Prefix{}
	}
	return renderer{cfg}
}

// portRules is what one port of a Service needs.
type portRules struct {
	// chains are the port's own, in the nat table.
	chains map[ruleset.ChainKey]*ruleset.Chain
	// dispatch leads to the port's chain, in nat KUBE-SERVICES; empty where
	// there is no endpoint.
	dispatch ruleset.Rule
	// reject refuses connections, in filter KUBE-SERVICES; empty where there
	// are endpoints.
	reject ruleset.Rule
}

// port renders one port of a Service.
func (r renderer) port(p *model.ServicePort) portRules {
	if len(p.Endpoints) == 0 {
		return portRules{reject: r.rejectRule(p, p.Name.String()+" has no endpoints")}
	}
	chain := serviceChain(p.Name)
	unit := p.Name.String() + "/" + p.Name.Protocol.Lower()
	out := portRules{
		chains:   make(map[ruleset.ChainKey]*ruleset.Chain, 1+len(p.Endpoints)),
		dispatch: ruleset.Rule(r.clusterIPMatch(p, p.Name.String()+" cluster IP") + "-j " + chain),
	}
	rules := r.masqueradeRules(p)
	for i, ep := range p.Endpoints {
		target := endpointChain(p.Name, ep.AddrPort)
		rules = append(rules, chooseRule(p.Name, ep.AddrPort, target, len(p.Endpoints)-i))
		out.chains[ruleset.ChainKey{Table: ruleset.NAT, Name: target}] = &ruleset.Chain{
			Unit: unit, Rules: endpointRules(p.Name, ep.AddrPort),
		}
	}
	out.chains[ruleset.ChainKey{Table: ruleset.NAT, Name: chain}] = &ruleset.Chain{Unit: unit, Rules: rules}
	return out
}

// clusterIPMatch matches what is for the port's cluster IP.
func (r renderer) clusterIPMatch(p *model.ServicePort, comment string) string {
	proto := p.Name.Protocol.Lower()
	return "-d " + host(p.ClusterIP) + " -p " + proto + " " + commented(comment) +
		"-m " + proto + " --dport " + strconv.Itoa(int(p.Port)) + " "
}

// masqueradeRules mark what reaches the cluster IP and must come back by this
// node: traffic from outside the cluster, or all.
func (r renderer) masqueradeRules(p *model.ServicePort) []ruleset.Rule {
	match := r.clusterIPMatch(p, p.Name.String()+" cluster IP")
	switch {
	case r.MasqueradeAll:
		return []ruleset.Rule{ruleset.Rule(match + "-j " + nat.MarkMasq)}
	case r.ClusterCIDR.IsValid():
		return []ruleset.Rule{ruleset.Rule("! -s " + r.ClusterCIDR.String() + " " + match + "-j " + nat.MarkMasq)}
	}
	return nil
}

// chooseRule leads to one endpoint; n counts it and those after it.
func chooseRule(name model.ServicePortName, ep netip.AddrPort, target string, n int) ruleset.Rule {
	rule := commented(name.String() + " -> " + ep.String())
	if n > 1 {
		rule += "-m statistic --mode random --probability " + probability(n) + " "
	}
	return ruleset.Rule(rule + "-j " + target)
}

// probability returns 1/n as iptables-save prints it when kube-proxy has
// written it: kube-proxy writes ten decimals, the kernel keeps 31 bits
// (xt_statistic), and iptables prints these with eleven decimals.
func probability(n int) string {
	p, _ := strconv.ParseFloat(strconv.FormatFloat(1/float64(n), 'f', 10, 64), 64)
	const one = 1 << 31
	return strconv.FormatFloat(math.Round(p*one)/one, 'f', 11, 64)
}

// endpointRules translate to an endpoint. An endpoint that reaches itself
// through its Service must see the node's address, or it would answer itself
// directly.
func endpointRules(name model.ServicePortName, ep netip.AddrPort) []ruleset.Rule {
	comment, proto := commented(name.String()), name.Protocol.Lower()
	return []ruleset.Rule{
		ruleset.Rule("-s " + host(ep.Addr()) + " " + comment + "-j " + nat.MarkMasq),
		ruleset.Rule("-p " + proto + " " + comment + "-m " + proto + " -j DNAT --to-destination " + ep.String()),
	}
}

// rejectRule refuses connections to the port's cluster IP.
func (r renderer) rejectRule(p *model.ServicePort, comment string) ruleset.Rule {
	with := "icmp-port-unreachable"
	if r.Family == model.IPv6 {
		with = "icmp6-port-unreachable"
	}
	return ruleset.Rule(r.clusterIPMatch(p, comment) + "-j REJECT --reject-with " + with)
}

// host returns an address as iptables-save prints a single one.
func host(a netip.Addr) string { return fmt.Sprintf("%s/%d", a, a.BitLen()) }
