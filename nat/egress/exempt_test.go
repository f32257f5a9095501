// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fairlead/nat/ipset"
	"fairlead/nat/ipset/fake"
)

// TestExemptSet: many destinations are in a set, which changes by what has changed of
// them, and is put right when others have changed it.
func TestExemptSet(t *testing.T) {
	var fault error
	k := &fake.Kernel{Fault: func(string) error { return fault }}
	x := NewExempt(k.Set(SetName(false), ipset.HashNet, false))
	rules := func(n int) Rules {
		return Rules{Pods: prefixes("10.244.0.0/16"), Config: Config{NonMasquerade: prefixes(many(n)...)}}
	}
	use := func(what string, r Rules, set string, ops ...string) {
		t.Helper()
		got, err := x.Use(r)
		if err != nil || got.Set != set {
			t.Errorf("%s: set %q, want %q (%v)", what, got.Set, set, err)
		}
		if got := k.Ops(); !slices.Equal(got, ops) && len(ops) < 5 {
			t.Errorf("%s: %q, want %q", what, got, ops)
		}
	}
	use("few", rules(8), "")
	k.Put(SetName(false), ipset.HashNet, false, ipset.Element{Net: netip.MustParsePrefix("192.0.2.0/24")})
	k.Ops()
	if r, err := x.Use(rules(100)); err != nil || r.Set != "KUBE-NON-MASQ" || len(r.Chains()[egressChain].Rules) != 2 {
		t.Errorf("many: %+v, %v", r, err)
	}
	if n := strings.Count(k.Save(), "add KUBE-NON-MASQ"); n != 103 || strings.Contains(k.Save(), "192.0.2.0") {
		t.Errorf("%d elements, want 103: the 100, pods, link-local and multicast:\n%s", n, k.Save())
	}
	k.Ops()
	use("the same", rules(100), "KUBE-NON-MASQ")
	use("one more", rules(101), "KUBE-NON-MASQ", "add KUBE-NON-MASQ 11.0.100.0/24")
	use("one less", rules(100), "KUBE-NON-MASQ", "remove KUBE-NON-MASQ 11.0.100.0/24")
	k.Take(SetName(false), ipset.Element{Net: netip.MustParsePrefix("11.0.7.0/24")})
	x.Check()
	use("others have changed it", rules(100), "KUBE-NON-MASQ", "create KUBE-NON-MASQ", "list KUBE-NON-MASQ", "add KUBE-NON-MASQ 11.0.7.0/24")
	fault = errors.New("no")
	if r, err := x.Use(rules(102)); err == nil || r.Set != "" || len(r.Chains()[egressChain].Rules) < 100 {
		t.Errorf("refused: %+v, %v", r.Set, err)
	}
	fault = nil
	k.Ops()
	use("a /0 exempts everything", Rules{Pods: prefixes("10.244.0.0/16"), Config: Config{NonMasquerade: append(prefixes(many(50)...), prefixes("0.0.0.0/0")...)}}, "")
	if err := x.Drop(); err != nil || k.Save() != "" {
		t.Errorf("dropped: %v, %s", err, k.Save())
	}
	if r, err := NewExempt(nil).Use(rules(100)); err != nil || r.Set != "" {
		t.Errorf("without sets: %q, %v", r.Set, err)
	}
}

// BenchmarkExemptOneMore changes one of 10,000 destinations.
func BenchmarkExemptOneMore(b *testing.B) {
	k := &fake.Kernel{}
	x := NewExempt(k.Set(SetName(false), ipset.HashNet, false))
	list := prefixes(many(10_000)...)
	for i := range b.N {
		r := Rules{Pods: prefixes("10.244.0.0/16"), Config: Config{NonMasquerade: append(list, netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/32", i%256)))}}
		if _, err := x.Use(r); err != nil {
			b.Fatal(err)
		}
		k.Ops()
	}
}
