// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	half  = "-m statistic --mode random --probability 0.50000000000 "
	third = "-m statistic --mode random --probability 0.33333333349 "
)

// Translations differ by their destinations alone.
const (
	toA = "-p tcp -j DNAT --to-destination 10.244.0.1:80"
	toB = "-p tcp -j DNAT --to-destination 10.244.0.2:80"
	toC = "-p tcp -j DNAT --to-destination 10.244.0.3:80"
)

// TestPlanLosesNothing: while nothing may be removed, a chain of a unit is written
// if it keeps what it leads to, and else left alone.
func TestPlanLosesNothing(t *testing.T) {
	for _, tt := range []struct {
		name       string
		have, want []Rule
		writes     bool
	}{
		{"a target more", []Rule{"-j A"}, []Rule{half + "-j A", "-j B"}, true},
		{"a target less", []Rule{half + "-j A", "-j B"}, []Rule{"-j A"}, false},
		{"another target", []Rule{"-j A"}, []Rule{"-j B"}, false},
		{"a translation more", []Rule{toA}, []Rule{half + toA, toB}, true},
		{"a translation less", []Rule{half + toA, toB}, []Rule{toA}, false},
		{"another translation", []Rule{toA}, []Rule{toB}, false},
		{"translations in the place of chains", []Rule{"-j A"}, []Rule{toA}, false},
		{"another option of a target that is no translation", []Rule{"-j SET --add-set A src --timeout 1", toA}, []Rule{"-j SET --add-set A src --timeout 2", toA}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := ChainKey{NAT, "KUBE-SVC-X"}
			e := NewEngine(Config{Variant: NFT, Contributions: []Contribution{{Owns: []ChainKey{k}}}})
			e.Stage(map[ChainKey]*Chain{k: {Unit: "x", Patient: true, Rules: tt.want}})
			e.kernel = kernel{chains: map[ChainKey]*Chain{k: {Rules: tt.have}}}
			p := e.plan(Options{})
			if wrote := p.write[k] != nil; wrote != tt.writes || wrote == slices.Contains(p.deferred, k) {
				t.Errorf("writes the chain: %v, want %v; deferred: %v", wrote, tt.writes, p.deferred)
			}
		})
	}
}

