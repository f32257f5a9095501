// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"fairlead/nftables/fake"
	"fairlead/proxier/model"
)

func backends(n int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 8080))
	}
	return out
}

// TestMaglevFair: each endpoint has its share of the slots, within two percent while the
// table is a hundred times as large.
func TestMaglevFair(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 50, 200, 600} {
		count := map[netip.AddrPort]int{}
		table := maglev(backends(n))
		for _, ep := range table {
			count[ep]++
		}
		least, most := len(table), 0
		for _, ep := range backends(n) {
			least, most = min(least, count[ep]), max(most, count[ep])
		}
		if most-least > 1 || float64(most) > 1.02*float64(len(table))/float64(n) {
			t.Errorf("%d endpoints, %d slots: between %d and %d for each", n, len(table), least, most)
		}
	}
}

// TestMaglevDisruption: an endpoint that goes moves those that it had, and few others,
// while the table stays as large as it is. The paper accepts a few percent beside them.
func TestMaglevDisruption(t *testing.T) {
	for _, n := range []int{6, 10, 40, 150} {
		all := backends(n)
		before := maglev(all)
		worst := 0.0
		for gone := range n {
			after := maglev(slices.Delete(slices.Clone(all), gone, gone+1))
			if len(after) != len(before) {
				continue // another size moves all
			}
			moved := 0
			for i, ep := range before {
				if ep != all[gone] && after[i] != ep {
					moved++
				}
			}
			worst = max(worst, float64(moved)/float64(len(before)))
		}
		t.Logf("%d endpoints, %d slots: %.2f %% of the others move at worst", n, len(before), 100*worst)
		if worst > 0.035 {
			t.Errorf("%d endpoints: %.2f %% of the others move, want 2 %% at most", n, 100*worst)
		}
	}
}

// TestMaglevPort: a Service by Maglev has a table, all nodes the same, whatever was before,
// and a change of endpoints writes what differs.
func TestMaglevPort(t *testing.T) {
	eps := []string{"10.244.0.5:8080", "10.244.1.5:8080", "10.244.2.5:8080"}
	web := func(eps ...string) *model.ServicePort {
		p := port(portName("shop", "web", "", model.TCP), "10.96.0.10", 80, eps...)
		p.Balancing = model.Maglev
		return p
	}
	one, other := &fake.Kernel{}, &fake.Kernel{}
	a, b := newAgent(t, config(model.IPv4), one), newAgent(t, config(model.IPv4), other)
	a.sync(web(eps...))
	b.sync(web(eps[1:]...))
	b.sync(web(eps...))
	want := one.Table().Elements["endpoints"]
	if len(want) != 509 || !slices.Equal(want, other.Table().Elements["endpoints"]) {
		t.Errorf("%d slots, want 509, the same on all nodes", len(want))
	}
	again := newAgent(t, config(model.IPv4), one)
	if r := again.sync(web(eps...)); r.Written > 0 {
		t.Errorf("a restart wrote %d", r.Written)
	}
	if names := fmt.Sprint(one.Table().Elements["services-maglev-509"]); len(one.Table().Elements["services-maglev-509"]) != 1 {
		t.Errorf("services-maglev-509 has %s", names)
	}
}
