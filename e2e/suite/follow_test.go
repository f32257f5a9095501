// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead/e2e/lab"
	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/iptables/ruleset/trace"
	"fairlead/nat"
	"fairlead/nat/ipset"
	ipsetfake "fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/health"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// nodeFamily is a node in one family.
type nodeFamily struct {
	node   string
	family model.Family
}

// traced is a scenario on all nodes: their rules, and their health checks.
type traced struct {
	topo    *topology
	tracers map[nodeFamily]*trace.Tracer
	// checks are the addresses at which nodes answer health checks.
	checks map[nodeFamily]netip.Addr
}

// newTraced takes the objects of a scenario the whole way to the rules of all
// nodes and families.
func newTraced(t *testing.T, topo *topology, sc scenario, k kind) traced {
	t.Helper()
	r := traced{topo, map[nodeFamily]*trace.Tracer{}, map[nodeFamily]netip.Addr{}}
	for _, n := range topo.lab.Nodes {
		for _, f := range model.Families() {
			ports := resolve(topo, sc, n.Label, f)
			loops := ipsetfake.NewSet(nat.LoopBack(f == model.IPv6), ipset.HashIPPortIP, f == model.IPv6)
			d, err := ruleset.Parse(strings.NewReader(render(t, n, f, ports, k, loops)))
			if err != nil {
				t.Fatal(err)
			}
			at := nodeFamily{n.Label, f}
			r.tracers[at] = trace.New(d, addrs(n, f)...)
			r.tracers[at].Set(loops.Name(), reachThemselves(loops))
			if sc.asks(toHealthCheck) {
				r.checks[at] = ownLoopback(len(r.checks) + 1)
				serveHealth(t, r.checks[at], ports)
			}
		}
	}
	return r
}

// ownLoopback returns one of the addresses on loopback that no other process is
// likely to use.
func ownLoopback(n int) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, 0x80 | byte(pid>>8), byte(pid), byte(n)})
}

// serveHealth answers health checks as an agent does that has just synced.
func serveHealth(t *testing.T, at netip.Addr, ports map[model.ServicePortName]*model.ServicePort) {
	t.Helper()
	state, err := health.New(health.Config{})
	if err != nil {
		t.Fatal(err)
	}
	services, servers := health.NewNodePortServices(), health.NewNodePorts(health.NodePortsConfig{
		State: state,
		Failed: func(s model.ObjectKey, port uint16, err error) {
			t.Errorf("health check node port %d of %s: %v", port, s, err)
		},
	})
	t.Cleanup(servers.Close)
	for name, port := range ports {
		services.Set(name, port)
	}
	servers.Sync(t.Context(), []netip.Addr{at}, services.Wanted())
}

// reachThemselves tells which endpoints reach themselves by a node's set.
func reachThemselves(l *ipsetfake.Set) trace.SetOf {
	in := l.In()
	return func(proto string, dst netip.AddrPort, src netip.Addr) bool {
		number := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, sctp: unix.IPPROTO_SCTP}[proto]
		return src == dst.Addr() && in[ipset.Loop(number, dst)]
	}
}

// kind is a kind of rules.
type kind struct {
	// sets is unset for a kernel without sets.
	sets    bool
	compact bool
}

// render returns a node's rules for the ports, as iptables-save prints them.
func render(t *testing.T, n *lab.Node, f model.Family, changes map[model.ServicePortName]*model.ServicePort, k kind, loops *ipsetfake.Set) string {
	t.Helper()
	cfg := iptables.RenderConfig{
		Family: f, MasqueradeBit: 14, LocalhostNodePorts: true, PodCIDRs: ofFamily(clusterCIDR, f), Compact: k.compact,
	}
	kernel := &fake.Kernel{}
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: kernel, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), iptables.Contribution(cfg)},
	})
	loopBack := ""
	if k.compact {
		loopBack = loops.Name()
	}
	engine.Stage(nat.Chains(cfg.MasqueradeBit, loopBack))
	var names []model.ServicePortName
	for name := range changes {
		names = append(names, name)
	}
	slices.SortFunc(names, model.ServicePortName.Compare)
	var clients iptables.Sets
	if k.sets {
		clients = &ipsetfake.Sets{}
	}
	r, err := iptables.New(cfg, engine, clients, loops, nil).Sync(t.Context(), proxier.Desired{
		Snapshot: model.NewSnapshot().With(changes), Changed: names, Prune: true,
		Node: proxier.NodeState{NodePorts: proxier.NodePorts{All: true}, IP: n.Addr(f)},
	})
	if err != nil || len(r.Refused) > 0 {
		t.Fatalf("Sync(): %v, refused %q", err, r.Refused)
	}
	return kernel.Save()
}

