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
	// nodePorts are the addresses that node ports answer on by virtual servers.
	nodePorts []netip.Addr
}

// on returns a renderer for a node.
func (r renderer) on(n proxier.NodeState) renderer {
	r.node, r.nodePorts = n, nil
	addrs := n.NodePorts.Addrs
	if n.NodePorts.All {
		addrs = n.Addrs
	}
	for _, a := range addrs {
		if !a.IsLoopback() { // IPVS sends nothing on that comes from there
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
	places []idiom.Place
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
		w.claim(ofNodePort, place{key, true}, front{sets: in(healthPorts)})
	}
	w.loops()
	return w.out
}

// claim notes what the port wants of a place. Of two for one place the later one
// counts.
func (w *portRenderer) claim(rk rank, p place, f front) {
	if f.server == nil {
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

// internal renders the cluster IP. It answers on the port that the Service has, and
// where that one keeps to the node's own endpoints and others do not, on a spare one
// for those.
func (w *portRenderer) internal() {
	f := front{vip: true, server: w.served(w.Endpoints)}
	if w.InternalTrafficLocal {
		f.server = w.served(w.LocalEndpoints)
	}
	switch {
	case f.server != nil:
		f.sets = in(clusterIPs)
	case w.DropsInternal():
		f.sets = in(noLocal)
	}
	w.claim(ofCluster, w.at(w.ClusterIP, w.Port), f)
	if w.shortcut() != 0 && w.InternalTrafficLocal {
		if v := w.served(w.Endpoints); v != nil {
			w.claim(ofCluster, w.at(w.ClusterIP, w.SparePort), front{vip: true, sets: in(spares), server: v})
		}
	}
}

// shortcut returns the port of the cluster IP that has the endpoints of the policy
// Cluster, for those who come to an external address of the policy Local and need no
// way back to a client outside; 0 where nobody does.
func (w *portRenderer) shortcut() uint16 {
	switch {
	case !w.ExternalTrafficLocal || !w.ExternallyAccessible():
		return 0
	case w.InternalTrafficLocal:
		return w.SparePort
	}
	return w.Port
}

// external renders what reaches the port from outside the cluster: external
// IPs, load balancer IPs and the node port.
func (w *portRenderer) external() {
	if !w.ExternallyAccessible() {
		return
	}
	for _, ip := range w.ExternalIPs {
		w.externalAddress(ip, externalIPs, externalIPsLocal, nil)
	}
	for _, ip := range w.LoadBalancerIPs {
		w.externalAddress(ip, balancers, balancersLocal, w.sources())
	}
	if w.NodePort != 0 {
		w.nodePort()
		w.localhost()
	}
	if w.ExternalTrafficLocal {
		w.shortcutChain()
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

// externalAddress renders an address. Without any endpoint the node's own packets
// to it go where they would go without the Service, so it is not the node's then.
func (w *portRenderer) externalAddress(ip netip.Addr, cluster, local setID, sources []netip.Prefix) {
	f := w.outside(in(cluster), in(local))
	f.vip = w.Usable
	if w.Usable && sources != nil {
		f.sets |= in(firewalled)
		f.admits = slices.Clone(sources)
		if w.nodeAdmitted() { // its own packets come from the address itself
			f.admits = append(f.admits, ipset.Single(ip))
		}
		slices.SortFunc(f.admits, netip.Prefix.Compare)
		f.admits = slices.Compact(f.admits)
	}
	p := w.at(ip, w.Port)
	w.claim(ofExternal, p, f)
	if w.ExternalTrafficLocal {
		w.lead(shortcuts, p.Key)
	}
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
	f := w.outside(cluster, local)
	byPort := f.sets & (cluster | local)
	if byPort != 0 && !sctp {
		w.claim(ofNodePort, w.at(netip.Addr{}, w.NodePort), front{sets: byPort})
		f.sets &^= byPort
	}
	for _, a := range w.nodePorts {
		w.claim(ofNodePort, w.at(a, w.NodePort), f)
	}
	if w.ExternalTrafficLocal {
		w.lead(shortcutPorts, w.at(netip.Addr{}, w.NodePort).Key)
	}
}

// lead has a shared chain lead to the port's own for one destination.
func (w *portRenderer) lead(portal int, k dispatch.Key) {
	s := w.to(k)
	s.Comment = w.Name.String()
	target := shortcutChain(w.Name)
	if portal == localhostPorts {
		target = localhostChain(w.Name)
	}
	w.out.places = append(w.out.places, idiom.Place{In: portal, Key: k, Rules: []ruleset.Rule{s.Jump(target).Rule()}})
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

// to matches a destination.
func (w *portRenderer) to(k dispatch.Key) idiom.Spec {
	return idiom.To(k.Addr, w.Name.Protocol, k.Port)
}

// shortcutChain renders the chain for external traffic under the policy Local: that
// of pods, and of this node, may go to any endpoint, as if it had gone out to the
// load balancer and come in elsewhere. It is the same whatever the endpoints are;
// the sets say whether it is asked.
func (w *portRenderer) shortcutChain() {
	to := "DNAT --to-destination " + netip.AddrPortFrom(w.ClusterIP, w.shortcut()).String()
	destinations := "traffic for " + w.Name.String() + " external destinations"
	var rules []ruleset.Rule
	proto := w.Name.Protocol.Lower()
	for _, s := range w.pods().From(idiom.Spec{Proto: proto, Comment: "pod " + destinations}) {
		rules = append(rules, s.Jump(to).Rule())
	}
	local := idiom.Spec{Comment: "masquerade LOCAL " + destinations, More: "-m addrtype --src-type LOCAL "}
	rules = append(rules, local.Jump(nat.MarkMasq).Rule())
	local.Comment, local.Proto = "route LOCAL "+destinations, proto
	w.chain(shortcutChain(w.Name), false, append(rules, local.Jump(to).Rule())...)
}

// localhost renders the node port on 127.0.0.1. IPVS drops what comes from there and
// is not for this node, so rules choose among the endpoints. There is but one
// client, who with session affinity has one endpoint.
func (w *portRenderer) localhost() {
	if !w.LocalhostNodePorts || w.Family != model.IPv4 || !w.answersOnLoopback() || len(w.Endpoints) == 0 {
		return
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
	w.lead(localhostPorts, w.at(netip.Addr{}, w.NodePort).Key)
}

// answersOnLoopback tells whether node ports answer on 127.0.0.1.
func (r renderer) answersOnLoopback() bool {
	return r.node.NodePorts.All || slices.ContainsFunc(r.node.NodePorts.Addrs, netip.Addr.IsLoopback)
}
