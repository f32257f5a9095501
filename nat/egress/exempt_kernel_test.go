// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat/ipset"
)

// counting is a Set that counts what is asked of the kernel's, and times it.
type counting struct {
	*ipset.Set
	added, removed int
	took           time.Duration
}

func (c *counting) Add(e ...ipset.Element) error {
	defer c.timed(time.Now())
	c.added += len(e)
	return c.Set.Add(e...)
}

func (c *counting) Remove(e ...ipset.Element) error {
	defer c.timed(time.Now())
	c.removed += len(e)
	return c.Set.Remove(e...)
}

func (c *counting) timed(start time.Time) { c.took += time.Since(start) }

// TestKernelOneExemptAmongMany: of 10,000 destinations that are exempt, one that
// changes is one element of the kernel's set more and one less, and takes hardly longer
// than that.
func TestKernelOneExemptAmongMany(t *testing.T) {
	const exempt, rounds = 10_000, 21
	// Of the 15 ms that a change may take beside the kernel's part it takes 6; the race
	// detector and a busy machine make that five times as much.
	const more = 100 * time.Millisecond
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.NFT})
	err := h.Enter(func() error {
		set := &counting{Set: ipset.NewSet(SetName(false), ipset.HashNet, false)}
		x := NewExempt(set)
		list := prefixes(many(exempt)...)
		var ours, besides, bare []time.Duration
		for i := range rounds + 1 {
			list[exempt/2] = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)
			r := Rules{Pods: prefixes("10.244.0.0/16"), Config: Config{NonMasquerade: list}}
			*set = counting{Set: set.Set}
			start := time.Now()
			if r, err := x.Use(r); err != nil || r.Set == "" {
				return fmt.Errorf("rules go by the set %q: %w", r.Set, err)
			}
			took := time.Since(start)
			if i == 0 {
				continue
			}
			if set.added != 1 || set.removed != 1 {
				t.Errorf("%d elements were added and %d removed, want one each", set.added, set.removed)
			}
			ours, besides, bare = append(ours, took), append(besides, took-set.took), append(bare, set.took)
		}
		if in, _, err := set.List(); err != nil || len(in) != exempt+3 {
			t.Errorf("the kernel has %d elements (%v), want %d: these, pods, link-local and multicast", len(in), err, exempt+3)
		}
		p50 := func(d []time.Duration) time.Duration {
			slices.Sort(d)
			return d[len(d)/2].Round(10 * time.Microsecond)
		}
		t.Logf("one of %d destinations: %v, %v of it besides the kernel's %v (p50)", exempt, p50(ours), p50(besides), p50(bare))
		if besides[0] > more { // the least, as others use the machine, too
			t.Errorf("a change takes %v besides what the kernel takes, want at most %v", besides[0], more)
		}
		return set.Destroy()
	})
	if err != nil {
		t.Fatal(err)
	}
}
