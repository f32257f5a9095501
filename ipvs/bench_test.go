// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

// oneChange is one change, an endpoint of one Service that comes and goes, among many
// Services of ten endpoints each.
type oneChange struct {
	*host
	mode        *Mode
	desired     proxier.Desired
	more, fewer *model.Snapshot
	i           int
}

func newOneChange(tb testing.TB, n int) *oneChange {
	c := &oneChange{host: newHost(model.IPv4)}
	c.mode = c.host.mode(config(model.IPv4))
	changes := map[model.ServicePortName]*model.ServicePort{}
	var names []model.ServicePortName
	for i := range n {
		p := many(i)
		changes[p.Name] = p
		names = append(names, p.Name)
	}
	c.more = model.NewSnapshot().With(changes)
	c.desired = proxier.Desired{Snapshot: c.more, Node: here(model.IPv4), Changed: names, Prune: true}
	c.sync(tb)
	fewer := *changes[names[n/2]]
	fewer.Endpoints = fewer.Endpoints[1:]
	c.fewer = c.more.With(map[model.ServicePortName]*model.ServicePort{fewer.Name: &fewer})
	c.desired.Changed = names[n/2 : n/2+1]
	c.servers.Ops()
	c.device.Ops()
	c.sets.Ops()
	return c
}

// do makes the change, to and fro.
func (c *oneChange) do(tb testing.TB) {
	if c.desired.Snapshot = c.more; c.i%2 == 0 {
		c.desired.Snapshot = c.fewer
	}
	c.i++
	c.sync(tb)
}

func (c *oneChange) sync(tb testing.TB) {
	if r, err := c.mode.Sync(context.Background(), c.desired); err != nil || r.Written == 0 {
		tb.Fatalf("Sync() = %+v, %v", r, err)
	}
}

func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newOneChange(b, n)
			b.ReportAllocs()
			for b.Loop() {
				c.do(b)
			}
		})
	}
}

// TestOneChangeCostsTheSame: in any cluster one change asks the kernel for as much,
// allocates as much and takes about as long, at its shortest, which is when nothing
// else runs.
func TestOneChangeCostsTheSame(t *testing.T) {
	few, many := newOneChange(t, 100), newOneChange(t, 10_000)
	before := [2]int{len(few.rules.Restores()), len(many.rules.Restores())}
	shortest, allocated := [2]time.Duration{time.Hour, time.Hour}, [2]uint64{}
	for range 300 {
		for i, c := range []*oneChange{few, many} {
			var was, is runtime.MemStats
			runtime.ReadMemStats(&was)
			start := time.Now()
			c.do(t)
			shortest[i] = min(shortest[i], time.Since(start))
			runtime.ReadMemStats(&is)
			allocated[i] += is.TotalAlloc - was.TotalAlloc
		}
	}
	t.Logf("at 100 and at 10,000 Services it takes %v at its shortest, and allocates %v bytes in all", shortest, allocated)
	if allocated[1] > allocated[0]*5/4 {
		t.Errorf("300 changes allocate %d bytes at 100 Services, and %d at 10,000", allocated[0], allocated[1])
	}
	if shortest[1] > shortest[0]*3/2 {
		t.Errorf("one change takes %s at 100 Services, and %s at 10,000", shortest[0], shortest[1])
	}
	if a, b := few.servers.Ops(), many.servers.Ops(); len(a) != len(b) || len(a) == 0 {
		t.Errorf("300 changes are %d calls at 100 Services, and %d at 10,000", len(a), len(b))
	}
	if got := slices.Concat(few.device.Ops(), many.device.Ops(), few.sets.Ops(), many.sets.Ops()); len(got) > 0 {
		t.Errorf("sets and device: %d calls, the first %q", len(got), got[0])
	}
	if after := [2]int{len(few.rules.Restores()), len(many.rules.Restores())}; after != before {
		t.Errorf("rules were written")
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
