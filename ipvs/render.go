// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"slices"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// renderer turns Services into what IPVS, the sets and the rules are to have. It is
// pure.
type renderer struct {
	Config
	node proxier.NodeState
	// nodePorts are the addresses that node ports answer on by virtual servers, and
	// loopbacks those that IPVS sends nothing on from.
	nodePorts, loopbacks []netip.Addr
}

// on returns a renderer for a node.
func (r renderer) on(n proxier.NodeState) renderer {
	r.node, r.nodePorts, r.loopbacks = n, nil, nil
	addrs := n.NodePorts.Addrs
	if n.NodePorts.All {
		addrs = n.Addrs
	}
	for _, a := range addrs {
		if a.IsLoopback() {
			r.loopbacks = append(r.loopbacks, a)
		} else {
			r.nodePorts = append(r.nodePorts, a)
		}
	}
	if r.NodePodCIDRs {
		r.PodCIDRs = idiom.Writable(n.PodCIDRs)
	}
	return r
}

// held tells whether the node has an address without us.
func (r renderer) held(a netip.Addr) bool { return slices.Contains(r.node.Addrs, a) }

// portWants is what one port of a Service needs.
type portWants struct {
	claims []claim
	loops  []ipset.Element
	// chains are in table nat.
	chains map[string]*ruleset.Chain
}

// portRenderer is the work on one port.
type portRenderer struct {
	renderer
	*model.ServicePort
	out portWants
}

// port renders one port of a Service.
func (r renderer) port(p *model.ServicePort) portWants {
	w := &portRenderer{renderer: r, ServicePort: p}
	w.internal()
	w.external()
	if p.HealthCheckNodePort != 0 {
		key := dispatch.Key{Protocol: model.TCP, Port: p.HealthCheckNodePort}
		w.claim(ofNodePort, true, place{key, true}, front{sets: in(healthPorts)})
	}
	w.loops()
	return w.out
}

// claim notes what the port wants of a place, and whether it serves there. Of two for
// one place the later one counts.
func (w *portRenderer) claim(rk rank, serves bool, p place, f front) {
	if !serves {
		rk += idle
	}
	c := claim{place: p, rank: rk, owner: w.Name, front: &f}
	if i := slices.IndexFunc(w.out.claims, func(o claim) bool { return o.place == p }); i >= 0 {
		w.out.claims[i] = c
	} else {
		w.out.claims = append(w.out.claims, c)
	}
}

// at returns a place of the port's protocol.
func (w *portRenderer) at(a netip.Addr, port uint16) place {
	return place{Key: dispatch.Key{Addr: a, Protocol: w.Name.Protocol, Port: port}}
}

// served returns the virtual server for endpoints, nil for none.
func (w *portRenderer) served(eps []model.Endpoint) *virtual {
	if len(eps) == 0 {
		return nil
	}
	s := w.ServicePort.Scheduler
	if s.Name == "" || !w.hasScheduler(s) {
		s = w.Config.Scheduler
	}
	return &virtual{scheduler: s, persistence: w.AffinityTimeout, endpoints: eps}
}

// hasScheduler tells whether the kernel has the scheduler that a Service names, if
// it does.
func (r renderer) hasScheduler(s model.Scheduler) bool {
	return s.Name == "" || r.HasScheduler == nil || r.HasScheduler(s.Name)
}

// internal renders the cluster IP. On the port that the Service has, there are the
// endpoints of its policy, and on a spare one those of the other policy, where
// external traffic needs them.
func (w *portRenderer) internal() {
	own, other := w.Endpoints, w.LocalEndpoints
	if w.InternalTrafficLocal {
		own, other = other, own
	}
	f := front{vip: true, server: w.served(own)}
	switch {
	case f.server != nil:
		f.sets = in(clusterIPs)
	case w.DropsInternal():
		f.sets = in(noLocalInside)
	}
	w.claim(ofCluster, f.server != nil, w.at(w.ClusterIP, w.Port), f)
	if v := w.served(other); v != nil && w.needsSpare() {
		w.claim(ofCluster, true, w.at(w.ClusterIP, w.SparePort), front{vip: true, sets: in(spares), server: v})
	}
}

// needsSpare tells whether something is translated to the spare port.
func (w *portRenderer) needsSpare() bool {
	if w.InternalTrafficLocal { // of what may go to endpoints of all nodes
		return len(w.ExternalIPs) > 0 || w.ExternalTrafficLocal && w.ExternallyAccessible()
	}
	return w.ExternalTrafficLocal && len(w.ExternalIPs) > 0
}

// translate returns the target that translates to the endpoints of a policy.
func (w *portRenderer) translate(local bool) string {
	port := w.Port
	if local != w.InternalTrafficLocal {
		port = w.SparePort
	}
	return "DNAT --to-destination " + netip.AddrPortFrom(w.ClusterIP, port).String()
}

