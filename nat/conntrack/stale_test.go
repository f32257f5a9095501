// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fairlead/proxier/model"
)

// ap parses an address and port.
func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// aps parses addresses and ports with blanks between.
func aps(s string) (out []netip.AddrPort) {
	for _, part := range strings.Fields(s) {
		out = append(out, ap(part))
	}
	return out
}

// fronts parses frontends with blanks between; ":30053" is a node port.
func fronts(s string) (out []Frontend) {
	for _, part := range strings.Fields(s) {
		if port, ok := strings.CutPrefix(part, ":"); ok {
			part = "0.0.0.0:" + port
			out = append(out, Frontend{Port: ap(part).Port()})
			continue
		}
		out = append(out, Frontend{ap(part).Addr(), ap(part).Port()})
	}
	return out
}

// flow returns a flow to dst that is answered by replySrc.
func flow(dst, replySrc string) Flow {
	client := ap("192.0.2.100:40000")
	if ap(dst).Addr().Is6() {
		client = ap("[2001:db8::100]:40000")
	}
	return Flow{Src: client, Dst: ap(dst), ReplySrc: ap(replySrc), ReplyDst: client, Ref: Ref{ID: 1}}
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

const (
	vip = "10.96.0.10:53"
	ep1 = "10.244.0.11:8053"
	ep2 = "10.244.0.12:8053"
)

func TestStale(t *testing.T) {
	inZone := func(f Flow, r Ref) Flow { f.Ref = r; return f }
	two := func(tab *Table) {
		tab.Set("dns", fronts(vip+" :30053"), aps(ep1+" "+ep2))
	}
	none := func(tab *Table) { tab.Set("dns", fronts(vip+" :30053"), nil) }
	gone := func(tab *Table) {
		two(tab)
		tab.settled()
		tab.Set("dns", nil, nil)
	}
	const toVIP, toNode, toOther = vip, "192.0.2.11:30053", "198.51.100.1:30053"
	for _, tt := range []struct {
		name  string
		table func(*Table)
		flow  Flow
		want  bool
	}{
		{"to an endpoint", two, flow(toVIP, ep1), false},
		{"to the other endpoint", two, flow(toVIP, ep2), false},
		{"to an endpoint that is gone", two, flow(toVIP, "10.244.0.13:8053"), true},
		{"to another port of an endpoint", two, flow(toVIP, "10.244.0.11:8054"), true},
		{"never translated", two, flow(toVIP, toVIP), true},
		{"never translated, in another zone", two, inZone(flow(toVIP, toVIP), Ref{Zone: 5}), false},
		{"never translated, in another zone of one direction", two, inZone(flow(toVIP, toVIP), Ref{OrigZone: 5}), false},
		{"to an endpoint that is gone, in another zone", two, inZone(flow(toVIP, "10.244.0.13:8053"), Ref{Zone: 5}), true},
		{"another port of the address", two, flow("10.96.0.10:54", "10.244.0.13:8053"), false},
		{"another address", two, flow("10.96.0.11:53", "10.244.0.13:8053"), false},
		{"straight to an endpoint", two, flow(ep1, ep1), false},
		{"node port, to an endpoint", two, flow(toNode, ep1), false},
		{"node port, to an endpoint that is gone", two, flow(toNode, "10.244.0.13:8053"), true},
		{"node port, never translated", two, flow(toNode, toNode), true},
		{"node port on loopback", two, flow("127.0.0.9:30053", "10.244.0.13:8053"), true},
		{"port of a node port, not this node's address", two, flow(toOther, "10.244.0.13:8053"), false},
		{"port of a node port, not this node's address, not translated", two, flow(toOther, toOther), false},
		{"no endpoints, translated", none, flow(toVIP, ep1), true},
		{"no endpoints, never translated", none, flow(toVIP, toVIP), false},
		{"node port without endpoints, translated", none, flow(toNode, ep1), true},
		{"node port without endpoints, never translated", none, flow(toNode, toNode), false},
		{"gone, translated", gone, flow(toVIP, ep1), true},
		{"gone, never translated", gone, flow(toVIP, toVIP), false},
		{"node port gone, translated", gone, flow(toNode, ep1), true},
		{"node port gone, never translated", gone, flow(toNode, toNode), false},
		{"node port gone, not this node's address", gone, flow(toOther, ep1), false},
		{
			name:  "gone and looked at",
			table: func(tab *Table) { gone(tab); tab.settled() },
			flow:  flow(toVIP, ep1),
		},
		{
			name:  "gone and back before it was looked at",
			table: func(tab *Table) { gone(tab); two(tab) },
			flow:  flow(toVIP, ep1),
		},
		{
			name: "gone from one owner, another has it",
			table: func(tab *Table) {
				two(tab)
				tab.Set("other", fronts(vip), aps(ep2))
				tab.Set("dns", nil, nil)
			},
			flow: flow(toVIP, ep1), want: true,
		},
		{
			name: "of either of two owners",
			table: func(tab *Table) {
				tab.Set("other", fronts(vip), aps(ep2))
				tab.Set("dns", fronts(vip), aps(ep1))
			},
			flow: flow(toVIP, ep2),
		},
		{
			name: "two owners, one without endpoints, never translated",
			table: func(tab *Table) {
				tab.Set("other", fronts(vip), aps(ep2))
				tab.Set("dns", fronts(vip), nil)
			},
			flow: flow(toVIP, toVIP), want: true,
		},
		{
			name:  "from rules found at start, not wanted any more",
			table: func(tab *Table) { tab.Adopt(fronts(vip)...) },
			flow:  flow(toVIP, ep1), want: true,
		},
		{
			name:  "node port from rules found at start, not wanted any more",
			table: func(tab *Table) { tab.Adopt(fronts(":30053")...) },
			flow:  flow(toNode, ep1), want: true,
		},
		{
			name:  "from rules found at start, and wanted",
			table: func(tab *Table) { tab.Adopt(fronts(vip)...); two(tab) },
			flow:  flow(toVIP, ep1),
		},
		{
			name:  "wanted, and from rules found at start",
			table: func(tab *Table) { two(tab); tab.Adopt(fronts(vip)...) },
			flow:  flow(toVIP, ep1),
		},
		{
			name: "an address and port comes before a node port",
			table: func(tab *Table) {
				tab.Set("lb", fronts(toNode), aps(ep1))
				tab.Set("dns", fronts(":30053"), aps(ep2))
			},
			flow: flow(toNode, ep1),
		},
		{
			name: "node port on an address that is not the node's any more",
			table: func(tab *Table) {
				two(tab)
				tab.SetNodeAddrs(addrs("192.0.2.12"))
			},
			flow: flow(toNode, ep1), want: true,
		},
		{
			name: "node port, address gone and back",
			table: func(tab *Table) {
				two(tab)
				tab.SetNodeAddrs(nil)
				tab.SetNodeAddrs(addrs("192.0.2.11"))
			},
			flow: flow(toNode, ep1),
		},
		{
			name:  "IPv6",
			table: func(tab *Table) { tab.Set("dns", fronts("[fd00::10]:53"), aps("[fd00::1]:53")) },
			flow:  flow("[fd00::10]:53", "[fd00::2]:53"), want: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := NewTable()
			tab.SetNodeAddrs(addrs("192.0.2.11", "127.0.0.1"))
			tt.table(tab)
			got := Stale(slices.Values([]Flow{tt.flow}), tab)
			if (len(got) == 1) != tt.want {
				t.Errorf("got %v, want stale: %t", got, tt.want)
			}
		})
	}
}

