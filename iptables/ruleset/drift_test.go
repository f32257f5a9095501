// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
)

func TestDriftIsRepairedAndReported(t *testing.T) {
	const jump = `-m comment --comment "test portals" -j KUBE-SERVICES`
	for _, tt := range []struct {
		name string
		edit string // empty for a flush of nat
		want []string
		// restore is what the repair runs, empty where it need not be spelled out.
		restore string
	}{
		{
			name: "rule removed from a chain",
			edit: "*nat\n-D KUBE-SVC-DNS -m comment --comment \"to 10.244.0.3\" -j KUBE-SEP-DNS-10.244.0.3\nCOMMIT\n",
			want: []string{"nat/KUBE-SVC-DNS"},
			restore: `*nat
:KUBE-SVC-DNS - [0:0]
-A KUBE-SVC-DNS ! -s 10.244.0.0/16 -d 10.96.0.11/32 -j KUBE-MARK-MASQ
-A KUBE-SVC-DNS -m comment --comment "to 10.244.0.3" -j KUBE-SEP-DNS-10.244.0.3
COMMIT
`,
		},
		{
			name:    "rule added to a chain",
			edit:    "*filter\n-I KUBE-FORWARD -j DROP\nCOMMIT\n",
			want:    []string{"filter/KUBE-FORWARD"},
			restore: "*filter\n-D KUBE-FORWARD -j DROP\nCOMMIT\n",
		},
		{
			name: "chains deleted",
			edit: "*nat\n-D KUBE-SERVICES -d 10.96.0.11/32 -j KUBE-SVC-DNS\n-F KUBE-SVC-DNS\n-X KUBE-SVC-DNS\nCOMMIT\n",
			want: []string{"nat/KUBE-SERVICES", "nat/KUBE-SVC-DNS"},
		},
		{
			name: "empty chain deleted",
			edit: "*filter\n-D KUBE-SERVICES -d 10.96.0.12/32 -j REJECT\n" +
				"-D OUTPUT " + jump + "\n-D FORWARD " + jump + "\n-X KUBE-SERVICES\nCOMMIT\n",
			want: []string{"filter/FORWARD", "filter/KUBE-SERVICES", "filter/OUTPUT"},
		},
		{
			name:    "jump deleted",
			edit:    "*nat\n-D OUTPUT " + jump + "\nCOMMIT\n",
			want:    []string{"nat/OUTPUT"},
			restore: "*nat\n-I OUTPUT " + jump + "\nCOMMIT\n",
		},
		{
			name:    "jump doubled",
			edit:    "*nat\n-A OUTPUT " + jump + "\nCOMMIT\n",
			want:    []string{"nat/OUTPUT"},
			restore: "*nat\n-D OUTPUT " + jump + "\nCOMMIT\n",
		},
		{
			name:    "chain added under a name of ours",
			edit:    "*nat\n:KUBE-SVC-OTHER - [0:0]\n-A KUBE-SVC-OTHER -j ACCEPT\nCOMMIT\n",
			want:    []string{"nat/KUBE-SVC-OTHER"},
			restore: "*nat\n:KUBE-SVC-OTHER - [0:0]\n-X KUBE-SVC-OTHER\nCOMMIT\n",
		},
		{
			name: "table flushed",
			want: []string{
				"nat/KUBE-MARK-MASQ", "nat/KUBE-SEP-DNS-10.244.0.3", "nat/KUBE-SEP-WEB-10.244.0.1", "nat/KUBE-SEP-WEB-10.244.0.2",
				"nat/KUBE-SERVICES", "nat/KUBE-SVC-DNS", "nat/KUBE-SVC-WEB", "nat/OUTPUT", "nat/PREROUTING",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) { testDrift(t, tt.edit, tt.want, tt.restore) })
	}
}

func testDrift(t *testing.T, edit string, want []string, restore string) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	if edit == "" {
		h.kernel.Flush(ruleset.NAT)
	} else {
		h.edit(edit)
	}
	if got := h.restores(func() { h.prune() }); len(got) > 0 {
		t.Fatalf("Apply() without Verify ran %d restores, want none", len(got))
	}
	var res ruleset.Result
	got := h.restores(func() { res = h.apply(ruleset.Options{Prune: true, Verify: true}) })
	if restore != "" {
		if diff := cmp.Diff(restore, strings.Join(got, "")); diff != "" {
			t.Errorf("repair (-want +got):\n%s", diff)
		}
	}
	var drift []string
	for _, k := range res.Drift {
		drift = append(drift, k.String())
	}
	if diff := cmp.Diff(want, drift); diff != "" {
		t.Errorf("Apply().Drift (-want +got):\n%s", diff)
	}
	h.checkOurs(someServices())
	if res := h.apply(ruleset.Options{Prune: true, Verify: true}); len(res.Drift) > 0 || len(res.Written) > 0 {
		t.Errorf("another Apply(Verify) = %+v, want no drift and nothing written", res)
	}
}

