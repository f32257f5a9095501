// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"slices"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

func addressChain(n model.ServicePortName) string   { return idiom.PortChain(idiom.AddressPrefix, n) }
func shortcutChain(n model.ServicePortName) string  { return idiom.PortChain(idiom.ExternalPrefix, n) }
func localhostChain(n model.ServicePortName) string { return idiom.PortChain(idiom.ServicePrefix, n) }

// The portals: external addresses that are translated, which are external IPs and
// those of load balancers with the policy Local, node ports with that policy, and
// node ports on 127.0.0.1.
const (
	externals = iota
	externalPorts
	localhostPorts
)

var (
	natExternal  = ruleset.ChainKey{Table: ruleset.NAT, Name: idiom.External}
	natNodePorts = ruleset.ChainKey{Table: ruleset.NAT, Name: idiom.NodePorts}
)

func portalKinds() []idiom.Portal {
	return []idiom.Portal{
		externals:      {Root: natExternal, Prefix: idiom.ExternalPrefix},
		externalPorts:  {Root: natExternal, Prefix: idiom.ExternalPrefix, Ports: true},
		localhostPorts: {Root: natNodePorts, Prefix: idiom.ServicePrefix, Ports: true},
	}
}

// Contribution declares the chains and the jumps of this mode.
func Contribution(cfg Config) ruleset.Contribution {
	const newOnly = idiom.NewOnly
	jump := idiom.Jump
	const (
		firewall = "kubernetes load balancer firewall"
		portals  = "kubernetes service portals"
		external = "kubernetes externally-visible service portals"
	)
	out := ruleset.Contribution{
		Name: "ipvs",
		Owns: idiom.Owned(),
		Jumps: []ruleset.Jump{
			jump(ruleset.Mangle, "PREROUTING", newOnly, firewall, idiom.ProxyFirewall),
			jump(ruleset.Mangle, "OUTPUT", newOnly, firewall, idiom.ProxyFirewall),
			jump(ruleset.Filter, "INPUT", "", "kubernetes health check rules", idiom.NodePort),
			jump(ruleset.Filter, "INPUT", newOnly, external, idiom.ExternalServices),
			jump(ruleset.Filter, "INPUT", "", idiom.IPVSAccess, idiom.IPVSFilter),
			idiom.AcceptIPVS(),
			jump(ruleset.Filter, "FORWARD", "", "kubernetes forwarding rules", idiom.Forward),
			jump(ruleset.Filter, "FORWARD", newOnly, external, idiom.ExternalServices),
			jump(ruleset.Filter, "OUTPUT", "", idiom.IPVSAccess, idiom.IPVSOutFilter),
			jump(ruleset.NAT, "PREROUTING", "", portals, idiom.Services),
			jump(ruleset.NAT, "OUTPUT", "", portals, idiom.Services),
		},
		Former: idiom.Former(),
		Guests: []ruleset.Guest{idiom.Localnet(cfg.Family, cfg.LocalhostNodePorts || cfg.LocalhostHostPorts)},
		Relics: idiom.Relics(),
	}
	if cfg.MasqueradeNeighbours {
		out.Jumps = append(out.Jumps, idiom.ViaIPVS(nat.LoopBack(cfg.ipv6())))
	}
	return out
}

// inSet narrows a match to the elements of a set: its address and port are the
// packet's destination.
func (r renderer) inSet(id setID) string {
	by := "dst,dst"
	switch id {
	case sourceCIDRs, sourceIPs:
		by = "dst,dst,src"
	case nodePortsTCP, nodePortsUDP, nodePortsLocalTCP, nodePortsLocalUDP, healthPorts, vips:
		by = "dst"
	}
	return "-m set --match-set " + setName(id, r.ipv6()) + " " + by + " "
}

// when returns a rule for what is in a set.
func (r renderer) when(id setID, comment, target string) ruleset.Rule {
	return idiom.Spec{Comment: comment, More: r.inSet(id)}.Jump(target).Rule()
}