// TestMoved: of flows that something has translated that has gone, none goes on, even to
// an endpoint, and no other flow is touched.
func TestMoved(t *testing.T) {
	table := NewTable()
	table.Set("web", fronts(vip), aps(ep1))
	table.settled()
	table.Moved(fronts(vip)...)
	if !table.Due() {
		t.Error("no flow is due to be looked at")
	}
	flows := []Flow{flow(vip, ep1), flow("10.96.0.11:53", ep1), flow("10.96.0.11:53", "10.96.0.11:53")}
	if got := Stale(slices.Values(flows), table); len(got) != 1 || got[0] != flows[0] {
		t.Errorf("stale are %v, want the first of %v", got, flows)
	}
	table.settled()
	if got := Stale(slices.Values(flows), table); len(got) > 0 {
		t.Errorf("stale again: %v", got)
	}
}

func TestSetService(t *testing.T) {
	name := model.ServicePortName{Service: model.ObjectKey{Namespace: "kube-system", Name: "dns"}, Port: "dns", Protocol: model.UDP}
	port := &model.ServicePort{
		Name: name, ClusterIP: ap(vip).Addr(), Port: 53, NodePort: 30053,
		ExternalIPs: addrs("198.51.100.7"), LoadBalancerIPs: addrs("203.0.113.7"),
		Serving: aps(ep2 + " " + ep1),
	}
	tab := NewTable()
	tab.SetNodeAddrs(addrs("192.0.2.11"))
	tab.SetService(name, port)
	tcp := name
	tcp.Protocol = model.TCP
	tab.SetService(tcp, nil)
	for _, dst := range []string{vip, "198.51.100.7:53", "203.0.113.7:53", "192.0.2.11:30053"} {
		if f := flow(dst, ep1); tab.stale(&f) {
			t.Errorf("%s: stale with an endpoint that serves", dst)
		}
		if f := flow(dst, "10.244.0.99:8053"); !tab.stale(&f) {
			t.Errorf("%s: not stale with an endpoint that is gone", dst)
		}
	}
	tab.SetService(name, nil)
	if len(tab.frontends) > 0 || len(tab.entries) > 0 {
		t.Errorf("got %v, %v, want nothing left", tab.frontends, tab.entries)
	}
	tab.SetService(tcp, port)
	if len(tab.frontends) > 0 {
		t.Errorf("got %v of a port that is TCP, want nothing", tab.frontends)
	}
}

