// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/iptables/ruleset/trace"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// TestSpread: with the shared chains spread over trees, the same becomes of every
// packet as with all their rules in the root. So it is, too, after changes, which
// leave what an agent writes that knows only the last.
func TestSpread(t *testing.T) {
	for i, cfg := range []RenderConfig{v4(), v6(), v4(), without(v6())} {
		t.Run(fmt.Sprintf("seed=%d", i), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			c := newCity(rng, cfg)
			var k fake.Kernel
			a := c.agent(t, &k)
			verdicts := map[string]int{}
			for _, ports := range []int{400, 40 + rng.IntN(361), 40, 40 + rng.IntN(361), 200} {
				changed := c.change(ports)
				a.syncChanged(c.snap, changed)
				var fresh fake.Kernel
				c.agent(t, &fresh).sync(c.all()...)
				if diff := gocmp.Diff(fresh.Save(), k.Save()); diff != "" {
					t.Fatalf("with %d ports, rules (-full +incremental):\n%s", len(c.all()), diff)
				}
				c.checkFates(t, a, k.Save(), verdicts)
				for p := range portalKinds() {
					if n := a.portals.Len(p); ports == 400 && n < 40 {
						t.Errorf("with %d ports, portal %d has %d rules, too few for a tree", ports, p, n)
					}
				}
			}
			for _, v := range []string{"translated", "left alone", "DROP", "REJECT"} {
				if verdicts[v] < 30 {
					t.Errorf("%d packets are %s, too few to prove anything: %v", verdicts[v], v, verdicts)
				}
			}
		})
	}
}

// city is a number of ports with all kinds of portals.
type city struct {
	rng  *rand.Rand
	cfg  RenderConfig
	snap *model.Snapshot
	// next is the number of the next port.
	next int
	node proxier.NodeState
	self netip.Addr
}

func newCity(rng *rand.Rand, cfg RenderConfig) *city {
	c := &city{rng: rng, cfg: cfg, snap: model.NewSnapshot(), node: everywhere}
	c.self = c.addr("192.0.2.", "2001:db8::", 1)
	if rng.IntN(2) == 0 {
		c.node.NodePorts = proxier.NodePorts{Addrs: []netip.Addr{c.self}}
	}
	c.node.IP = c.self
	return c
}

func (c *city) agent(t *testing.T, k *fake.Kernel) *agent {
	a := fakeAgent(t, k, c.cfg)
	a.where = c.node
	return a
}

// addr returns the address with a number, after what those of a family begin
// with.
func (c *city) addr(four, six string, n int) netip.Addr {
	if c.cfg.Family == model.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("%s%x", six, n))
	}
	return netip.MustParseAddr(fmt.Sprintf("%s%d", four, n))
}

// change removes some ports, changes others and adds some, until there are as
// many as are wanted. It returns the names of those that are not as before.
func (c *city) change(want int) []model.ServicePortName {
	changes := map[model.ServicePortName]*model.ServicePort{}
	left := len(c.all())
	for _, p := range c.all() {
		switch {
		case left > want || c.rng.IntN(10) == 0:
			changes[p.Name] = nil
			left--
		case c.rng.IntN(10) == 0:
			again := c.port()
			again.Name = p.Name
			changes[p.Name] = again
		}
	}
	for ; left < want; left++ {
		p := c.port()
		changes[p.Name] = p
	}
	c.snap = c.snap.With(changes)
	return slices.SortedFunc(maps.Keys(changes), model.ServicePortName.Compare)
}

// all returns the ports in the order of their names.
func (c *city) all() []*model.ServicePort {
	return slices.SortedFunc(c.snap.All(), func(a, b *model.ServicePort) int { return a.Name.Compare(b.Name) })
}

