// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
)

// discard is a Mode that does nothing.
type discard struct{}

func (discard) Sync(context.Context, Desired) (Report, error) { return Report{}, nil }

// BenchmarkEndpointChange takes one change of an EndpointSlice through tracker,
// resolver and loop. Its cost must not depend on how many Services there are.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			metrics := NewMetrics(prometheus.NewRegistry(), model.Families())
			health := newFakeHealth()
			tr := NewTracker(TrackerConfig{Families: []model.Family{model.IPv4}, Health: health, Metrics: metrics})
			loop := NewLoop(LoopConfig{Family: model.IPv4, Mode: discard{}, Tracker: tr, Health: health, Metrics: metrics, NodeName: here})
			tr.Update(with(cluster(n), listed()))
			ctx := context.Background()
			loop.sync(ctx, request{})
			name := objectKey(fmt.Sprint("svc-", n/2))
			var versions []model.Changes
			for i := range 2 {
				versions = append(versions, model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{
					name: endpoints(name, n/2, 9+i)}})
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				tr.Update(versions[i%2])
				loop.resolve(tr.Take(model.IPv4))
				clear(loop.changed)
				health.queued[model.IPv4] = nil
			}
		})
	}
}

// BenchmarkFirstResolve resolves a whole cluster.
func BenchmarkFirstResolve(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			metrics := NewMetrics(prometheus.NewRegistry(), model.Families())
			all := with(cluster(n), listed())
			b.ReportAllocs()
			for b.Loop() {
				health := newFakeHealth()
				tr := NewTracker(TrackerConfig{Families: []model.Family{model.IPv4}, Health: health, Metrics: metrics})
				loop := NewLoop(LoopConfig{Family: model.IPv4, Mode: discard{}, Tracker: tr, Health: health, Metrics: metrics, NodeName: here})
				tr.Update(all)
				loop.sync(context.Background(), request{})
			}
		})
	}
}

// cluster is n Services with ten endpoints each.
func cluster(n int) model.Changes {
	c := model.Changes{Services: map[model.ObjectKey]*model.Service{}, EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{}}
	for i := range n {
		key := objectKey(fmt.Sprint("svc-", i))
		c.Services[key] = &model.Service{
			Key: key, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []model.Port{{Name: "http", Protocol: model.TCP, Number: 80}},
		}
		c.EndpointSlices[key] = endpoints(key, i, 10)
	}
	return c
}

// endpoints returns the slice of the i-th Service, with n endpoints.
func endpoints(key model.ObjectKey, i, n int) *model.EndpointSlice {
	s := &model.EndpointSlice{Key: key, Service: key, Family: model.IPv4, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Number: 8080}}}
	for e := range n {
		s.Endpoints = append(s.Endpoints, model.SliceEndpoint{
			Addr: netip.AddrFrom4([4]byte{10, byte(100 + e), byte(i >> 8), byte(i)}), Ready: true, Serving: true,
		})
	}
	return s
}