func TestDue(t *testing.T) {
	base := func(tab *Table) {
		tab.Set("dns", fronts(vip+" :30053"), aps(ep1))
		tab.SetNodeAddrs(addrs("192.0.2.11"))
	}
	for _, tt := range []struct {
		name   string
		change func(*Table)
		want   bool
	}{
		{"nothing", func(*Table) {}, false},
		{"the same again", base, false},
		{"another endpoint", func(tab *Table) { tab.Set("dns", fronts(vip+" :30053"), aps(ep2+" "+ep1)) }, false},
		{"an endpoint fewer", func(tab *Table) { tab.Set("dns", fronts(vip+" :30053"), nil) }, true},
		{"another endpoint instead", func(tab *Table) { tab.Set("dns", fronts(vip+" :30053"), aps(ep2)) }, true},
		{"a frontend fewer", func(tab *Table) { tab.Set("dns", fronts(vip), aps(ep1)) }, true},
		{"a frontend more", func(tab *Table) { tab.Set("dns", fronts(vip+" :30053 203.0.113.7:53"), aps(ep1)) }, true},
		{"gone", func(tab *Table) { tab.Set("dns", nil, nil) }, true},
		{"new", func(tab *Table) { tab.Set("new", fronts("10.96.0.11:53"), aps(ep1)) }, true},
		{"new without endpoints", func(tab *Table) { tab.Set("new", fronts("10.96.0.11:53"), nil) }, true},
		{
			name: "first endpoint",
			change: func(tab *Table) {
				tab.Set("new", fronts("10.96.0.11:53"), nil)
				tab.settled()
				tab.Set("new", fronts("10.96.0.11:53"), aps(ep1))
			},
			want: true,
		},
		{"node has another address", func(tab *Table) { tab.SetNodeAddrs(addrs("192.0.2.11", "192.0.2.12")) }, true},
		{
			name: "node has another address, no node ports",
			change: func(tab *Table) {
				tab.Set("dns", fronts(vip), aps(ep1))
				tab.settled()
				tab.SetNodeAddrs(nil)
			},
		},
		{"looked at again", (*Table).Recheck, true},
		{
			name: "looked at a third time",
			change: func(tab *Table) {
				tab.Recheck()
				tab.settled()
				tab.Recheck()
			},
		},
		{
			name: "looked at again after other syncs",
			change: func(tab *Table) {
				tab.settled()
				tab.settled()
				tab.Recheck()
			},
			want: true,
		},
		{
			name: "looked at again after another change",
			change: func(tab *Table) {
				tab.Recheck()
				tab.settled()
				tab.Set("dns", fronts(vip), aps(ep1))
				tab.Recheck()
				tab.settled()
				tab.Recheck()
			},
			want: true,
		},
		{"adopted", func(tab *Table) { tab.Adopt(fronts("10.96.0.11:53")...) }, true},
		{"adopted what there is", func(tab *Table) { tab.Adopt(fronts(vip)...) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := NewTable()
			base(tab)
			tab.settled()
			tt.change(tab)
			if tab.Due() != tt.want {
				t.Errorf("got %t, want %t", tab.Due(), tt.want)
			}
		})
	}
	if NewTable().Due() {
		t.Error("an empty table is due")
	}
}