// TestEmptyChainDeletedIsDrift: an empty chain is something, too.
func TestEmptyChainDeletedIsDrift(t *testing.T) {
	h := newHost(t)
	h.want(services{})
	h.prune()
	h.kernel.Flush(ruleset.Filter)
	res := h.apply(ruleset.Options{Prune: true, Verify: true})
	want := []ruleset.ChainKey{
		{Table: ruleset.Filter, Name: "FORWARD"}, forward, filterServices, {Table: ruleset.Filter, Name: "OUTPUT"},
	}
	if diff := cmp.Diff(want, res.Drift); diff != "" {
		t.Errorf("Apply().Drift (-want +got):\n%s", diff)
	}
	h.checkOurs(services{})
}

// TestOthersChangesAreNoDrift: what is not ours may change as it likes.
func TestOthersChangesAreNoDrift(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	h.edit(othersFilter)
	h.edit(othersNAT)
	h.edit(othersPin)
	got := h.restores(func() {
		if res := h.apply(ruleset.Options{Prune: true, Verify: true}); len(res.Drift) > 0 {
			t.Errorf("Apply().Drift = %v, want none", res.Drift)
		}
	})
	if len(got) > 0 {
		t.Errorf("Apply() ran %d restores, want none:\n%s", len(got), strings.Join(got, ""))
	}
}

// TestOurOwnWorkIsNoDrift, also where it removes the last jump of a chain, or
// fails in between.
func TestOurOwnWorkIsNoDrift(t *testing.T) {
	h := newHost(t)
	h.edit("*filter\n:KUBE-SERVICES - [0:0]\n-A INPUT -j KUBE-SERVICES\nCOMMIT\n")
	for _, s := range []services{someServices(), {}, someServices().without("WEB"), someServices()} {
		h.want(s)
		h.prune()
		if res := h.apply(ruleset.Options{Prune: true, Verify: true}); len(res.Drift) > 0 {
			t.Errorf("Apply().Drift = %v, want none", res.Drift)
		}
	}
}

// pinned has chains of ours to which rules of others lead.
func TestPinnedChains(t *testing.T) {
	for _, tt := range []struct {
		name string
		pin  string
		kept []string // chains that stay once nothing of ours is wanted
	}{
		{"foreign chain leads to a leaf", "*nat\n:DOCKER - [0:0]\n-A DOCKER -j KUBE-MARK-MASQ\nCOMMIT\n", []string{"KUBE-MARK-MASQ"}},
		{
			"foreign chain leads to a service", "*nat\n:DOCKER - [0:0]\n-A DOCKER -d 192.0.2.1/32 -j KUBE-SVC-DNS\nCOMMIT\n",
			[]string{"KUBE-MARK-MASQ", "KUBE-SEP-DNS-10.244.0.3", "KUBE-SVC-DNS"},
		},
		{
			"built-in chain leads to a service", "*nat\n-A PREROUTING -i eth9 -j KUBE-SVC-DNS\nCOMMIT\n",
			[]string{"KUBE-MARK-MASQ", "KUBE-SEP-DNS-10.244.0.3", "KUBE-SVC-DNS"},
		},
	} {
		t.Run("unwanted: "+tt.name, func(t *testing.T) {
			h := newHost(t)
			h.want(someServices())
			h.prune()
			h.edit(tt.pin)
			_, others := split(h.dump())
			h.want(services{})
			h.prune()
			h.apply(ruleset.Options{Prune: true, Verify: true})
			h.checkQuiet()
			if _, got := split(h.dump()); !cmp.Equal(got, others) {
				t.Errorf("rules of others (-want +got):\n%s", cmp.Diff(others, got))
			}
			h.want(someServices())
			h.prune()
			h.checkOurs(someServices())
		})
		t.Run("clean: "+tt.name, func(t *testing.T) {
			h := newHost(t)
			h.want(someServices())
			h.prune()
			h.edit(tt.pin)
			was := chainsOf(h.dump())
			_, others := split(h.dump())
			if _, err := h.engine.Clean(context.Background()); err != nil {
				t.Errorf("Clean() = %v", err)
			}
			var kept []string
			for k, rules := range chainsOf(h.dump()) {
				if owned(k) {
					kept = append(kept, k.Name)
					if diff := cmp.Diff(was[k], rules); diff != "" {
						t.Errorf("%s has changed (-before +after):\n%s", k, diff)
					}
				}
			}
			if diff := cmp.Diff(tt.kept, sorted(kept)); diff != "" {
				t.Errorf("chains left (-want +got):\n%s", diff)
			}
			if _, got := split(h.dump()); !cmp.Equal(got, others) {
				t.Errorf("rules of others (-want +got):\n%s", cmp.Diff(others, got))
			}
		})
	}
}
