// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// watched is an Exec that calls after when a restore has ended.
type watched struct {
	ruleset.Exec
	after func(err error)
}

func (w watched) Run(ctx context.Context, c ruleset.Command) error {
	err := w.Exec.Run(ctx, c)
	if strings.HasSuffix(c.Name, "-restore") {
		w.after(err)
	}
	return err
}

// manyServices returns n services with k endpoints each, and as many without.
func manyServices(n, k int) services {
	s := services{}
	for i := range n {
		var eps []string
		for j := range k {
			eps = append(eps, fmt.Sprintf("10.244.%d.%d", i, j))
		}
		s[fmt.Sprintf("S%03d", i)] = service{fmt.Sprintf("10.96.1.%d", i), eps}
		s[fmt.Sprintf("N%03d", i)] = service{fmt.Sprintf("10.96.2.%d", i), nil}
	}
	return s
}

// watch checks the kernel after each restore of the next Apply: what can be
// reached from KUBE-SERVICES is as it was or as it is wanted, and services in
// both states are led to throughout.
func (h *host) watch(old, now services) {
	was, wanted := chainsOf(h.dump()), now.chains()
	steady := map[ruleset.Rule]bool{}
	for _, r := range old.chains()[natServices].Rules {
		steady[r] = slices.Contains(now.chains()[natServices].Rules, r)
	}
	h.exec = watched{h.kernel, func(error) {
		have := chainsOf(h.dump())
		for _, r := range old.chains()[natServices].Rules {
			if steady[r] && !slices.Contains(have[natServices], r) {
				h.t.Errorf("after restore %d: %s has lost %q, which is wanted before and after", len(h.kernel.Restores()), natServices, r)
			}
		}
		for k := range reachable(have, natServices) {
			rules, exists := have[k]
			switch {
			case !exists:
				h.t.Errorf("after restore %d: %s can be reached and is not there", len(h.kernel.Restores()), k)
			case k == natServices:
			case slices.Equal(rules, was[k]):
			case wanted[k] != nil && slices.Equal(rules, wanted[k].Rules):
			default:
				h.t.Errorf("after restore %d: %s can be reached and is half-written: %q", len(h.kernel.Restores()), k, rules)
			}
		}
	}}
}

// reachable returns the chains, there or not, to which rules lead from one.
func reachable(have map[ruleset.ChainKey][]ruleset.Rule, from ruleset.ChainKey) map[ruleset.ChainKey]bool {
	out := map[ruleset.ChainKey]bool{}
	var visit func(k ruleset.ChainKey)
	visit = func(k ruleset.ChainKey) {
		if out[k] || !strings.HasPrefix(k.Name, "KUBE-") {
			return
		}
		out[k] = true
		for _, r := range have[k] {
			visit(ruleset.ChainKey{Table: k.Table, Name: r.Target()})
		}
	}
	visit(from)
	return out
}

// applyWatched applies old and then now with limits and a watch on each restore.
func applyWatched(t *testing.T, old, now services, build, live int) (*host, []string) {
	h := newHost(t)
	h.want(old)
	h.prune()
	h.watch(old, now)
	h.restart()
	h.engine.SetLimits(build, live)
	h.want(now)
	got := h.restores(func() { h.prune() })
	h.checkOurs(now)
	return h, got
}

func TestNoPacketMeetsHalfAService(t *testing.T) {
	few, many := manyServices(3, 2), manyServices(30, 4)
	moved := services{}
	for name, svc := range many {
		svc.vip = strings.Replace(svc.vip, "10.96.", "10.97.", 1)
		moved[name] = svc
	}
	replaced := services{}
	for name, svc := range many {
		if len(svc.endpoints) > 0 {
			svc.endpoints = append(slices.Clone(svc.endpoints[1:]), "10.245.0.1", "10.245.0.2")
		}
		replaced[name] = svc
	}
	for _, tt := range []struct {
		name     string
		old, now services
	}{
		{"first sync", services{}, many},
		{"most are new", few, many},
		{"most go", many, few},
		{"all go", many, services{}},
		{"endpoints replaced", many, replaced},
		{"addresses moved", many, moved},
		{"endpoints lost for good", many, manyServices(30, 0)},
		{"endpoints won", manyServices(30, 0), many},
	} {
		for _, limit := range [][2]int{{0, 0}, {40, 120}, {1, 1}, {7, 3}, {2000, 8000}} {
			t.Run(fmt.Sprintf("%s, limits %v", tt.name, limit), func(t *testing.T) {
				_, got := applyWatched(t, tt.old, tt.now, limit[0], limit[1])
				if limit[0] == 0 && len(got) != 1 {
					t.Errorf("Apply() without limits ran %d restores, want 1", len(got))
				}
			})
		}
	}
}

// TestLimits: no restore is larger than its limit but for one unit or the
// shared chains, which cannot be split.
func TestLimits(t *testing.T) {
	const build, live = 60, 90
	for _, tt := range []struct {
		name     string
		old, now services
		limit    int
	}{
		{"building", services{}, manyServices(40, 4), build},
		{"replacing", manyServices(40, 4), manyServices(40, 5), live},
		{"dropping", manyServices(40, 4), services{}, live},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, got := applyWatched(t, tt.old, tt.now, build, live)
			if len(got) < 4 {
				t.Errorf("Apply() ran %d restores, want the plan split", len(got))
			}
			for i, text := range got {
				shared := strings.Contains(text, ":KUBE-SERVICES")
				if n := strings.Count(text, "\n"); n > tt.limit+2 && !shared {
					t.Errorf("restore %d has %d lines, want at most %d:\n%s", i, n, tt.limit, text)
				}
			}
		})
	}
}

