// SPDX-License-Identifier: Apache-2.0

package ipset_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat/ipset"
	"fairlead/nat/ipset/fake"
)

// sets is what both the kernel's and the fake's can do.
type sets interface {
	List() ([]string, error)
	Create(name string) error
	Flush(name string) error
	Destroy(name string) error
}

// kernelSets are the sets in a host's namespace.
type kernelSets struct {
	h    *kerneltest.Host
	sets *ipset.Sets
}

func (k kernelSets) List() (names []string, err error) {
	err = k.h.Enter(func() error { names, err = k.sets.List(); return err })
	slices.Sort(names)
	return names, err
}

func (k kernelSets) Create(name string) error {
	return k.h.Enter(func() error { return k.sets.Create(name) })
}

func (k kernelSets) Flush(name string) error {
	return k.h.Enter(func() error { return k.sets.Flush(name) })
}

func (k kernelSets) Destroy(name string) error {
	return k.h.Enter(func() error { return k.sets.Destroy(name) })
}

// world is where sets are.
type world struct {
	sets
	add func(set string)
	has func(set string) bool
	// rules replaces the rules.
	rules func(text string)
}

// contract is what is expected of the kernel, and of the fake.
func contract(t *testing.T, w world) {
	list := func(want ...string) {
		t.Helper()
		if got, err := w.List(); err != nil || !slices.Equal(got, want) {
			t.Errorf("List() = %q, %v, want %q", got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	list()
	must(w.Create("B"))
	must(w.Create("A"))
	list("A", "B")
	w.add("A")
	must(w.Create("A"))
	if !w.has("A") {
		t.Error("making a set that is there emptied it")
	}
	must(w.Flush("A"))
	if w.has("A") {
		t.Error("Flush() left an address")
	}
	if err := w.Flush("C"); err == nil {
		t.Error("Flush() of a set that is not there succeeded")
	}
	w.rules("-A X -m set --match-set A src -j SET --add-set B src --exist --timeout 60\n")
	for _, name := range []string{"A", "B"} {
		if err := w.Destroy(name); err == nil {
			t.Errorf("Destroy(%s) while a rule names it succeeded", name)
		}
	}
	list("A", "B")
	w.rules("")
	for deadline := time.Now().Add(10 * time.Second); ; { // for rules to be freed
		err := w.Destroy("A")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	must(w.Destroy("B"))
	must(w.Destroy("A")) // which has gone
	list()
}

func TestFake(t *testing.T) {
	var rules string
	s := &fake.Sets{Rules: func() string { return rules }}
	contract(t, world{
		sets: s,
		add:  func(set string) { s.Add(set, "x") }, has: func(set string) bool { return s.Has(set, "x") },
		rules: func(text string) { rules = text },
	})
}

func TestKernelSets(t *testing.T) {
	for _, setup := range kerneltest.Setups() {
		t.Run(setup.String(), func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t, setup)
			addr := "192.0.2.1"
			if setup.IPv6 {
				addr = "2001:db8::1"
			}
			contract(t, world{
				sets: kernelSets{h, ipset.New(setup.IPv6)},
				add:  func(set string) { h.Do("ipset", "add", set, addr) },
				has:  func(set string) bool { return get(t, h, set).NumEntries > 0 },
				rules: func(text string) {
					if err := h.Restore(setup, "*nat\n:X - [0:0]\n"+text+"COMMIT\n"); err != nil {
						t.Fatal(err)
					}
				},
			})
		})
	}
}

func get(t *testing.T, h *kerneltest.Host, set string) *netlink.IPSetResult {
	t.Helper()
	var out *netlink.IPSetResult
	err := h.Enter(func() (err error) { out, err = netlink.IpsetList(set); return err })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKernelKind: sets are of the kind that is said, and what is of another kind
// is neither listed nor replaced.
func TestKernelKind(t *testing.T) {
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.NFT})
	v4, v6 := kernelSets{h, ipset.New(false)}, kernelSets{h, ipset.New(true)}
	for i, args := range [][]string{
		{"hash:ip", "family", "inet"}, {"hash:net", "family", "inet", "timeout", "60"}, {"bitmap:port", "range", "1-9", "timeout", "60"},
	} {
		name := fmt.Sprintf("OTHER%d", i)
		h.Do("ipset", append([]string{"create", name}, args...)...)
		if err := v4.Create(name); err == nil {
			t.Errorf("Create() where there is a set of %q succeeded", args)
		}
	}
	h.Do("ipset", "create", "SMALLER", "hash:ip", "maxelem", "10", "timeout", "5")
	for name, s := range map[string]kernelSets{"FOUR": v4, "SIX": v6} {
		if err := s.Create(name); err != nil {
			t.Fatal(err)
		}
		got := get(t, h, name)
		if got.HashSize != ipset.HashSize || got.MaxElements != ipset.MaxElem || got.CadtFlags&nl.IPSET_FLAG_WITH_FORCEADD == 0 || got.Timeout == nil {
			t.Errorf("set %s is %+v", name, got)
		}
	}
	if got, err := v4.List(); err != nil || !slices.Equal(got, []string{"FOUR", "SMALLER"}) {
		t.Errorf("IPv4: List() = %q, %v, want FOUR and SMALLER", got, err)
	}
	if got, err := v6.List(); err != nil || !slices.Equal(got, []string{"SIX"}) {
		t.Errorf("IPv6: List() = %q, %v, want SIX", got, err)
	}
}