// port makes a port. Some are of one address that has many, and external
// addresses are few, so that two Services have the same one, or one Service has
// it as both kinds.
func (c *city) port() *model.ServicePort {
	c.next++
	rng, n := c.rng, c.next
	p := &model.ServicePort{
		Name: portName("ns", fmt.Sprintf("svc%d", n), "p", []model.Protocol{model.TCP, model.TCP, model.UDP, model.SCTP}[rng.IntN(4)]),
		Port: uint16(80 + rng.IntN(3)), ClusterIP: c.addr(fmt.Sprintf("10.96.%d.", n/200), fmt.Sprintf("fd00:96::%x:", n/200), n%200),
	}
	if n%3 == 0 {
		p.ClusterIP, p.Port = c.addr("10.97.0.", "fd00:97::", 1), uint16(n*37)
	}
	some := func(chance, most int, four, six string) (out []netip.Addr) {
		if rng.IntN(chance) > 0 {
			return nil
		}
		for range 1 + rng.IntN(2) {
			if a := c.addr(four, six, rng.IntN(most)); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
		return out
	}
	p.ExternalIPs = some(3, 50, "203.0.113.", "2001:db8:e::")
	p.LoadBalancerIPs = some(3, 250, "203.0.113.", "2001:db8:e::")
	if rng.IntN(3) == 0 {
		p.NodePort = uint16(30000 + n)
	}
	if rng.IntN(4) == 0 {
		p.HealthCheckNodePort = uint16(32000 + n)
	}
	if rng.IntN(2) == 0 {
		p.Restricted = true
		p.SourceRanges = []netip.Prefix{netip.PrefixFrom(c.addr("192.0.2.", "2001:db8::", 0), c.self.BitLen()-8*rng.IntN(2))}
	}
	p.ExternalTrafficLocal, p.InternalTrafficLocal = rng.IntN(3) == 0, rng.IntN(4) == 0
	c.endpoints(p)
	return p
}

// endpoints gives a port none, or some of which none or a few are on this node.
func (c *city) endpoints(p *model.ServicePort) {
	if c.rng.IntN(3) == 0 {
		return
	}
	p.Usable = true
	here := c.rng.IntN(3)
	for i := range 1 + c.rng.IntN(3) {
		ep := model.Endpoint{AddrPort: netip.AddrPortFrom(c.addr("10.244.1.", "fd00:244::", 1+i), 8080), Local: i < here}
		if p.UsesCluster() {
			p.Endpoints = append(p.Endpoints, ep)
		}
		if p.UsesLocal() && ep.Local {
			p.LocalEndpoints = append(p.LocalEndpoints, ep)
		}
	}
}

// packet returns one that is for a port, or nearly.
func (c *city) packet(ports []*model.ServicePort) trace.Packet {
	p := ports[c.rng.IntN(len(ports))]
	dsts := []netip.AddrPort{netip.AddrPortFrom(p.ClusterIP, p.Port)}
	for _, ip := range slices.Concat(p.ExternalIPs, p.LoadBalancerIPs) {
		dsts = append(dsts, netip.AddrPortFrom(ip, p.Port))
	}
	for _, n := range []uint16{p.NodePort, p.HealthCheckNodePort} {
		if n != 0 {
			dsts = append(dsts, netip.AddrPortFrom(c.self, n))
		}
	}
	pkt := trace.Packet{Dst: dsts[c.rng.IntN(len(dsts))], Proto: p.Name.Protocol.Lower()}
	switch c.rng.IntN(8) {
	case 0:
		pkt.Dst = netip.AddrPortFrom(pkt.Dst.Addr(), pkt.Dst.Port()^uint16(1<<c.rng.IntN(16)))
	case 1:
		pkt.Dst = netip.AddrPortFrom(pkt.Dst.Addr().Next(), pkt.Dst.Port())
	case 2:
		pkt.Proto = []string{"tcp", "udp", "sctp"}[c.rng.IntN(3)]
	}
	switch c.rng.IntN(4) {
	case 0:
		pkt.Src, pkt.FromNode = c.self, true
	case 1: // an endpoint of many
		pkt.Src = c.addr("10.244.1.", "fd00:244::", 1)
	case 2: // of some source ranges
		pkt.Src = c.addr("192.0.2.", "2001:db8::", 7)
	default:
		pkt.Src = c.addr("198.18.0.", "2001:db8:1::", 7)
	}
	return pkt
}

// checkFates compares what becomes of packets with what would become of them if
// all shared rules were in the roots, and counts verdicts.
func (c *city) checkFates(t *testing.T, a *agent, save string, verdicts map[string]int) {
	t.Helper()
	d, err := ruleset.Parse(strings.NewReader(save))
	if err != nil {
		t.Fatal(err)
	}
	spread, flat := trace.New(d, c.self), trace.New(flatten(a.Mode, d), c.self)
	ports := c.all()
	for range 250 {
		pkt := c.packet(ports)
		got, err := spread.Trace(pkt)
		if err != nil {
			t.Fatal(err)
		}
		want, err := flat.Trace(pkt)
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(want, got) {
			t.Errorf("%d ports: of %+v becomes\n%v, want\n%v", len(ports), pkt, got, want)
		}
		for f := range got {
			switch {
			case f.Verdict != "ACCEPT":
				verdicts[f.Verdict]++
			case f.To != pkt.Dst:
				verdicts["translated"]++
			default:
				verdicts["left alone"]++
			}
		}
	}
}

// flatten returns a dump with all shared rules in the roots, and without the
// chains of trees.
func flatten(m *Mode, d ruleset.Dump) ruleset.Dump {
	names := slices.SortedFunc(maps.Keys(m.ports), func(a, b model.ServicePortName) int {
		return cmp.Compare(idiom.UnitOf(a), idiom.UnitOf(b))
	})
	own := map[ruleset.ChainKey]bool{}
	roots := map[ruleset.ChainKey][]ruleset.Rule{}
	for p, kind := range portalKinds() {
		root := kind.Root
		for _, name := range names {
			for _, s := range m.ports[name].shared {
				if s.In == p {
					roots[root] = append(roots[root], s.Rules...)
				}
			}
			for _, chain := range m.ports[name].chains {
				own[ruleset.ChainKey{Table: ruleset.NAT, Name: chain}] = true
			}
		}
	}
	roots[natServices] = append(roots[natServices], m.render.nodePortRules(m.node.NodePorts)...)
	var out ruleset.Dump
	for _, table := range d {
		kept := ruleset.DumpTable{Name: table.Name}
		for _, chain := range table.Chains {
			key := ruleset.ChainKey{Table: table.Name, Name: chain.Name}
			if rules, ok := roots[key]; ok {
				chain.Rules = rules
			} else if branch(key) && !own[key] {
				continue
			}
			kept.Chains = append(kept.Chains, chain)
		}
		out = append(out, kept)
	}
	return out
}

// branch tells whether a chain may be below the root of a tree, by its name.
func branch(k ruleset.ChainKey) bool {
	return slices.ContainsFunc([]string{servicePrefix, externalPrefix, firewallPrefix, healthPrefix}, func(p string) bool {
		return strings.HasPrefix(k.Name, p)
	})
}
