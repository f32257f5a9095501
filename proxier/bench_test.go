// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
)

// discard is a Mode that does nothing.
type discard struct{}

func (discard) Sync(context.Context, Desired) (Report, error) { return Report{}, nil }

// change is one change of an EndpointSlice, back and forth, in a cluster of n
// Services with ten endpoints each.
type change struct {
	tracker  *Tracker
	loop     *Loop
	health   *fakeHealth
	versions [2]model.Changes
	i        int
}

func newChange(n int) *change {
	metrics := NewMetrics(prometheus.NewRegistry(), model.Families())
	c := &change{health: newFakeHealth()}
	c.tracker = NewTracker(TrackerConfig{Families: []model.Family{model.IPv4}, Health: c.health, Metrics: metrics})
	c.loop = NewLoop(LoopConfig{Family: model.IPv4, Mode: discard{}, Tracker: c.tracker, Health: c.health, Metrics: metrics, NodeName: here})
	c.tracker.Update(with(cluster(n), listed()))
	c.loop.sync(context.Background(), request{})
	name := objectKey(fmt.Sprint("svc-", n/2))
	for i := range c.versions {
		c.versions[i] = model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{name: endpoints(name, n/2, 9+i)}}
	}
	return c
}

// do takes the change through tracker, resolver and loop.
func (c *change) do() {
	c.i++
	c.tracker.Update(c.versions[c.i%2])
	c.loop.sync(context.Background(), request{})
	c.health.queued[model.IPv4] = nil
	c.health.synced[model.IPv4] = nil
}

// BenchmarkEndpointChange takes one change through tracker, resolver and loop.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			c := newChange(n)
			b.ReportAllocs()
			for b.Loop() {
				c.do()
			}
		})
	}
}

// TestChangeAllocatesTheSameInAnyCluster: what one change costs does not depend
// on how many Services there are, but for the parts of a snapshot, which become
// larger.
func TestChangeAllocatesTheSameInAnyCluster(t *testing.T) {
	small, large := allocated(newChange(100)), allocated(newChange(10_000))
	t.Logf("%d bytes at 100 Services, %d at 10,000", small, large)
	if large > 2*small {
		t.Errorf("one change allocates %d bytes at 10,000 Services, and %d at 100", large, small)
	}
}

// allocated returns how many bytes a change allocates.
func allocated(c *change) uint64 {
	const times = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		c.do()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / times
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