// TestDueMissesNothing: where a random change to a table makes any flow stale
// that was not, the table is due.
func TestDueMissesNothing(t *testing.T) {
	frontends := fronts("10.96.0.10:53 10.96.0.11:53 :30053 192.0.2.11:30053")
	endpoints := aps(ep1 + " " + ep2 + " 10.244.0.13:8053")
	var flows []Flow
	for _, dst := range []string{"10.96.0.10:53", "10.96.0.11:53", "192.0.2.11:30053", "192.0.2.12:30053", "198.51.100.1:30053"} {
		flows = append(flows, flow(dst, dst))
		for _, ep := range endpoints {
			flows = append(flows, flow(dst, ep.String()))
		}
	}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		tab := NewTable()
		for range 100 {
			tab.settled()
			live := slices.DeleteFunc(slices.Clone(flows), func(f Flow) bool { return tab.stale(&f) })
			if r.IntN(5) == 0 {
				tab.SetNodeAddrs(subset(r, addrs("192.0.2.11", "192.0.2.12")))
			} else {
				tab.Set(fmt.Sprint(r.IntN(3)), subset(r, frontends), subset(r, endpoints))
			}
			if stale := Stale(slices.Values(live), tab); len(stale) > 0 && !tab.Due() {
				t.Fatalf("seed %d: not due, and yet stale: %v", seed, stale)
			}
		}
		if r.IntN(2) == 0 {
			continue
		}
		for i := range 3 { // nothing is left behind
			tab.Set(fmt.Sprint(i), nil, nil)
		}
		if tab.settled(); len(tab.entries)+len(tab.frontends)+len(tab.gone) > 0 {
			t.Fatalf("seed %d: got %+v after all are gone, want it empty", seed, tab)
		}
	}
}

// subset returns a random part of list.
func subset[T any](r *rand.Rand, list []T) (out []T) {
	for _, v := range list {
		if r.IntN(2) == 0 {
			out = append(out, v)
		}
	}
	return out
}

func BenchmarkStale(b *testing.B) {
	tab := NewTable()
	for i := range 1000 {
		var serving []netip.AddrPort
		for j := range 10 {
			serving = append(serving, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), byte(j)}), 53))
		}
		tab.Set(fmt.Sprint(i), []Frontend{{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 53}, {Port: uint16(30000 + i)}}, serving)
	}
	tab.SetNodeAddrs(addrs("192.0.2.11", "127.0.0.1", "10.244.0.1"))
	flows := make([]Flow, 100_000)
	for i := range flows {
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i % 1000 >> 8), byte(i % 1000)}), 53)
		flows[i] = Flow{
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}), uint16(i)), Dst: dst,
			ReplySrc: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i % 1000), byte(i % 11)}), 53),
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		Stale(slices.Values(flows), tab)
	}
}
