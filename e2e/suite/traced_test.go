// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/nat/ipset"
	ipsetfake "fairlead/nat/ipset/fake"
	"fairlead/proxier/model"
)

// TestTracedSuite: the packets of every cell meet rules that bring about the
// recorded outcome, or the one that differences_test.go has instead. It needs
// neither root nor a kernel. What a node's rules do to a packet is traced; how it
// gets from node to node, and back, is what the lab routes. A health check that
// the rules let through is answered by the agent's own server. Each scenario is
// traced a second time among so many Services that rules find theirs by a tree,
// again with compact rules, and sticky ones with rules for a kernel without sets.
//
// Each cell by TCP is traced by SCTP as well, which few kernels have sockets for,
// and has to come to the same.
func TestTracedSuite(t *testing.T) {
	if *record {
		return // the reference is about to be written
	}
	ref, err := readReference()
	if err != nil {
		t.Fatal(err)
	}
	topo := topologyOf(lab.Plan(labConfig()))
	cells, twice := 0, 0
	for _, sc := range scenarios {
		recorded := expected("iptables", sc, ref.scenarios[sc.name])
		t.Run(sc.name, func(t *testing.T) {
			got := newTraced(t, topo, sc, kind{sets: true}).outcomes(t, sc)
			compare(t, sc, recorded, got)
			for c := range got {
				if c.flow.network != sctp {
					cells++
					continue
				}
				twice++
				byTCP := c
				byTCP.flow.network = "tcp"
				if got[c] != got[byTCP] {
					t.Errorf("%s\n\t got: %s\n\twant: %s, as by TCP", c, got[c], got[byTCP])
				}
			}
		})
		t.Run(sc.name+" among many", func(t *testing.T) {
			compare(t, sc, recorded, newTraced(t, topo, amongMany(sc), kind{sets: true}).outcomes(t, sc))
		})
		t.Run(sc.name+" compact", func(t *testing.T) {
			compare(t, sc, recorded, newTraced(t, topo, sc, kind{sets: true, compact: true}).outcomes(t, sc))
		})
		if sc.sticky {
			t.Run(sc.name+" without sets", func(t *testing.T) {
				compare(t, sc, recorded, newTraced(t, topo, sc, kind{}).outcomes(t, sc))
			})
		}
	}
	t.Logf("%d cells traced, %d of them by SCTP, too", cells, twice)
}

// amongMany returns a scenario with so many more Services that rules find those
// that are asked by a tree.
func amongMany(sc scenario) scenario {
	sc.services = append(slices.Clone(sc.services), neighbours()...)
	return sc
}

// TestAmongMany: among many Services rules have a tree for each kind of address,
// and else none.
func TestAmongMany(t *testing.T) {
	topo := topologyOf(lab.Plan(labConfig()))
	n, few := topo.lab.Nodes[0], scenarios[0]
	for _, sc := range []scenario{few, amongMany(few)} {
		many := len(sc.services) > len(few.services)
		rules := render(t, n, model.IPv4, resolve(topo, sc, n.Label, model.IPv4), kind{sets: true}, ipsetfake.NewSet("", ipset.HashIPPortIP, false))
		for _, branch := range []string{"KUBE-SVC-10.96.0.", "KUBE-SVC-203.0.113.", "KUBE-SVC-tcp/", "KUBE-EXT-203.0.113.", "KUBE-EXT-tcp/", "KUBE-FW-203.0.113."} {
			if got := strings.Contains(rules, "\n:"+branch); got != many {
				t.Errorf("%d Services: a chain %s…: %t, want %t", len(sc.services), branch, got, many)
			}
		}
	}
}

// neighbours are Services with addresses close to those that are asked, of every
// kind, with endpoints and without.
func neighbours() []service {
	var out []service
	for i := range 60 {
		s := service{name: fmt.Sprintf("neighbour-%d", i), host: 100 + i}
		if i%3 > 0 {
			s.endpoints = at(remote)
		}
		s.changes = []change{func(svc *corev1.Service) {
			balancedAt(100+i, svc)
			for j := range svc.Spec.Ports {
				svc.Spec.Ports[j].NodePort = int32(nodePortNumber + 1 + i)
			}
			svc.Spec.ExternalIPs = both(publicAddr, 180+i)
			if i%2 > 0 {
				svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
			}
			if i%4 > 1 {
				svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
		}}
		out = append(out, s)
	}
	return out
}

// sctp is the network of cells that the reference does not have.
const sctp = "sctp"

// bySCTP returns cells by TCP as cells by SCTP, without those of other networks.
func bySCTP(cells []cell) []cell {
	var out []cell
	for _, c := range cells {
		if c.flow.network == "tcp" && c.place.target != toHealthCheck {
			c.flow.network = sctp
			out = append(out, c)
		}
	}
	return out
}

// outcomes traces the cells of a scenario, and those by SCTP.
func (r traced) outcomes(t *testing.T, sc scenario) outcomes {
	t.Helper()
	out := outcomes{}
	if !sc.sticky {
		for _, c := range append(sc.cells(), bySCTP(sc.cells())...) {
			out[c] = r.outcome(t, c)
		}
		return out
	}
	w := walk{traced: r, t: t, found: map[cell]map[string]bool{}, servers: map[string]bool{}}
	for _, lane := range sc.lanes() {
		w.from(lane, nil)
		w.from(bySCTP(lane), nil)
	}
	for c, found := range w.found {
		out[c] = strings.Join(slices.Sorted(maps.Keys(found)), " or ")
	}
	out[together] = strings.Join(slices.Sorted(maps.Keys(w.servers)), ", ")
	return out
}

// walk asks the cells of sticky clients one after the other, along every branch
// of what the rules may choose.
type walk struct {
	traced
	t *testing.T
	// found are the outcomes of each cell, and servers is who answered any.
	found   map[cell]map[string]bool
	servers map[string]bool
}

// from asks the cells of one client, of whom the nodes know what is remembered.
func (w *walk) from(lane []cell, m memory) {
	w.t.Helper()
	if len(lane) == 0 {
		return
	}
	c := lane[0]
	for _, first := range w.ask(w.t, c, m) {
		after := m.with(first.by, first.Learned)
		ends := append(w.ask(w.t, c, after), first)
		out := w.count(w.t, c, ends)
		if w.found[c] == nil {
			w.found[c] = map[string]bool{}
		}
		w.found[c][out.outcome(true)] = true
		for _, server := range out.servers() {
			w.servers[server] = true
		}
		w.from(lane[1:], after)
	}
}

// memory is what nodes remember of clients, the last first.
type memory []remembered

// remembered is a set or list of a node that a client is in.
type remembered struct {
	by   client
	name string
}

// with returns the memory of one thing more, if it has a name.
func (m memory) with(by client, name string) memory {
	if name == "" || slices.Contains(m, remembered{by, name}) {
		return m
	}
	return append(memory{{by, name}}, m...)
}

// of returns what a node knows a client by.
func (m memory) of(c client) []string {
	var out []string
	for _, r := range m {
		if r.by == c {
			out = append(out, r.name)
		}
	}
	return out
}
