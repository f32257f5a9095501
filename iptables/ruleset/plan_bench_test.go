// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"fmt"
	"io"
	"testing"
)

// discard takes every restore, and has no rules to read.
type discard struct{}

func (discard) Run(_ context.Context, c Command) error {
	if c.Stdin == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, c.Stdin)
	return err
}

// BenchmarkApply compares and writes two chains that change, of many.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("chains=%d", n), func(b *testing.B) {
			key := func(i int) ChainKey { return ChainKey{NAT, fmt.Sprintf("KUBE-SEP-%06d", i)} }
			chain := func(i, version int) *Chain {
				return &Chain{Unit: fmt.Sprint(i / 10), Rules: []Rule{Rule(fmt.Sprintf("-s 10.0.0.%d/32 -j KUBE-MARK-MASQ", version)), "-p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80"}}
			}
			e := NewEngine(Config{
				Exec: discard{}, Variant: NFT, Commands: Commands{Restore: "restore", Save: "save"},
				Contributions: []Contribution{{Owns: []ChainKey{{NAT, "KUBE-*"}}}},
			})
			all := map[ChainKey]*Chain{}
			for i := range n {
				all[key(i)] = chain(i, 0)
			}
			e.Stage(all)
			if _, err := e.Apply(context.Background(), Options{Prune: true}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				e.Stage(map[ChainKey]*Chain{key(1): chain(1, i%2+1), key(2): chain(2, i%2+1)})
				if res, err := e.Apply(context.Background(), Options{Prune: true}); err != nil || res.Written[NAT] != 4 {
					b.Fatalf("Apply() = %+v, %v, want four rules written", res, err)
				}
			}
		})
	}
}