// external renders what reaches the port from outside the cluster: external
// IPs, load balancer IPs and the node port.
func (w *portRenderer) external() {
	if !w.ExternallyAccessible() {
		return
	}
	for _, ip := range w.ExternalIPs {
		w.externalIP(ip)
	}
	if len(w.ExternalIPs) > 0 {
		w.addressChain()
	}
	for _, ip := range w.LoadBalancerIPs {
		w.balancer(ip)
	}
	if w.NodePort != 0 {
		w.nodePort()
	}
	if w.ExternalTrafficLocal && (w.NodePort != 0 || len(w.LoadBalancerIPs) > 0) {
		w.chain(shortcutChain(w.Name), false, w.shortcut()...)
	}
}

// outside returns what external traffic meets: the sets for the two traffic
// policies are those of its kind.
func (w *portRenderer) outside(cluster, local setMask) front {
	f := front{sets: cluster}
	eps := w.Endpoints
	if w.ExternalTrafficLocal {
		f.sets, eps = local, w.LocalEndpoints
	}
	f.server = w.served(eps)
	switch {
	case !w.Usable:
		f.sets = in(noEndpoint)
	case f.server == nil:
		f.sets |= in(noLocal)
	}
	return f
}

// externalIP renders an external IP, which is translated to the cluster IP. On the
// device it would be the node's own, and often it is another node's.
func (w *portRenderer) externalIP(ip netip.Addr) {
	f := w.outside(in(externalIPs), in(externalIPsLocal))
	f.server = nil
	p := w.at(ip, w.Port)
	f.leads = []idiom.Place{w.lead(externals, p.Key, addressChain(w.Name))}
	w.claim(ofExternal, w.Usable, p, f)
}

// balancer renders a load balancer's address. Without any endpoint the node's own
// packets to it go where they would go without the Service, so it is not the node's
// then.
func (w *portRenderer) balancer(ip netip.Addr) {
	f := w.outside(in(balancers), in(balancersLocal))
	f.vip = w.Usable
	if sources := w.sources(); w.Usable && sources != nil {
		f.sets |= in(firewalled)
		f.admits = sources
		if w.nodeAdmitted() { // its own packets come from the address itself
			f.admits = append(f.admits, ipset.Single(ip))
		}
		slices.SortFunc(f.admits, netip.Prefix.Compare)
		f.admits = slices.Compact(f.admits)
	}
	p := w.at(ip, w.Port)
	if w.ExternalTrafficLocal {
		f.leads = []idiom.Place{w.lead(externals, p.Key, shortcutChain(w.Name))}
	}
	w.claim(ofExternal, f.server != nil, p, f)
}

// sources returns the sources that load balancers' addresses are for, which may be
// none; nil where they are for all.
func (w *portRenderer) sources() []netip.Prefix {
	all := slices.ContainsFunc(w.SourceRanges, func(p netip.Prefix) bool { return p.Bits() == 0 })
	if !w.Restricted || all {
		return nil
	}
	out := []netip.Prefix{}
	for _, r := range w.SourceRanges {
		out = append(out, r.Masked())
	}
	return out
}

// nodeAdmitted tells whether a source range has the node's own address.
func (w *portRenderer) nodeAdmitted() bool {
	return slices.ContainsFunc(w.SourceRanges, func(r netip.Prefix) bool { return r.Contains(w.node.IP) })
}

// nodePort renders the node port: a virtual server on each address, and the port
// by itself in the set of its protocol. Of SCTP, sets of ports know nothing, so its
// set has addresses, too.
func (w *portRenderer) nodePort() {
	sctp := w.Name.Protocol == model.SCTP
	cluster, local := in(nodePortsTCP), in(nodePortsLocalTCP)
	switch w.Name.Protocol {
	case model.UDP:
		cluster, local = in(nodePortsUDP), in(nodePortsLocalUDP)
	case model.SCTP:
		cluster, local = in(nodePortsSCTP), in(nodePortsLocalSCTP)
	}
	f, everywhere := w.outside(cluster, local), front{leads: w.localhost()}
	if !sctp {
		everywhere.sets = f.sets & (cluster | local)
		f.sets &^= cluster | local
	}
	for _, a := range w.nodePorts {
		w.claim(ofNodePort, f.server != nil, w.at(a, w.NodePort), f)
	}
	for _, a := range w.loopbacks {
		w.claim(ofNodePort, false, w.at(a, w.NodePort), front{sets: f.sets & in(noEndpoint, noLocal)})
	}
	p := w.at(netip.Addr{}, w.NodePort)
	if w.ExternalTrafficLocal {
		everywhere.leads = append(everywhere.leads, w.lead(externalPorts, p.Key, shortcutChain(w.Name)))
	}
	w.claim(ofNodePort, w.Usable, p, everywhere)
}

