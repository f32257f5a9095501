// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairlead/nftables/fake"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// newCounting returns an agent that counts up to limit ports of namespace shop.
func newCounting(t *testing.T, limit int, k *fake.Kernel) *agent {
	cfg := config(model.IPv4)
	cfg.Counting = true
	a := newAgent(t, cfg, k)
	a.traffic = NewTraffic(a.Mode, rosterOf("shop", limit), func() (Counters, error) { return k, nil })
	return a
}

// countedSync makes ports all that there are, and has what counts follow.
func (a *agent) countedSync(s *model.Snapshot, changes map[model.ServicePortName]*model.ServicePort) (*model.Snapshot, proxier.Report) {
	a.t.Helper()
	d := proxier.Desired{Snapshot: s.With(changes), Node: a.where, Prune: true}
	for name := range changes {
		d.Changed = append(d.Changed, name)
	}
	r, err := a.Sync(a.t.Context(), d)
	if err != nil || len(r.Refused) > 0 {
		a.t.Fatalf("Sync() = %+v, %v", r, err)
	}
	if err := a.traffic.Follow(a.t.Context(), d); err != nil {
		a.t.Fatal(err)
	}
	return d.Snapshot, r
}

// sums reads what ports have carried.
func sums(t *testing.T, tr *Traffic) map[string]traffic.Counts {
	t.Helper()
	got, ids := map[string]traffic.Counts{}, map[uint64]bool{}
	err := tr.Read(t.Context(), func(s traffic.Sample) {
		name := s.Port.Service.Name + "/" + s.Port.Port
		sum := got[name]
		sum.Connections += s.Connections
		sum.PacketsIn, sum.PacketsOut = sum.PacketsIn+s.PacketsIn, sum.PacketsOut+s.PacketsOut
		sum.BytesIn, sum.BytesOut = sum.BytesIn+s.BytesIn, sum.BytesOut+s.BytesOut
		got[name] = sum
		if ids[s.ID] || s.Wraps {
			t.Errorf("%v is told twice, or wraps", s)
		}
		ids[s.ID] = true
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestTraffic: what a port carries is the sum of its places, by its own elements; ports
// without any are nobody's, as others are one by one.
func TestTraffic(t *testing.T) {
	disturbed := 0
	k := &fake.Kernel{
		Count: func(set string, e table.Element) (uint64, uint64) {
			switch set {
			case countConnections, countConnectionsNP:
				return 1, 60
			case countOthersNew:
				return 10, 600
			}
			if isReply(e.Key) {
				return 2, 200
			}
			return 3, 300
		},
		Fault: func(call string) (error, bool) {
			if call == "list" && disturbed > 0 {
				disturbed--
				return unix.EINTR, false
			}
			return nil, false
		},
	}
	a := newCounting(t, 2, k)
	web := with(port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.1.5:8080"), func(p *model.ServicePort) {
		p.NodePort = 30080
		p.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.5")}
	})
	db := port(portName("shop", "db", "sql", model.TCP), "10.96.0.11", 80)
	zoo := port(portName("shop", "zoo", "", model.TCP), "10.96.0.12", 80)
	bank := port(portName("bank", "web", "", model.TCP), "10.96.0.13", 80)
	s, _ := a.countedSync(model.NewSnapshot(), map[model.ServicePortName]*model.ServicePort{web.Name: web, db.Name: db, zoo.Name: zoo, bank.Name: bank})

	one := traffic.Counts{Connections: 1, PacketsIn: 3, BytesIn: 300, PacketsOut: 2, BytesOut: 200}
	three := traffic.Counts{Connections: 3, PacketsIn: 9, BytesIn: 900, PacketsOut: 6, BytesOut: 600}
	others := one
	others.Connections = 30 // of three protocols
	check := func(when string, want map[string]traffic.Counts) {
		t.Helper()
		want["/"] = others
		if diff := cmp.Diff(want, sums(t, a.traffic)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	disturbed = 3
	check("at first", map[string]traffic.Counts{"web/http": three, "db/sql": one})

	n := k.Applied
	s, _ = a.countedSync(s, map[model.ServicePortName]*model.ServicePort{db.Name: nil})
	if k.Applied != n+1 {
		t.Errorf("a port that goes and one that comes took %d transactions", k.Applied-n)
	}
	check("one goes, the next gets its series", map[string]traffic.Counts{"web/http": three, "zoo/": one})
	moved := *web
	moved.ExternalIPs, moved.NodePort = nil, 0
	s, _ = a.countedSync(s, map[model.ServicePortName]*model.ServicePort{web.Name: &moved})
	check("places go", map[string]traffic.Counts{"web/http": one, "zoo/": one})
	if _, err := a.Sync(t.Context(), proxier.Desired{Snapshot: s, Node: a.where, Prune: true, Settle: true}); err != nil {
		t.Fatal(err)
	}
	if text := k.Save(); strings.Contains(text, countPacketsNP) || strings.Contains(text, countConnectionsNP) || !strings.Contains(text, countPackets) {
		t.Errorf("without a node port there is:\n%s", text)
	}
	check("the sets of node ports go", map[string]traffic.Counts{"web/http": one, "zoo/": one})

	// A place that another port has in the kernel by now is not told before it is known.
	d := proxier.Desired{Snapshot: s.With(map[model.ServicePortName]*model.ServicePort{web.Name: nil, db.Name: with(db, func(p *model.ServicePort) { p.ClusterIP = web.ClusterIP })}),
		Node: a.where, Changed: []model.ServicePortName{web.Name, db.Name}, Prune: true}
	if _, err := a.Sync(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	check("not yet known", map[string]traffic.Counts{"zoo/": one})
	if err := a.traffic.Follow(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	check("known", map[string]traffic.Counts{"db/sql": one, "zoo/": one})
	k.Fault = func(string) (error, bool) { return unix.EPERM, false }
	if err := a.traffic.Read(t.Context(), func(traffic.Sample) {}); !errors.Is(err, unix.EPERM) {
		t.Errorf("Read() = %v where the kernel does not tell", err)
	}
}

// TestCountingStays: what counts is not written anew, whatever else changes, nor by a new
// agent; nothing of it stays once nobody asks.
func TestCountingStays(t *testing.T) {
	k := &fake.Kernel{}
	a := newCounting(t, 9, k)
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.1.5:8080")
	s, _ := a.countedSync(model.NewSnapshot(), map[model.ServicePortName]*model.ServicePort{web.Name: web})
	touches := func() (out []string) {
		for _, step := range k.Last {
			if text := fmt.Sprintf("%T %v", step, step); strings.Contains(text, countPackets) || strings.Contains(text, countConnections) {
				out = append(out, text)
			}
		}
		return out
	}
	more := port(web.Name, "10.96.0.10", 80, "10.244.1.5:8080", "10.244.1.6:8080", "10.244.1.7:8080")
	other := port(portName("bank", "web", "", model.TCP), "10.96.0.11", 80, "10.244.1.5:8080")
	for _, changes := range []map[model.ServicePortName]*model.ServicePort{{web.Name: more}, {other.Name: other}, {web.Name: port(web.Name, "10.96.0.10", 80)}} {
		if s, _ = a.countedSync(s, changes); len(touches()) > 0 {
			t.Errorf("written: %q", touches())
		}
	}
	n := k.Applied
	a = newCounting(t, 9, k)
	all := map[model.ServicePortName]*model.ServicePort{}
	for p := range s.All() {
		all[p.Name] = p
	}
	if _, r := a.countedSync(model.NewSnapshot(), all); r.Written > 0 || k.Applied != n {
		t.Errorf("a restart wrote %d", r.Written)
	}
	if got := sums(t, a.traffic); len(got) != 2 {
		t.Errorf("after it %v are known", got)
	}

	s, names := snapshot(slices.Collect(s.All())...)
	settle := proxier.Desired{Snapshot: s, Node: a.where, Prune: true, Settle: true}
	if r, err := a.Sync(t.Context(), settle); err != nil || r.Unsettled > 0 {
		t.Errorf("%d things are left to do: %v", r.Unsettled, err)
	}
	without := newAgent(t, config(model.IPv4), k)
	if r := without.syncChanged(s, names); r.Unsettled == 0 {
		t.Error("nothing is left to be removed")
	}
	if r, err := without.Sync(t.Context(), settle); err != nil || r.Unsettled > 0 {
		t.Fatal(r, err)
	}
	plain := &fake.Kernel{}
	newAgent(t, config(model.IPv4), plain).syncChanged(s, names)
	if diff := cmp.Diff(plain.Save(), k.Save()); diff != "" {
		t.Errorf("without the flag (-never with it +after):\n%s", diff)
	}
}
