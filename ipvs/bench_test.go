// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

// BenchmarkOneChange: an endpoint of one Service comes and goes, among many Services
// of ten endpoints each.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := newHost(model.IPv4)
			cfg := config(model.IPv4)
			a := h.mode(cfg)
			changes := map[model.ServicePortName]*model.ServicePort{}
			var names []model.ServicePortName
			for i := range n {
				p := many(i)
				changes[p.Name] = p
				names = append(names, p.Name)
			}
			snap := model.NewSnapshot().With(changes)
			d := proxier.Desired{Snapshot: snap, Node: here(model.IPv4), Changed: names, Prune: true}
			if _, err := a.Sync(context.Background(), d); err != nil {
				b.Fatal(err)
			}
			fewer := *changes[names[n/2]]
			fewer.Endpoints = fewer.Endpoints[1:]
			less := snap.With(map[model.ServicePortName]*model.ServicePort{fewer.Name: &fewer})
			h.servers.Ops()
			d.Changed = names[n/2 : n/2+1]
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if d.Snapshot = snap; i%2 == 0 {
					d.Snapshot = less
				}
				if r, err := a.Sync(context.Background(), d); err != nil || r.Written == 0 {
					b.Fatalf("Sync() = %+v, %v", r, err)
				}
			}
		})
	}
}

// many returns a port of ten endpoints.
func many(i int) *model.ServicePort {
	p := &model.ServicePort{
		Name: portName("load", fmt.Sprint("svc-", i), "http", model.TCP), Port: 80, Usable: true, Known: 10,
		ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}),
	}
	for e := range 10 {
		ep := netip.AddrFrom4([4]byte{10, 244, byte(i >> 5), byte(i<<3 + e)})
		p.Endpoints = append(p.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(ep, uint16(8080+e))})
	}
	return p
}