// resolve returns what a node has to do for a scenario.
func resolve(topo *topology, sc scenario, node string, f model.Family) map[model.ServicePortName]*model.ServicePort {
	policy := source.Policy{ServiceCIDRs: prefixes(serviceCIDRs), PodCIDRs: prefixes(clusterCIDR)}
	out := map[model.ServicePortName]*model.ServicePort{}
	for _, s := range sc.services {
		object, parts := s.objects(topo)
		addSCTP(object, parts)
		svc, ok, _ := source.TranslateService(object, policy)
		if !ok {
			continue
		}
		var eps []*model.EndpointSlice
		for _, part := range parts {
			if e, ok, _ := source.TranslateEndpointSlice(part); ok {
				eps = append(eps, e)
			}
		}
		for _, port := range proxier.Resolve(svc, eps, proxier.Locality{Node: node, Zone: zoneOf(node)}, f) {
			out[port.Name] = port
		}
	}
	return out
}

// addSCTP adds a port to a Service and its slices for the one that they have for
// TCP.
func addSCTP(svc *corev1.Service, parts []*discoveryv1.EndpointSlice) {
	for _, p := range svc.Spec.Ports {
		if p.Protocol == corev1.ProtocolTCP {
			p.Name, p.Protocol = sctp, corev1.ProtocolSCTP
			svc.Spec.Ports = append(svc.Spec.Ports, p)
		}
	}
	for _, part := range parts {
		for _, p := range part.Ports {
			if *p.Protocol == corev1.ProtocolTCP {
				p.Name, p.Protocol = new(sctp), new(corev1.ProtocolSCTP)
				part.Ports = append(part.Ports, p)
			}
		}
	}
}

