// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// -seed repeats one random walk.
var seed = flag.Uint64("seed", 0, "seed of the random walk; 0 for a few fixed ones")

func seeds() []uint64 {
	if *seed != 0 {
		return []uint64{*seed}
	}
	return []uint64{1, 2, 3, 4, 5, 6}
}

// TestWalk: after any sequence of changes, faults, refusals and edits by
// others, once Apply succeeds, the kernel has what a new host would have.
func TestWalk(t *testing.T) {
	for _, s := range seeds() {
		for _, limits := range [][2]int{{0, 0}, {12, 30}, {1, 1}} {
			t.Run(fmt.Sprintf("seed=%d,limits=%v", s, limits), func(t *testing.T) {
				t.Parallel()
				w := &walk{t: t, rng: rand.New(rand.NewPCG(s, 1)), host: newHost(t), limits: limits, now: services{}}
				if s%2 == 0 {
					w.host.variant = ruleset.Legacy
				}
				w.restart()
				for w.step = 0; w.step < 200 && !t.Failed(); w.step++ {
					w.next()
				}
				if t.Failed() {
					t.Logf("repeat with: go test -run '^TestWalk$' ./iptables/ruleset -seed=%d", s)
				}
			})
		}
	}
}

// walk is a host on which random things happen.
type walk struct {
	t      *testing.T
	rng    *rand.Rand
	host   *host
	limits [2]int
	step   int
	now    services
	// touched is set once others may have changed something of ours.
	touched bool
	// refused is set while the kernel refuses the endpoint 10.66.0.x.
	refused bool
}

func (w *walk) restart() {
	w.host.restart()
	w.host.engine.SetLimits(w.limits[0], w.limits[1])
}

func (w *walk) one(n int) bool { return w.rng.IntN(n) == 0 }

// next changes what is wanted, perhaps something else, and applies.
func (w *walk) next() {
	for range 1 + w.rng.IntN(3) {
		w.change()
	}
	if w.one(10) {
		w.restart()
	}
	w.host.want(w.now)
	if w.one(5) {
		w.others()
	}
	if w.one(8) {
		w.refused = !w.refused
		w.host.kernel.Refuse = nil
		if w.refused {
			w.host.refuse("10.66.0.")
		}
	}
	w.host.kernel.Fault = w.fault
	if w.one(4) {
		_, _ = w.host.engine.Apply(context.Background(), ruleset.Options{Verify: w.one(2)})
	} else {
		_, _ = w.host.engine.Apply(context.Background(), ruleset.Options{Prune: true})
	}
	if w.one(3) { // not settled each time, so that troubles add up
		w.settle()
	}
}

func (w *walk) fault() fake.Fault {
	if !w.one(6) {
		return fake.NoFault
	}
	return []fake.Fault{fake.FailBefore, fake.FailBetween, fake.FailAfter, fake.Busy}[w.rng.IntN(4)]
}

// change changes one service at random.
func (w *walk) change() {
	name := fmt.Sprintf("S%d", w.rng.IntN(7))
	w.now = maps.Clone(w.now)
	if w.one(5) {
		delete(w.now, name)
		return
	}
	svc := service{vip: fmt.Sprintf("10.96.%d.%s", w.rng.IntN(2), name[1:])}
	for i := range 4 {
		if w.one(2) {
			svc.endpoints = append(svc.endpoints, fmt.Sprintf("10.244.0.%d", i))
		}
	}
	if w.one(10) {
		svc.endpoints = append(svc.endpoints, "10.66.0.9")
	}
	w.now[name] = svc
}