// TestPlanTrim: which changes of a chain are removals of rules, which are so for
// a while, and which write the chain anew.
func TestPlanTrim(t *testing.T) {
	for _, tt := range []struct {
		name       string
		have, want []Rule
		patient    bool
		settle     bool
		variant    Variant
		gone       []Rule
		unsettled  bool
	}{
		{name: "a rule less", have: []Rule{"-j A", "-j B", "-j C"}, want: []Rule{"-j A", "-j C"}, gone: []Rule{"-j B"}},
		{name: "all rules", have: []Rule{"-j A", "-j B"}, want: nil, gone: []Rule{"-j A", "-j B"}},
		{name: "a rule less, legacy", have: []Rule{"-j A", "-j B"}, want: []Rule{"-j A"}, variant: Legacy},
		{name: "a rule more", have: []Rule{"-j A"}, want: []Rule{"-j A", "-j B"}},
		{name: "another order", have: []Rule{"-j A", "-j B"}, want: []Rule{"-j B", "-j A"}},
		{name: "one of two that are alike", have: []Rule{"-j A", "-j B", "-j A"}, want: []Rule{"-j B", "-j A"}},
		{name: "a rule of others with a line break", have: []Rule{"-j A", "-m comment --comment \"x\n-X y\" -j B"}, want: []Rule{"-j A"}},
		{name: "a target less, not the last", patient: true, unsettled: true,
			have: []Rule{third + "-j A", half + "-j B", "-j C"}, want: []Rule{half + "-j A", "-j C"}, gone: []Rule{half + "-j B"}},
		{name: "the first target less, which is exact", patient: true,
			have: []Rule{third + "-j A", half + "-j B", "-j C"}, want: []Rule{half + "-j B", "-j C"}, gone: []Rule{third + "-j A"}},
		{name: "the last target less", patient: true, have: []Rule{half + "-j A", "-j B"}, want: []Rule{"-j A"}},
		{name: "a target less, impatient", have: []Rule{third + "-j A", half + "-j B", "-j C"}, want: []Rule{half + "-j A", "-j C"}},
		{name: "a target less, settled at once", patient: true, settle: true,
			have: []Rule{third + "-j A", half + "-j B", "-j C"}, want: []Rule{half + "-j A", "-j C"}},
		{name: "a target less and one more", patient: true,
			have: []Rule{third + "-j A", half + "-j B", "-j C"}, want: []Rule{third + "-j A", half + "-j D", "-j C"}},
		{name: "a target less, and another rule changes", patient: true,
			have: []Rule{"-s 10.0.0.0/8 -j M", third + "-j A", half + "-j B", "-j C"}, want: []Rule{"-s 10.0.0.0/9 -j M", half + "-j A", "-j C"}},
		{name: "odds that are not right yet", patient: true, unsettled: true, have: []Rule{third + "-j A", "-j C"}, want: []Rule{half + "-j A", "-j C"}},
		{name: "odds that are put right", patient: true, settle: true, have: []Rule{third + "-j A", "-j C"}, want: []Rule{half + "-j A", "-j C"}},
		{name: "a translation less, not the last", patient: true, unsettled: true,
			have: []Rule{third + toA, half + toB, toC}, want: []Rule{half + toA, toC}, gone: []Rule{half + toB}},
		{name: "the first translation less, which is exact", patient: true,
			have: []Rule{third + toA, half + toB, toC}, want: []Rule{half + toB, toC}, gone: []Rule{third + toA}},
		{name: "the last translation less", patient: true, have: []Rule{half + toA, toB}, want: []Rule{toA}},
		{name: "another translation", patient: true, have: []Rule{half + toA, toB}, want: []Rule{half + toC, toB}},
		{name: "translations in the place of chains", patient: true, have: []Rule{half + "-j A", "-j B"}, want: []Rule{half + toA, toB}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := ChainKey{NAT, "KUBE-SVC-X"}
			if tt.variant == "" {
				tt.variant = NFT
			}
			e := NewEngine(Config{Variant: tt.variant, Contributions: []Contribution{{Owns: []ChainKey{k}}}})
			want := &Chain{Unit: "x", Patient: tt.patient, Rules: tt.want}
			e.Stage(map[ChainKey]*Chain{k: want})
			e.kernel = kernel{chains: map[ChainKey]*Chain{k: {Rules: tt.have}}}
			p := e.plan(Options{Prune: true, Settle: tt.settle})
			if diff := cmp.Diff(tt.gone, p.trim[k].gone); diff != "" {
				t.Errorf("rules to remove (-want +got):\n%s", diff)
			}
			if p.unsettled[k] != tt.unsettled {
				t.Errorf("unsettled is %v, want %v", p.unsettled[k], tt.unsettled)
			}
			if wrote := p.write[k] != nil; wrote != (len(tt.gone) == 0 && !tt.unsettled) {
				t.Errorf("writes the chain: %v", wrote)
			}
			if tr, ok := p.trim[k]; ok {
				left := slices.DeleteFunc(slices.Clone(tt.have), func(r Rule) bool { return slices.Contains(tr.gone, r) })
				if diff := cmp.Diff(left, tr.left.Rules); diff != "" && len(left) > 0 {
					t.Errorf("what is left (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestFoundation: where a plan is split, rules of a shared chain on which Services
// may rely come before these, and go after them.
func TestFoundation(t *testing.T) {
	svc, post := ChainKey{NAT, "KUBE-SVC-X"}, ChainKey{NAT, "KUBE-POSTROUTING"}
	base, more := []Rule{"-j MARK"}, []Rule{"-m set --match-set L dst,dst,src -j MASQUERADE", "-j MARK"}
	for _, tt := range []struct {
		name       string
		have, want []Rule
		order      []string
	}{
		{"a rule more", base, more, []string{post.Name, svc.Name}},
		{"a rule less", more, base, []string{svc.Name, post.Name}},
		{"another rule", base, []Rule{"-j MASQUERADE"}, []string{svc.Name, post.Name}},
		{"a rule more, that leads to a chain", base, []Rule{"-j MARK", Rule("-j " + svc.Name)}, []string{svc.Name, post.Name}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := NewEngine(Config{Variant: NFT, Contributions: []Contribution{{Owns: []ChainKey{svc, post}}}})
			e.Stage(map[ChainKey]*Chain{svc: {Unit: "x", Rules: []Rule{toA}}, post: {Rules: tt.want}})
			e.kernel = kernel{chains: map[ChainKey]*Chain{svc: {Rules: []Rule{"-j A"}}, post: {Rules: tt.have}}}
			e.trims = false
			var order []string
			for _, tr := range e.plan(Options{Prune: true}).transactions(&e.kernel, limits{build: 1, live: 1}) {
				for _, s := range tr {
					for _, w := range s.write {
						order = append(order, w.name)
					}
				}
			}
			if diff := cmp.Diff(tt.order, order); diff != "" {
				t.Errorf("chains in the order in which they are written (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSettleRidesAlong: odds are put right with a change that the kernel has to
// validate anyway, and not with one of another table or with a removal.
func TestSettleRidesAlong(t *testing.T) {
	svc, other := ChainKey{NAT, "KUBE-SVC-X"}, ChainKey{NAT, "KUBE-SVC-Y"}
	filter := ChainKey{Filter, "KUBE-SERVICES"}
	for _, tt := range []struct {
		name   string
		change ChainKey
		rules  []Rule
		rides  bool
	}{
		{"an addition", other, []Rule{"-j A", "-j B"}, true},
		{"a removal", other, nil, false},
		{"an addition to another table", filter, []Rule{"-j REJECT"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := NewEngine(Config{Variant: NFT, Contributions: []Contribution{{Owns: []ChainKey{svc, other, filter}}}})
			e.Stage(map[ChainKey]*Chain{
				svc:       {Unit: "x", Patient: true, Rules: []Rule{half + "-j A", "-j C"}},
				tt.change: {Rules: tt.rules},
			})
			e.kernel = kernel{chains: map[ChainKey]*Chain{svc: {Rules: []Rule{third + "-j A", "-j C"}}, other: {Rules: []Rule{"-j A"}}}}
			p := e.plan(Options{Prune: true})
			if rides := p.write[svc] != nil; rides != tt.rides || rides == p.unsettled[svc] {
				t.Errorf("the odds are written: %v, want %v; unsettled: %v", rides, tt.rides, p.unsettled[svc])
			}
		})
	}
}

// TestReaderTakesWhatItExpects: what is in the kernel as it is wanted is not kept
// a second time, however the rest differs.
func TestReaderTakesWhatItExpects(t *testing.T) {
	owns := newOwners([]Contribution{{Owns: []ChainKey{{NAT, "KUBE-*"}}}})
	want := map[ChainKey]*Chain{
		{NAT, "KUBE-SAME"}:   {Rules: []Rule{"-j A", "-j B"}},
		{NAT, "KUBE-LONGER"}: {Rules: []Rule{"-j A", "-j B", "-j C"}},
		{NAT, "KUBE-SHORT"}:  {Rules: []Rule{"-j A"}},
		{NAT, "KUBE-OTHER"}:  {Rules: []Rule{"-j A", "-j B"}},
		{NAT, "KUBE-EMPTY"}:  {Rules: []Rule{"-j A"}},
	}
	text := `*nat
:KUBE-EMPTY - [0:0]
:KUBE-LONGER - [0:0]
:KUBE-NEW - [0:0]
:KUBE-OTHER - [0:0]
:KUBE-SAME - [0:0]
:KUBE-SHORT - [0:0]
-A KUBE-SAME -j A
-A KUBE-SAME -j B
-A KUBE-LONGER -j A
-A KUBE-LONGER -j B
-A KUBE-SHORT -j A
-A KUBE-SHORT -j B
-A KUBE-OTHER -j A
-A KUBE-OTHER -j X
-A KUBE-NEW -j A
COMMIT
`
	r := newReader(owns, nil, nil, want)
	if err := parse(strings.NewReader(text), r); err != nil {
		t.Fatal(err)
	}
	r.endChain()
	got := map[string][]Rule{}
	for k, c := range r.kernel.chains {
		got[k.Name] = c.Rules
		if same := c == want[k]; same != (k.Name == "KUBE-SAME") {
			t.Errorf("%s is the wanted chain: %v", k.Name, same)
		}
	}
	if diff := cmp.Diff(map[string][]Rule{
		"KUBE-EMPTY": nil, "KUBE-LONGER": {"-j A", "-j B"}, "KUBE-NEW": {"-j A"}, "KUBE-OTHER": {"-j A", "-j X"},
		"KUBE-SAME": {"-j A", "-j B"}, "KUBE-SHORT": {"-j A", "-j B"},
	}, got); diff != "" {
		t.Errorf("chains read (-want +got):\n%s", diff)
	}
}
