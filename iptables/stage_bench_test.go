// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// BenchmarkRender renders one port of many again, one of whose ten endpoints has
// been replaced.
func BenchmarkRender(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			ports := make([]*model.ServicePort, n)
			for i := range ports {
				ports[i] = benchPort(i, 0)
			}
			snap, names := snapshot(ports...)
			engine := ruleset.NewEngine(ruleset.Config{Exec: &fake.Kernel{}, Variant: ruleset.NFT, Contributions: []ruleset.Contribution{Contribution(v4())}})
			m := New(v4(), engine, nil, nil, nil)
			d := proxier.Desired{Snapshot: snap, Changed: names, Node: everywhere, Prune: true}
			m.stage(b.Context(), d)
			d.Changed = names[n/2 : n/2+1]
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				p := benchPort(n/2, i%2)
				d.Snapshot = d.Snapshot.With(map[model.ServicePortName]*model.ServicePort{p.Name: p})
				if got := len(m.stage(b.Context(), d)); got != 12 { // a chain, ten endpoints, and one that is gone
					b.Fatalf("%d chains are staged, want 12", got)
				}
			}
		})
	}
}

// benchPort returns a port with ten endpoints; version decides which the first
// is.
func benchPort(i, version int) *model.ServicePort {
	var eps []string
	for j := range 10 {
		third := j
		if j == 0 {
			third += 100 * version
		}
		eps = append(eps, fmt.Sprintf("10.%d.%d.%d:8080", 128+i>>8, i&255, third))
	}
	name := portName("bench", fmt.Sprintf("svc-%05d", i), "", model.TCP)
	return port(name, fmt.Sprintf("10.96.%d.%d", i>>8, i&255), 80, eps...)
}
