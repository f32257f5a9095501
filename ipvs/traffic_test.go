// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/ipvs/servers"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// passed are statistics of virtual servers.
type passed map[servers.Key]servers.Stats

func (p passed) Stats() (map[servers.Key]servers.Stats, error) {
	if p == nil {
		return nil, errors.New("no")
	}
	return p, nil
}

// TestTraffic: what virtual servers have carried is that of the ports that they are of,
// and those of others are nobody's.
func TestTraffic(t *testing.T) {
	name := func(s string) model.ServicePortName {
		return model.ServicePortName{Service: model.ObjectKey{Namespace: "shop", Name: s}, Protocol: model.TCP}
	}
	key := func(addr string, port uint16) servers.Key {
		return servers.Key{Addr: netip.MustParseAddr(addr), Protocol: servers.TCP, Port: port}
	}
	conns := func(n uint32) servers.Stats {
		return servers.Stats{Conns: n, PacketsIn: 2 * n, PacketsOut: 3 * n, BytesIn: 4 * uint64(n), BytesOut: 5 * uint64(n)}
	}
	udp := key("10.96.0.1", 80)
	udp.Protocol = servers.UDP
	kernel := passed{
		key("10.96.0.1", 80): conns(1), key("10.96.0.1", 32848): conns(2), key("192.0.2.1", 30080): conns(4), key("192.0.2.2", 30080): conns(8),
		key("10.96.0.2", 80): conns(16), key("10.96.0.3", 80): conns(32), udp: conns(64), key("192.0.2.1", 8080): conns(128),
	}
	tr := NewTraffic(kernel)
	snapshot := model.NewSnapshot()
	set := func(changes map[model.ServicePortName]*model.ServicePort) {
		d := proxier.Desired{Snapshot: snapshot.With(changes)}
		for n := range changes {
			d.Changed = append(d.Changed, n)
		}
		if err := tr.Follow(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		snapshot = d.Snapshot
	}
	check := func(want map[string]uint32) {
		t.Helper()
		got := map[string]traffic.Counts{}
		if err := tr.Read(t.Context(), func(s traffic.Sample) {
			sum := got[s.Port.String()]
			sum.Connections, sum.PacketsIn, sum.PacketsOut = sum.Connections+s.Connections, sum.PacketsIn+s.PacketsIn, sum.PacketsOut+s.PacketsOut
			sum.BytesIn, sum.BytesOut = sum.BytesIn+s.BytesIn, sum.BytesOut+s.BytesOut
			got[s.Port.String()] = sum
			if !s.Wraps {
				t.Errorf("%s does not wrap", s.Port)
			}
		}); err != nil {
			t.Fatal(err)
		}
		all := map[string]traffic.Counts{}
		for service, n := range want {
			n := uint64(n)
			all[service] = traffic.Counts{Connections: n, PacketsIn: 2 * n, PacketsOut: 3 * n, BytesIn: 4 * n, BytesOut: 5 * n}
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	web, db := name("web"), name("db")
	set(map[model.ServicePortName]*model.ServicePort{
		web: {Name: web, ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 80, SparePort: 32848, NodePort: 30080},
		db:  {Name: db, ClusterIP: netip.MustParseAddr("10.96.0.2"), Port: 80},
	})
	check(map[string]uint32{"shop/web": 1 + 2 + 4 + 8, "shop/db": 16})
	set(map[model.ServicePortName]*model.ServicePort{
		web: {Name: web, ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 80},
		db:  {Name: db, ClusterIP: netip.MustParseAddr("10.96.0.2"), Port: 80, NodePort: 30080},
	})
	check(map[string]uint32{"shop/web": 1, "shop/db": 16 + 4 + 8})
	set(map[model.ServicePortName]*model.ServicePort{web: nil})
	check(map[string]uint32{"shop/db": 16 + 4 + 8})
	if err := NewTraffic(passed(nil)).Read(t.Context(), func(traffic.Sample) {}); err == nil {
		t.Error("no error where the kernel does not tell")
	}
}