// prefixes parses a list with commas.
func prefixes(list string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range strings.Split(list, ",") {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// ofFamily are those of a list with commas that are of a family.
func ofFamily(list string, f model.Family) []netip.Prefix {
	return slices.DeleteFunc(prefixes(list), func(p netip.Prefix) bool { return model.FamilyOf(p.Addr()) != f })
}

// client is an address as a node sees it.
type client struct {
	node string
	addr netip.Addr
}

// end is one thing that may become of a packet of a cell.
type end struct {
	trace.Fate
	// by is the node that has decided it, and the client there.
	by client
}

// ask sends the first packet of a connection to where a cell asks. Of the client
// the nodes know what is remembered.
func (r traced) ask(t *testing.T, c cell, m memory) []end {
	t.Helper()
	f := c.flow.family
	to := c.place.addr(r.topo, f)
	pkt := trace.Packet{Src: r.source(c.from, to.Addr(), f), Dst: to, Proto: c.flow.network}
	ends, err := r.follow(r.path(c, to.Addr()), pkt, c.from, m)
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	return ends
}

// outcome traces a cell and returns its outcome in the reference's words.
func (r traced) outcome(t *testing.T, c cell) string {
	t.Helper()
	ends := r.ask(t, c, nil)
	if c.place.target == toHealthCheck {
		return r.health(t, c, ends)
	}
	return r.count(t, c, ends).outcome(false)
}

// health is the outcome of a health check: that of the server, if the packet
// gets to it.
func (r traced) health(t *testing.T, c cell, ends []end) string {
	t.Helper()
	to := c.place.addr(r.topo, c.flow.family)
	if len(ends) != 1 || ends[0].Verdict == "ACCEPT" && ends[0].To != to {
		t.Fatalf("%s: got the fates %+v, want one, untranslated", c, ends)
	}
	if ends[0].Verdict != "ACCEPT" {
		return r.count(t, c, ends).outcome(false)
	}
	at := netip.AddrPortFrom(r.checks[nodeFamily{ends[0].by.node, c.flow.family}], healthCheckPort)
	return askHealth(t.Context(), new(net.Dialer).DialContext, at)
}

// source is the address that somebody asks from.
func (r traced) source(from string, to netip.Addr, f model.Family) netip.Addr {
	if to.IsLoopback() {
		return to
	}
	if n := r.node(from); n != nil && slices.Contains(addrs(n, f), to) {
		return to
	}
	return r.topo.hosts[from].Addr(f)
}

// node returns the node of that label, nil if it is none.
func (r traced) node(label string) *lab.Node {
	for _, n := range r.topo.lab.Nodes {
		if n.Label == label {
			return n
		}
	}
	return nil
}

// path lists the nodes whose rules a packet meets untranslated: that of who
// asks, and the one that has the address.
func (r traced) path(c cell, to netip.Addr) []string {
	var out []string
	owner := r.owner(to)
	switch {
	case c.from != "client":
		out = []string{nodeOf(c.from)}
	case owner == "":
		out = []string{"node-1"}
	}
	if owner != "" && !slices.Contains(out, owner) {
		out = append(out, owner)
	}
	return out
}

// owner returns the node that has an address, empty if none has.
func (r traced) owner(a netip.Addr) string {
	for _, n := range r.topo.lab.Nodes {
		if slices.Contains(addrs(n, model.FamilyOf(a)), a) {
			return n.Label
		}
	}
	return ""
}

// follow takes a packet along its path to where it is decided.
func (r traced) follow(path []string, pkt trace.Packet, from string, m memory) ([]end, error) {
	for i, node := range path {
		p, by := pkt, client{node, pkt.Src}
		p.FromNode, p.Known = from == node, m.of(by)
		fates, err := r.tracers[nodeFamily{node, model.FamilyOf(pkt.Dst.Addr())}].Trace(p)
		if err != nil {
			return nil, err
		}
		untouched := trace.Fate{To: pkt.Dst, Verdict: "ACCEPT"}
		if _, ok := fates[untouched]; ok && len(fates) == 1 && i < len(path)-1 {
			continue
		}
		var out []end
		for fate := range fates {
			out = append(out, end{fate, by})
		}
		return out, nil
	}
	return nil, errors.New("no node has the packet")
}

// count counts what may become of the packets of a cell as requests.
func (r traced) count(t *testing.T, c cell, ends []end) *tally {
	t.Helper()
	out := &tally{answers: map[answer]int{}}
	for _, e := range ends {
		if err := r.add(out, c.from, e); err != nil {
			t.Fatalf("%s: on %s: %v", c, e.by.node, err)
		}
	}
	return out
}

// add counts one end.
func (r traced) add(out *tally, from string, e end) error {
	to, isTarget := e.To.Addr(), e.To.Port() == targetPort
	server := r.topo.names[to]
	switch {
	case e.Verdict == "REJECT":
		out.refusals++
		return nil
	case e.Verdict == "DROP":
		out.timeouts++
		return nil
	case !isTarget && (to.IsLoopback() || r.owner(to) != ""): // nothing listens there
		out.refusals++
		return nil
	case !isTarget && server == "":
		server = outside
	case !isTarget || server == "":
		return fmt.Errorf("nobody is at %s", e.To)
	}
	if isTarget && !e.Masqueraded && bypassed(e.by.node, from, server) {
		out.timeouts++
		return nil
	}
	saw := "own"
	if e.Masqueraded {
		if a := r.masquerade(e.by.node, to); a != e.by.addr {
			saw = r.topo.name(a)
		}
	}
	out.answers[answer{server, saw}]++
	return nil
}

// bypassed tells whether what a server answers to the client's own address does
// not pass the node that translated the request, so that nobody expects it.
func bypassed(node, from, server string) bool {
	return nodeOf(from) != node && nodeOf(server) != node
}

// masquerade is the address with which a node's packets leave for another.
func (r traced) masquerade(node string, to netip.Addr) netip.Addr {
	n, f := r.node(node), model.FamilyOf(to)
	if n.PodCIDR(f).Contains(to) {
		return bridgeAddr(n, f)
	}
	return n.Addr(f)
}