// fixedChains returns the chains that do not depend on any Service, those in which
// Services have places apart.
func (r renderer) fixedChains() map[ruleset.ChainKey]*ruleset.Chain {
	out := map[ruleset.ChainKey]*ruleset.Chain{}
	put := func(t ruleset.Table, name string, rules ...ruleset.Rule) {
		out[ruleset.ChainKey{Table: t, Name: name}] = &ruleset.Chain{Rules: rules}
	}
	put(ruleset.Mangle, idiom.ProxyFirewall,
		r.when(firewalled, "load balancers with source ranges", idiom.SourceRanges),
		r.when(spares, "spare ports are for translated packets", "DROP"),
		r.when(noLocalInside, "no local endpoints", "DROP"))
	put(ruleset.Mangle, idiom.SourceRanges,
		r.when(sourceCIDRs, "", "RETURN"), r.when(sourceIPs, "", "RETURN"), idiom.Spec{}.Jump("DROP").Rule())
	put(ruleset.Filter, idiom.NodePort, idiom.Spec{
		Proto: "tcp", Comment: "health check node ports", More: r.inSet(healthPorts),
	}.Jump("ACCEPT").Rule())
	dropped := r.when(noLocal, "no local endpoints", "DROP")
	put(ruleset.Filter, idiom.ExternalServices, dropped, r.when(noEndpoint, "no endpoints", r.reject()))
	// The jumps are kube-proxy's, which makes them for all packets as soon as it starts, long
	// before it writes the chains. Answers to the node at the address of a Service come by here.
	access := []ruleset.Rule{idiom.Spec{More: "-m conntrack ! --ctstate NEW "}.Jump("RETURN").Rule(), dropped}
	for _, id := range []setID{clusterIPs, balancers, balancersLocal} {
		access = append(access, r.when(id, "", "RETURN"))
	}
	translated := idiom.Spec{More: "-m conntrack --ctstate DNAT " + r.inSet(spares)}.Jump("RETURN").Rule()
	access = append(access, translated, r.when(vips, "addresses of Services are for Services alone", r.reject()))
	put(ruleset.Filter, idiom.IPVSFilter, access...)
	put(ruleset.Filter, idiom.IPVSOutFilter, access...)
	put(ruleset.Filter, idiom.IPVSAccept, r.accepted()...)
	if r.MasqueradeNeighbours {
		put(ruleset.NAT, idiom.Neighbours, r.neighbours()...)
	}
	out[ruleset.ChainKey{Table: ruleset.Filter, Name: idiom.Forward}] = idiom.Forwarding(r.MasqueradeBit, r.KeepInvalid, r.InvalidCounter)
	if outside := r.pods().Outside(); outside != nil {
		out[ruleset.ChainKey{Table: ruleset.NAT, Name: idiom.MarkOutside}] = outside
	}
	put(ruleset.NAT, idiom.Services, r.services()...)
	put(ruleset.NAT, idiom.NodePort, r.nodePortRules()...)
	return out
}

// accepted returns the rules that accept what IPVS is to have. It passes INPUT, where
// many nodes drop what they do not know, and not FORWARD, as translated packets do in
// iptables mode. What is for an address on the device and not for a Service has been
// refused before.
func (r renderer) accepted() []ruleset.Rule {
	var out []ruleset.Rule
	for _, id := range []setID{vips, balancers, balancersLocal} {
		out = append(out, r.when(id, "", "ACCEPT"))
	}
	for _, s := range r.nodeAddresses() {
		s.Comment = ""
		for _, k := range nodePortSets() {
			for _, id := range []setID{k.cluster, k.local} {
				a := s
				a.Proto, a.More = k.proto, s.More+r.inSet(id)
				out = append(out, a.Jump("ACCEPT").Rule())
			}
		}
	}
	return out
}

// neighbours returns the rules that masquerade what pods send to endpoints of this
// node by IPVS.
func (r renderer) neighbours() []ruleset.Rule {
	var out []ruleset.Rule
	for _, p := range r.PodCIDRs {
		out = append(out, idiom.Spec{Src: p.String()}.Jump("MASQUERADE --random-fully").Rule())
	}
	return out
}

func (r renderer) reject() string {
	if r.ipv6() {
		return "REJECT --reject-with icmp6-port-unreachable"
	}
	return "REJECT --reject-with icmp-port-unreachable"
}