// TestLargePlanOfSeveralTables: additions to filter come first, removals from
// it last, and no restore mixes tables.
func TestLargePlanOfSeveralTables(t *testing.T) {
	old := manyServices(20, 3)
	now := services{}
	for name, svc := range old { // who had endpoints has none, and the other way round
		if svc.endpoints == nil {
			svc.endpoints = []string{"10.246.0.1"}
		} else {
			svc.endpoints = nil
		}
		now[name] = svc
	}
	h := newHost(t)
	h.want(old)
	h.prune()
	h.edit("*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n")
	h.watch(old, now)
	h.restart()
	h.engine.SetLimits(20, 50)
	h.want(now)
	var tables []string
	for _, text := range h.restores(func() { h.prune() }) {
		if n := strings.Count(text, "COMMIT\n"); n != 1 {
			t.Errorf("a restore of a large plan commits %d tables, want 1:\n%s", n, text)
		}
		name, _, _ := strings.Cut(text, "\n")
		tables = append(tables, name)
	}
	tables = slices.Compact(tables)
	if diff := cmp.Diff([]string{"*filter", "*nat", "*mangle", "*filter"}, tables); diff != "" {
		t.Errorf("order of tables (-want +got):\n%s", diff)
	}
	h.checkOurs(now)
}

// TestOrderInOneRestore: a service that loses its last endpoint is refused
// before it is no more translated, and one that gains its first is translated
// before it is no more refused.
func TestOrderInOneRestore(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	h.want(someServices().
		with("DNS", service{"10.96.0.11", nil}).
		with("IDLE", service{"10.96.0.12", []string{"10.244.0.4"}}))
	got := h.restores(func() { h.prune() })
	want := []string{`*filter
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -d 10.96.0.11/32 -j REJECT
-A KUBE-SERVICES -d 10.96.0.12/32 -j REJECT
COMMIT
*nat
:KUBE-SEP-DNS-10.244.0.3 - [0:0]
:KUBE-SEP-IDLE-10.244.0.4 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-DNS - [0:0]
:KUBE-SVC-IDLE - [0:0]
-A KUBE-SEP-IDLE-10.244.0.4 -s 10.244.0.4/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-IDLE-10.244.0.4 -p tcp -m tcp -j DNAT --to-destination 10.244.0.4:80
-A KUBE-SERVICES -d 10.96.0.12/32 -j KUBE-SVC-IDLE
-A KUBE-SERVICES -d 10.96.0.10/32 -j KUBE-SVC-WEB
-A KUBE-SVC-IDLE ! -s 10.244.0.0/16 -d 10.96.0.12/32 -j KUBE-MARK-MASQ
-A KUBE-SVC-IDLE -m comment --comment "to 10.244.0.4" -j KUBE-SEP-IDLE-10.244.0.4
-X KUBE-SEP-DNS-10.244.0.3
-X KUBE-SVC-DNS
COMMIT
*filter
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -d 10.96.0.11/32 -j REJECT
COMMIT
`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("restores (-want +got):\n%s", diff)
	}
}

// TestOrderAtTheStart: chains are declared before rules that lead to them, and
// jumps come in last.
func TestOrderAtTheStart(t *testing.T) {
	h := newHost(t)
	h.want(services{"WEB": {"10.96.0.10", []string{"10.244.0.1"}}})
	got := h.restores(func() { h.prune() })
	want := []string{`*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-I OUTPUT -m comment --comment "test portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "test portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "test portals" -j KUBE-FORWARD
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-WEB-10.244.0.1 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-WEB - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-WEB-10.244.0.1 -s 10.244.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB-10.244.0.1 -p tcp -m tcp -j DNAT --to-destination 10.244.0.1:80
-A KUBE-SERVICES -d 10.96.0.10/32 -j KUBE-SVC-WEB
-A KUBE-SVC-WEB ! -s 10.244.0.0/16 -d 10.96.0.10/32 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -m comment --comment "to 10.244.0.1" -j KUBE-SEP-WEB-10.244.0.1
-I OUTPUT -m comment --comment "test portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "test portals" -j KUBE-SERVICES
COMMIT
`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("restores (-want +got):\n%s", diff)
	}
}

// TestFaultInALargePlan: wherever a large plan breaks, services are whole, and
// the next Apply brings the rest.
func TestFaultInALargePlan(t *testing.T) {
	old, now := manyServices(12, 2), manyServices(24, 3)
	for _, fault := range []fake.Fault{fake.FailBefore, fake.FailBetween, fake.FailAfter, fake.Busy} {
		for at := range 12 {
			h := newHost(t)
			h.variant = ruleset.Legacy
			h.want(old)
			h.prune()
			h.watch(old, now)
			h.restart()
			h.engine.SetLimits(40, 40)
			h.want(now)
			left := at
			h.kernel.Fault = func() fake.Fault {
				if left--; left == -1 {
					return fault
				}
				return fake.NoFault
			}
			_, _ = h.engine.Apply(context.Background(), ruleset.Options{Prune: true})
			h.kernel.Fault = nil
			if res := h.prune(); len(res.Refused) > 0 {
				t.Errorf("fault %d in restore %d: Refused = %v, want none", fault, at, res.Refused)
			}
			h.checkOurs(now)
			h.checkQuiet()
		}
	}
}
