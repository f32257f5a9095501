// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// countingSet is a set in memory.
type countingSet struct {
	in  map[ipset.Element]uint64
	err error
}

func (s *countingSet) Name() string     { return "KUBE-TRAFFIC" }
func (s *countingSet) Create(int) error { return s.err }

func (s *countingSet) List() ([]ipset.Element, bool, error) {
	return slices.Collect(maps.Keys(s.in)), true, s.err
}

func (s *countingSet) Add(elements ...ipset.Element) error {
	for _, e := range elements {
		s.in[e] += 0
	}
	return s.err
}

func (s *countingSet) Remove(elements ...ipset.Element) error {
	for _, e := range elements {
		delete(s.in, e)
	}
	return s.err
}

func (s *countingSet) Counts() (out []ipset.Counted, err error) {
	for e, n := range s.in {
		out = append(out, ipset.Counted{Element: e, Packets: n, Bytes: 10 * n})
	}
	return out, s.err
}

// TestPackets: the set has what Services are reached by, whatever changes, and what it
// counts is theirs.
func TestPackets(t *testing.T) {
	const foreign = "192.0.2.99,tcp:1"
	element := func(addr string, port uint16) ipset.Element {
		return ipset.Element{Addr: netip.MustParseAddr(addr), Protocol: 6, Port: port}
	}
	set := &countingSet{in: map[ipset.Element]uint64{element("192.0.2.99", 1): 0}}
	p, err := NewPackets(set)
	if err != nil {
		t.Fatal(err)
	}
	web, db := portName("shop", "web", "http", model.TCP), portName("shop", "db", "sql", model.TCP)
	d := proxier.Desired{Snapshot: model.NewSnapshot(), Node: proxier.NodeState{Addrs: addrsOf("192.0.2.1"), NodePorts: proxier.NodePorts{All: true}}}
	follow := func(changes map[model.ServicePortName]*model.ServicePort) error {
		d.Snapshot, d.Changed = d.Snapshot.With(changes), slices.Collect(maps.Keys(changes))
		return p.Follow(t.Context(), d)
	}
	check := func(when string, want ...string) {
		t.Helper()
		var got []string
		for e := range set.in {
			got = append(got, e.String())
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", when, diff)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(follow(map[model.ServicePortName]*model.ServicePort{
		web: {Name: web, ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 80, NodePort: 30080, ExternalIPs: addrsOf("203.0.113.1"), LoadBalancerIPs: addrsOf("203.0.113.2")},
		db:  {Name: db, ClusterIP: netip.MustParseAddr("10.96.0.2"), Port: 80, ExternalIPs: addrsOf("203.0.113.1")},
	}))
	all := []string{"10.96.0.1,tcp:80", "203.0.113.1,tcp:80", "203.0.113.2,tcp:80", "192.0.2.1,tcp:30080", "10.96.0.2,tcp:80"}
	check("before anything may be removed", append(all, foreign)...)
	d.Prune, d.Verify = true, true
	must(follow(nil))
	check("after that", all...)
	d.Verify = false

	set.in[element("10.96.0.1", 80)], set.in[element("192.0.2.1", 30080)], set.in[element("203.0.113.1", 80)] = 3, 4, 5
	got := map[string]traffic.Counts{}
	must(p.Read(t.Context(), func(s traffic.Sample) {
		sum := got[s.Port.String()]
		sum.PacketsIn, sum.BytesIn, sum.Connections = sum.PacketsIn+s.PacketsIn, sum.BytesIn+s.BytesIn, sum.Connections+s.Connections
		got[s.Port.String()] = sum
	}))
	// The address that both want is of the first by name.
	if diff := cmp.Diff(map[string]traffic.Counts{"shop/web:http": {PacketsIn: 7, BytesIn: 70}, "shop/db:sql": {PacketsIn: 5, BytesIn: 50}}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	d.Node.Addrs = addrsOf("192.0.2.2", "192.0.2.3")
	must(follow(map[model.ServicePortName]*model.ServicePort{db: nil}))
	check("other addresses of the node, and without a Service", "10.96.0.1,tcp:80", "203.0.113.1,tcp:80", "203.0.113.2,tcp:80", "192.0.2.2,tcp:30080", "192.0.2.3,tcp:30080")
	d.Node.NodePorts = proxier.NodePorts{Addrs: addrsOf("192.0.2.3")}
	must(follow(map[model.ServicePortName]*model.ServicePort{web: {Name: web, ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 81, NodePort: 30080}}))
	check("another port", "10.96.0.1,tcp:81", "192.0.2.3,tcp:30080")

	set.err = errors.New("no")
	if err := follow(map[model.ServicePortName]*model.ServicePort{web: nil}); err == nil {
		t.Error("no error where the set cannot be filled")
	}
	set.err = nil
	set.in = map[ipset.Element]uint64{element("10.96.0.1", 81): 0, element("192.0.2.3", 30080): 0}
	must(follow(nil))
	check("what an error left undone")
	delete(set.in, element("10.96.0.1", 81))
	must(follow(map[model.ServicePortName]*model.ServicePort{web: {Name: web, ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 82}}))
	set.in = map[ipset.Element]uint64{}
	d.Verify = true
	must(follow(nil))
	check("what others have removed", "10.96.0.1,tcp:82")
	for k, chain := range p.Chains() {
		if len(chain.Rules) != 1 || !strings.Contains(string(chain.Rules[0]), "--match-set KUBE-TRAFFIC dst,dst") || chain.Rules[0].Target() != "" {
			t.Errorf("%s has %q", k, chain.Rules)
		}
	}
}

func addrsOf(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