// services returns the rules that mark what is to be masqueraded, translate external
// IPs and the shortcut of other external addresses, and keep all that is for a
// Service from rules of others, which take it for the node's: a hostPort's for one.
func (r renderer) services() []ruleset.Rule {
	var out []ruleset.Rule
	for _, s := range r.localhostRules() {
		out = append(out, s.Jump(idiom.NodePorts).Rule())
	}
	out = append(out, idiom.Spec{
		Comment: "sent by the node from the address of a Service",
		More:    "-m set --match-set " + setName(vips, r.ipv6()) + " src ",
	}.Jump(nat.MarkMasq).Rule())
	cluster := idiom.Spec{Comment: "cluster IPs", More: r.inSet(clusterIPs)}
	if r.MasqueradeAll {
		out = append(out, cluster.Jump(nat.MarkMasq).Rule())
	} else if s, ok := r.pods().NotFrom(cluster); ok {
		out = append(out, s.Rule())
	}
	out = append(out,
		r.when(externalIPs, "external IPs", idiom.External),
		r.when(externalIPsLocal, "external IPs with the policy Local", idiom.External),
		r.when(balancersLocal, "load balancers with the policy Local", idiom.External),
		r.when(balancers, "load balancers", nat.MarkMasq))
	for _, id := range []setID{vips, balancers, balancersLocal} {
		out = append(out, r.when(id, "", "ACCEPT"))
	}
	for _, s := range r.nodeAddresses() {
		out = append(out, s.Jump(idiom.NodePort).Rule())
	}
	return out
}

// localhostRules match what may be for a node port on 127.0.0.1.
func (r renderer) localhostRules() []idiom.Spec {
	switch {
	case r.ipv6() || !r.LocalhostNodePorts:
		return nil
	case r.node.NodePorts.All:
		return []idiom.Spec{{Dst: "127.0.0.0/8", Comment: "node ports on localhost"}}
	}
	var out []idiom.Spec
	for _, a := range r.node.NodePorts.Addrs {
		if a.IsLoopback() {
			out = append(out, idiom.Spec{Dst: idiom.Host(a), Comment: "node ports on localhost"})
		}
	}
	return out
}

// nodeAddresses match what may be for a node port.
func (r renderer) nodeAddresses() []idiom.Spec {
	const comment = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
	if r.node.NodePorts.All {
		loopback := "127.0.0.0/8"
		if r.ipv6() {
			loopback = "::1/128"
		}
		return []idiom.Spec{{Dst: "! " + loopback, Comment: comment, More: idiom.ToNode}}
	}
	var out []idiom.Spec
	for _, a := range r.nodePorts {
		out = append(out, idiom.Spec{Dst: idiom.Host(a), Comment: comment})
	}
	return out
}

// nodePortSets are the sets of node ports, by protocol and traffic policy.
func nodePortSets() []nodePortSet {
	return []nodePortSet{
		{"tcp", nodePortsTCP, nodePortsLocalTCP},
		{"udp", nodePortsUDP, nodePortsLocalUDP},
		{"sctp", nodePortsSCTP, nodePortsLocalSCTP},
	}
}

type nodePortSet struct {
	proto          string
	cluster, local setID
}

// nodePortRules are for what is sent to an address of the node.
func (r renderer) nodePortRules() []ruleset.Rule {
	var out []ruleset.Rule
	for _, k := range nodePortSets() {
		rule := func(id setID, target string) ruleset.Rule {
			return idiom.Spec{Proto: k.proto, More: r.inSet(id)}.Jump(target).Rule()
		}
		out = append(out,
			rule(k.local, idiom.External), rule(k.local, "ACCEPT"),
			rule(k.cluster, nat.MarkMasq), rule(k.cluster, "ACCEPT"))
	}
	return out
}

// stageNode stages what depends on the node alone, where that differs from what it
// was, or all at the start.
func (m *Mode) stageNode(n proxier.NodeState, staged map[ruleset.ChainKey]*ruleset.Chain) (changed bool) {
	same := m.started && m.node.NodePorts.Equal(n.NodePorts) && slices.Equal(m.node.Addrs, n.Addrs) && m.node.IP == n.IP &&
		(!m.render.NodePodCIDRs || slices.Equal(m.node.PodCIDRs, n.PodCIDRs))
	if same {
		return false
	}
	m.node, m.render = n, m.render.on(n)
	staged[ruleset.ChainKey{Table: ruleset.NAT, Name: idiom.MarkOutside}] = nil
	for k, c := range m.render.fixedChains() {
		staged[k] = c
	}
	return true
}