// others does what other programs, or people, do to the rules.
func (w *walk) others() {
	w.touched = true
	const jump = `-m comment --comment "test portals" -j KUBE-SERVICES`
	texts := []string{
		"*nat\n-D OUTPUT " + jump + "\nCOMMIT\n",
		"*nat\n-A OUTPUT " + jump + "\nCOMMIT\n",
		"*filter\n-I FORWARD -j ACCEPT\nCOMMIT\n",
		"*filter\n-A KUBE-FORWARD -j DROP\nCOMMIT\n",
		"*filter\n:KUBE-FORWARD - [0:0]\nCOMMIT\n",
		"*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n",
		"*nat\n:KUBE-SVC-STRAY - [0:0]\n-A KUBE-SVC-STRAY -j ACCEPT\nCOMMIT\n",
		"*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n",
		"*nat\n:DOCKER - [0:0]\n-A DOCKER -j KUBE-MARK-MASQ\nCOMMIT\n",
		"*nat\n:DOCKER - [0:0]\n-A DOCKER -j KUBE-SVC-S1\nCOMMIT\n",
		"*nat\n:DOCKER - [0:0]\nCOMMIT\n",
	}
	for range 1 + w.rng.IntN(3) {
		if i := w.rng.IntN(len(texts) + 2); i < len(texts) {
			_ = w.host.kernel.Edit(texts[i]) // what does not fit is refused
		} else {
			w.host.kernel.Flush([]ruleset.Table{ruleset.NAT, ruleset.Filter}[i-len(texts)])
		}
	}
}

// settle applies until it succeeds, and compares.
func (w *walk) settle() {
	_, others := split(w.host.dump())
	o := ruleset.Options{Prune: true, Verify: w.touched}
	var res ruleset.Result
	for try := 0; ; try++ {
		var err error
		if res, err = w.host.engine.Apply(context.Background(), o); err == nil && w.justly(res) {
			break
		}
		o.Verify = o.Verify || err == nil // the remedy of an unjust refusal
		if try == 50 {
			w.t.Fatalf("step %d: Apply() = %+v, %v, 50 times", w.step, res, err)
		}
	}
	w.touched = false
	w.host.kernel.Fault = nil
	if got := w.host.restores(func() { w.host.prune() }); len(got) > 0 {
		w.t.Errorf("step %d: another Apply() wrote:\n%s", w.step, strings.Join(got, ""))
	}
	ours, after := split(w.host.dump())
	if diff := cmp.Diff(others, after); diff != "" {
		w.t.Errorf("step %d: rules of others (-want +got):\n%s", w.step, diff)
	}
	w.compare(ours, res)
}

// justly tells whether only what the kernel refuses was refused.
func (w *walk) justly(res ruleset.Result) bool {
	for _, r := range res.Refused {
		if !w.refused || !slices.Contains(w.now[r.Unit].endpoints, "10.66.0.9") {
			return false
		}
	}
	return true
}

// compare checks our rules. Of what was refused, nothing is said; of what
// others lead to, more may be left.
func (w *walk) compare(ours []string, res ruleset.Result) {
	want := w.now
	vague := func(string) bool { return false }
	if w.refused {
		for _, r := range res.Refused {
			want = want.without(r.Unit)
			vip := "-d " + w.now[r.Unit].vip + "/32"
			prev := vague
			vague = func(line string) bool {
				return prev(line) || strings.Contains(line, "-"+r.Unit+" ") || strings.Contains(line, "-"+r.Unit+"-") || strings.Contains(line, vip)
			}
		}
	}
	left := map[ruleset.ChainKey]bool{}
	have := chainsOf(w.host.dump())
	for _, r := range have[ruleset.ChainKey{Table: ruleset.NAT, Name: "DOCKER"}] {
		maps.Copy(left, reachable(have, ruleset.ChainKey{Table: ruleset.NAT, Name: r.Target()}))
	}
	wanted := want.chains()
	drop := func(line string) bool {
		var k ruleset.ChainKey
		name, _, _ := strings.Cut(line, " ")
		table, chain, _ := strings.Cut(name, "/")
		k = ruleset.ChainKey{Table: ruleset.Table(table), Name: chain}
		return vague(line) || left[k] && wanted[k] == nil
	}
	got := slices.DeleteFunc(ours, drop)
	expected := slices.DeleteFunc(full(w.t, want), vague)
	if diff := cmp.Diff(expected, got); diff != "" {
		w.t.Errorf("step %d: rules of ours differ from those of a new host (-want +got):\n%s", w.step, diff)
	}
}