// lead returns the rule of a shared chain that leads to one of the port's own for a
// destination.
func (w *portRenderer) lead(portal int, k dispatch.Key, target string) idiom.Place {
	s := idiom.To(k.Addr, k.Protocol, k.Port)
	s.Comment = w.Name.String()
	return idiom.Place{In: portal, Key: k, Rules: []ruleset.Rule{s.Jump(target).Rule()}}
}

// chain adds a chain of the port's own.
func (w *portRenderer) chain(name string, patient bool, rules ...ruleset.Rule) {
	if w.out.chains == nil {
		w.out.chains = map[string]*ruleset.Chain{}
	}
	w.out.chains[name] = &ruleset.Chain{Unit: idiom.UnitOf(w.Name), Patient: patient, Rules: rules}
}

// loops notes the endpoints that may reach themselves. A node's own addresses are
// none of them: what it sends to itself through a Service comes from the Service's
// address.
func (w *portRenderer) loops() {
	for _, ep := range w.MayReachThemselves() {
		if a := ep.Addr(); !w.held(a) {
			w.out.loops = append(w.out.loops, ipset.Element{
				Addr: a, Protocol: idiom.ProtocolNumber(w.Name.Protocol), Port: ep.Port(), Net: ipset.Single(a),
			})
		}
	}
}

// shortcut returns rules for external traffic under the policy Local: that of pods,
// and of this node, may go to any endpoint, as if it had gone out to the load balancer
// and come in elsewhere. They are the same whatever the endpoints are; the sets say
// whether they are asked.
func (w *portRenderer) shortcut() []ruleset.Rule {
	to, proto := w.translate(false), w.Name.Protocol.Lower()
	destinations := "traffic for " + w.Name.String() + " external destinations"
	var rules []ruleset.Rule
	for _, s := range w.pods().From(idiom.Spec{Proto: proto, Comment: "pod " + destinations}) {
		rules = append(rules, s.Jump(to).Rule())
	}
	local := idiom.Spec{Comment: "masquerade LOCAL " + destinations, More: "-m addrtype --src-type LOCAL "}
	rules = append(rules, local.Jump(nat.MarkMasq).Rule())
	local.Comment, local.Proto = "route LOCAL "+destinations, proto
	return append(rules, local.Jump(to).Rule())
}

// addressChain renders the chain that translates external IPs. What is to be dropped
// it leaves to the filter.
func (w *portRenderer) addressChain() {
	proto := w.Name.Protocol.Lower()
	if w.ExternalTrafficLocal {
		served := idiom.Spec{Proto: proto, More: "-m set ! --match-set " + setName(noLocal, w.ipv6()) + " dst,dst "}
		w.chain(addressChain(w.Name), false, append(w.shortcut(), served.Jump(w.translate(true)).Rule())...)
		return
	}
	mark := idiom.Spec{Comment: "masquerade traffic for " + w.Name.String() + " external destinations"}
	w.chain(addressChain(w.Name), false, mark.Jump(nat.MarkMasq).Rule(), idiom.Spec{Proto: proto}.Jump(w.translate(false)).Rule())
}

// localhost renders the node port on 127.0.0.1, and returns what leads there. IPVS drops what comes from there and
// is not for this node, so rules choose among the endpoints. There is but one
// client, who with session affinity has one endpoint.
func (w *portRenderer) localhost() []idiom.Place {
	if !w.LocalhostNodePorts || w.Family != model.IPv4 || !w.answersOnLoopback() || len(w.Endpoints) == 0 {
		return nil
	}
	chain := localhostChain(w.Name)
	eps := w.Endpoints
	if w.AffinityTimeout > 0 {
		eps = eps[:1]
	}
	rules := []ruleset.Rule{idiom.Spec{Comment: "masquerade traffic for " + w.Name.String() + " on localhost"}.Jump(nat.MarkMasq).Rule()}
	for i, ep := range eps {
		s := idiom.Spec{Proto: w.Name.Protocol.Lower(), Comment: w.Name.String() + " -> " + ep.AddrPort.String()}
		if n := len(eps) - i; n > 1 {
			s.More = idiom.OneOf(1, n)
		}
		rules = append(rules, s.Jump("DNAT --to-destination "+ep.AddrPort.String()).Rule())
	}
	w.chain(chain, true, rules...)
	return []idiom.Place{w.lead(localhostPorts, w.at(netip.Addr{}, w.NodePort).Key, chain)}
}

// answersOnLoopback tells whether node ports answer on 127.0.0.1.
func (r renderer) answersOnLoopback() bool {
	return r.node.NodePorts.All || slices.ContainsFunc(r.node.NodePorts.Addrs, netip.Addr.IsLoopback)
}
