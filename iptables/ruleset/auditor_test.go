// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// auditor is a watcher that checks what the engine says of its restores against
// what they did to the kernel. Unless it is told otherwise, it suspects all.
type auditor struct {
	t        *testing.T
	kernel   *fake.Kernel
	suspects *ruleset.Suspects
	began    map[ruleset.ChainKey]int
	running  bool
	listed   int
	// known is what the engine should know of the kernel; it is stale where
	// something else is there, until all is read.
	known string
	stale bool
}

func (a *auditor) Wake() <-chan struct{} { return nil }

// sizes returns how many rules each chain has.
func (a *auditor) sizes() map[ruleset.ChainKey]int {
	out := map[ruleset.ChainKey]int{}
	for k, rules := range chainsOf(parse(a.t, a.kernel.Save())) {
		out[k] = len(rules)
	}
	return out
}

func (a *auditor) Begin() {
	if a.running {
		a.t.Error("a restore begins before another one has ended")
	}
	a.running, a.began = true, a.sizes()
	a.stale = a.stale || a.kernel.Save() != a.known
}

func (a *auditor) End(c ruleset.Committed) {
	a.running, a.known = false, a.kernel.Save()
	if a.stale = a.stale || !c.OK; a.stale {
		return
	}
	now, want := a.sizes(), map[ruleset.Table]ruleset.Growth{}
	grow := func(sizes map[ruleset.ChainKey]int, by int) {
		for k, n := range sizes {
			g := want[k.Table]
			if !slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, k.Name) {
				g.Chains += by // those of a table's own come with it
			}
			g.Rules += by * n
			want[k.Table] = g
		}
	}
	grow(now, 1)
	grow(a.began, -1)
	for table, g := range want {
		if diff := cmp.Diff(g, c.Growth[table]); diff != "" {
			a.t.Errorf("what a restore did to table %s (-kernel +engine):\n%s", table, diff)
		}
	}
	if changed := !cmp.Equal(a.began, now); changed && c.Sections == 0 {
		a.t.Error("a restore that changed something has no sections that did")
	}
}

func (a *auditor) Take() ruleset.Suspects {
	if a.suspects == nil {
		return ruleset.Suspects{All: true}
	}
	out := *a.suspects
	a.suspects = &ruleset.Suspects{}
	return out
}

func (a *auditor) Listed(time.Duration) {
	a.listed++
	a.known, a.stale = a.kernel.Save(), false
}

