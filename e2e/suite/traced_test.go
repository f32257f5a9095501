// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/iptables/ruleset/trace"
	"fairlead/nat"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// TestTracedSuite: the first packet of every cell meets rules that bring about
// the recorded outcome, or the one that differences_test.go has instead. It
// needs neither root nor a kernel. What a node's rules do to the packet is
// traced; how it gets from node to node, and back, is what the lab routes.
func TestTracedSuite(t *testing.T) {
	if *record {
		return // the reference is about to be written
	}
	ref, err := readReference()
	if err != nil {
		t.Fatal(err)
	}
	topo := topologyOf(lab.Plan(labConfig()))
	traced, left := 0, map[string]int{}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			rules := newRules(t, topo, sc)
			for _, c := range sc.keys() {
				if why := untraceable(sc, c); why != "" {
					left[why]++
					continue
				}
				want := ref.scenarios[sc.name][c]
				if d := find(differences, sc, c); d != nil {
					want = d.want
				}
				traced++
				if got := rules.outcome(t, c); got != want {
					t.Errorf("%s\n\t got: %s\n\twant: %s", c, got, want)
				}
			}
		})
	}
	t.Logf("%d cells traced", traced)
	for _, why := range slices.Sorted(maps.Keys(left)) {
		t.Logf("%d cells not traced: %s", left[why], why)
	}
}

// untraceable says why the first packet of a cell does not decide it, empty if
// it does.
func untraceable(sc scenario, c cell) string {
	switch {
	case sc.sticky:
		return "session affinity shows in later connections"
	case c.place.target == toHealthCheck:
		return "health checks are HTTP, not rules"
	}
	return ""
}

// nodeFamily is a node in one family.
type nodeFamily struct {
	node   string
	family model.Family
}

// rules are those of a scenario on all nodes.
type rules struct {
	topo    *topology
	tracers map[nodeFamily]*trace.Tracer
}

// newRules renders a scenario for all nodes and families.
func newRules(t *testing.T, topo *topology, sc scenario) rules {
	t.Helper()
	r := rules{topo, map[nodeFamily]*trace.Tracer{}}
	for _, n := range topo.lab.Nodes {
		for _, f := range model.Families() {
			d, err := ruleset.Parse(strings.NewReader(render(t, topo, sc, n, f)))
			if err != nil {
				t.Fatal(err)
			}
			r.tracers[nodeFamily{n.Label, f}] = trace.New(d, n.Addr(f), bridgeAddr(n, f))
		}
	}
	return r
}

// render takes the objects of a scenario the whole way to a node's rules.
func render(t *testing.T, topo *topology, sc scenario, n *lab.Node, f model.Family) string {
	t.Helper()
	cfg := iptables.RenderConfig{
		Family: f, MasqueradeBit: 14, LocalhostNodePorts: true, PodCIDRs: ofFamily(clusterCIDR, f),
	}
	kernel := &fake.Kernel{}
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: kernel, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), iptables.Contribution(cfg)},
	})
	engine.Stage(nat.Chains(cfg.MasqueradeBit))
	changes := resolve(topo, sc, n.Label, f)
	var names []model.ServicePortName
	for name := range changes {
		names = append(names, name)
	}
	slices.SortFunc(names, model.ServicePortName.Compare)
	r, err := iptables.New(cfg, engine, nil, nil).Sync(t.Context(), proxier.Desired{
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

// outcome traces a cell and returns its outcome in the reference's words.
func (r rules) outcome(t *testing.T, c cell) string {
	t.Helper()
	f := c.flow.family
	to := c.place.addr(r.topo, f)
	pkt := trace.Packet{Src: r.source(c.from, to.Addr(), f), Dst: to, Proto: c.flow.network}
	parts, err := r.follow(r.path(c, to.Addr()), pkt, c.from)
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ", ")
}

// source is the address that somebody asks from.
func (r rules) source(from string, to netip.Addr, f model.Family) netip.Addr {
	if to.IsLoopback() {
		return to
	}
	if n := r.node(from); n != nil && to == bridgeAddr(n, f) {
		return to
	}
	return r.topo.hosts[from].Addr(f)
}

// node returns the node of that label, nil if it is none.
func (r rules) node(label string) *lab.Node {
	for _, n := range r.topo.lab.Nodes {
		if n.Label == label {
			return n
		}
	}
	return nil
}

// path lists the nodes whose rules a packet meets untranslated: that of who
// asks, and the one that has the address.
func (r rules) path(c cell, to netip.Addr) []string {
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

// owner returns the node that has an address on the outside network or towards
// its pods, empty if none has.
func (r rules) owner(a netip.Addr) string {
	for _, n := range r.topo.lab.Nodes {
		if f := model.FamilyOf(a); a == n.Addr(f) || a == bridgeAddr(n, f) {
			return n.Label
		}
	}
	return ""
}

// follow takes a packet along its path and returns the outcomes, one for each
// fate.
func (r rules) follow(path []string, pkt trace.Packet, from string) ([]string, error) {
	own := pkt.Src
	for i, node := range path {
		p := pkt
		p.FromNode = from == node
		fates, err := r.tracers[nodeFamily{node, model.FamilyOf(pkt.Dst.Addr())}].Trace(p)
		if err != nil {
			return nil, err
		}
		untouched := trace.Fate{To: pkt.Dst, Verdict: "ACCEPT"}
		if _, ok := fates[untouched]; ok && len(fates) == 1 && i < len(path)-1 {
			continue
		}
		var out []string
		for fate := range fates {
			word, err := r.word(node, fate, from, own)
			if err != nil {
				return nil, err
			}
			out = append(out, word)
		}
		return out, nil
	}
	return nil, errors.New("no node has the packet")
}

// word is the outcome of a fate in the reference's words.
func (r rules) word(node string, fate trace.Fate, from string, own netip.Addr) (string, error) {
	to := fate.To.Addr()
	server := r.topo.names[to]
	switch {
	case fate.Verdict == "REJECT":
		return "refused", nil
	case fate.Verdict == "DROP":
		return "dropped", nil
	case fate.To.Port() != targetPort && (to.IsLoopback() || r.owner(to) != ""):
		return "refused", nil // nothing listens there
	case fate.To.Port() != targetPort && server == "":
		server = outside
	case fate.To.Port() != targetPort || server == "":
		return "", fmt.Errorf("on %s: nobody is at %s", node, fate.To)
	}
	if fate.To.Port() == targetPort && !fate.Masqueraded && bypassed(node, from, server) {
		return "dropped", nil
	}
	saw := own
	if fate.Masqueraded {
		saw = r.masquerade(node, to)
	}
	if saw == own {
		return server + " saw own", nil
	}
	return server + " saw " + r.topo.name(saw), nil
}

// bypassed tells whether what a server answers to the client's own address does
// not pass the node that translated the request, so that nobody expects it.
func bypassed(node, from, server string) bool {
	return nodeOf(from) != node && nodeOf(server) != node
}

// masquerade is the address with which a node's packets leave for another.
func (r rules) masquerade(node string, to netip.Addr) netip.Addr {
	n, f := r.node(node), model.FamilyOf(to)
	if n.PodCIDR(f).Contains(to) {
		return bridgeAddr(n, f)
	}
	return n.Addr(f)
}