// TestVerifyReadsWhatIsSuspected: with a watcher, only what it names is read.
func TestVerifyReadsWhatIsSuspected(t *testing.T) {
	nat := func(name string) ruleset.ChainKey { return ruleset.ChainKey{Table: ruleset.NAT, Name: name} }
	for _, tt := range []struct {
		name     string
		edit     string
		suspects ruleset.Suspects
		lists    []string
		saves    int
		drift    []ruleset.ChainKey
	}{
		{name: "nothing"},
		{name: "a change that nobody tells of", edit: "*nat\n-F KUBE-SVC-DNS\nCOMMIT\n"},
		{
			name: "a chain of ours", edit: "*nat\n-F KUBE-SVC-DNS\nCOMMIT\n",
			suspects: ruleset.Suspects{Chains: []ruleset.ChainKey{svcKey("DNS")}},
			lists:    []string{"nat/KUBE-SVC-DNS"}, drift: []ruleset.ChainKey{svcKey("DNS")},
		},
		{
			name:     "a chain that is as it was",
			suspects: ruleset.Suspects{Chains: []ruleset.ChainKey{svcKey("DNS")}},
			lists:    []string{"nat/KUBE-SVC-DNS"},
		},
		{
			name: "a rule of others in a built-in chain", edit: "*nat\n-A OUTPUT -j ACCEPT\nCOMMIT\n",
			suspects: ruleset.Suspects{Chains: []ruleset.ChainKey{nat("OUTPUT")}}, lists: []string{"nat/OUTPUT"},
		},
		{
			name: "a jump that is gone", edit: "*nat\n-F OUTPUT\nCOMMIT\n",
			suspects: ruleset.Suspects{Chains: []ruleset.ChainKey{nat("OUTPUT")}},
			lists:    []string{"nat/OUTPUT"}, drift: []ruleset.ChainKey{nat("OUTPUT")},
		},
		{
			name: "a chain that is gone", edit: "*filter\n-F OUTPUT\n-F FORWARD\n-F KUBE-FORWARD\n-X KUBE-FORWARD\nCOMMIT\n",
			suspects: ruleset.Suspects{Chains: []ruleset.ChainKey{forward}}, lists: []string{"filter/KUBE-FORWARD"}, saves: 1,
			drift: []ruleset.ChainKey{
				{Table: ruleset.Filter, Name: "FORWARD"}, forward, {Table: ruleset.Filter, Name: "OUTPUT"},
			},
		},
		{
			name: "everything", edit: "*nat\n-F KUBE-SVC-DNS\nCOMMIT\n",
			suspects: ruleset.Suspects{All: true}, saves: 1, drift: []ruleset.ChainKey{svcKey("DNS")},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.want(someServices())
			h.prune()
			if tt.edit != "" {
				h.edit(tt.edit)
			}
			h.auditor.suspects = &tt.suspects
			saves, listed := h.kernel.Saves(), h.auditor.listed
			res := h.apply(ruleset.Options{Prune: true, Verify: true})
			if diff := cmp.Diff(tt.drift, res.Drift); diff != "" {
				t.Errorf("drift (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.lists, h.kernel.Lists()); diff != "" {
				t.Errorf("chains listed (-want +got):\n%s", diff)
			}
			if got := h.kernel.Saves() - saves; got != tt.saves || h.auditor.listed-listed != tt.saves {
				t.Errorf("all rules were read %d times, and that was told %d times, want %d", got, h.auditor.listed-listed, tt.saves)
			}
			if len(tt.drift) > 0 || tt.edit == "" {
				h.checkOurs(someServices())
			}
		})
	}
}

// TestVerifyUnpins: a chain that others led to goes when they do not any more,
// although what they have is not ours to watch.
func TestVerifyUnpins(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	foreign := ruleset.ChainKey{Table: ruleset.NAT, Name: "OTHERS"}
	h.edit("*nat\n-N OTHERS\n-A OTHERS -j KUBE-SVC-DNS\nCOMMIT\n")
	h.auditor.suspects = &ruleset.Suspects{Chains: []ruleset.ChainKey{foreign}}
	h.apply(ruleset.Options{Prune: true, Verify: true})
	h.want(someServices().without("DNS"))
	h.prune()
	if _, there := chainsOf(h.dump())[svcKey("DNS")]; !there {
		t.Fatal("a chain is gone that rules of others lead to")
	}
	h.edit("*nat\n-F OTHERS\nCOMMIT\n")
	h.auditor.suspects = &ruleset.Suspects{Chains: []ruleset.ChainKey{foreign}}
	h.apply(ruleset.Options{Prune: true, Verify: true})
	h.apply(ruleset.Options{Prune: true, Verify: true})
	if _, there := chainsOf(h.dump())[svcKey("DNS")]; there {
		t.Error("a chain is there still that nothing leads to any more")
	}
}

// TestVerifyTriesRefusedAgain: what the kernel refused is tried again, with a
// watcher as without.
func TestVerifyTriesRefusedAgain(t *testing.T) {
	h := newHost(t)
	h.kernel.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool { return r.Target() == "KUBE-SEP-DNS-10.244.0.3" }
	h.want(someServices())
	if res := h.prune(); len(res.Refused) == 0 {
		t.Fatal("nothing is refused")
	}
	h.kernel.Refuse = nil
	h.auditor.suspects = &ruleset.Suspects{}
	if res := h.apply(ruleset.Options{Prune: true, Verify: true}); len(res.Refused) > 0 {
		t.Errorf("refused still: %v", res.Refused)
	}
	h.checkOurs(someServices())
}
