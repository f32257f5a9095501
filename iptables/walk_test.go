// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	fakeset "fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// -seed repeats one random walk.
var seed = flag.Uint64("seed", 0, "seed of the random walk; 0 for a few fixed ones")

// TestWalk: after any sequence of snapshots and failing restores, each Sync
// that succeeds leaves what an agent would write that knows only the last.
func TestWalk(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	for _, s := range seeds {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			w := &walk{t: t, rng: rand.New(rand.NewPCG(s, 0)), snap: model.NewSnapshot(), changed: map[model.ServicePortName]bool{}}
			w.cfg = []RenderConfig{v4(), without(v4()), v6()}[s%3]
			w.kernel, w.sets = fakeHost()
			w.loops = fakeLoops(w.cfg.Family)
			w.loops.Kernel.Rules = w.kernel.Save
			clients := w.kernel.Refuse
			w.kernel.Refuse = func(k ruleset.ChainKey, r ruleset.Rule) bool { return clients(k, r) || w.loops.Missing(string(r)) }
			w.cfg.Compact = w.rng.IntN(2) == 0
			w.faults(true)
			w.agent = fakeAgentWithLoops(t, w.kernel, w.sets, w.loops, w.cfg)
			for w.step = 0; w.step < 600 && !t.Failed(); w.step++ {
				w.next()
			}
			if t.Failed() {
				t.Logf("repeat with: go test -run '^TestWalk$' ./iptables -seed=%d", s)
			}
		})
	}
}

// walk is an agent to which random things happen.
type walk struct {
	t      *testing.T
	rng    *rand.Rand
	cfg    RenderConfig
	kernel *fake.Kernel
	sets   *fakeset.Sets
	loops  *fakeset.Set
	agent  *agent
	snap   *model.Snapshot
	// changed are the names that no Sync that succeeded has carried.
	changed map[model.ServicePortName]bool
	step    int
}

func (w *walk) fault() fake.Fault {
	if w.rng.IntN(5) > 0 {
		return fake.NoFault
	}
	return []fake.Fault{fake.FailBefore, fake.FailBetween, fake.FailAfter, fake.Busy}[w.rng.IntN(4)]
}

// faults switches injected failures on or off.
func (w *walk) faults(on bool) {
	w.kernel.Fault, w.sets.Fault, w.loops.Kernel.Fault = nil, nil, nil
	if on {
		w.kernel.Fault, w.sets.Fault = w.fault, func(string, string) error { return w.setFault("") }
		w.loops.Kernel.Fault = w.setFault
	}
}

func (w *walk) setFault(string) error {
	if w.rng.IntN(8) > 0 {
		return nil
	}
	return errors.New("injected failure")
}

func (w *walk) next() {
	for range w.rng.IntN(4) {
		w.change()
	}
	if w.rng.IntN(15) == 0 {
		w.restart()
	}
	d := proxier.Desired{Snapshot: w.snap, Node: everywhere, Prune: w.rng.IntN(6) > 0, Verify: w.rng.IntN(10) == 0, Settle: w.rng.IntN(4) == 0}
	d.Changed = slices.SortedFunc(maps.Keys(w.changed), model.ServicePortName.Compare)
	r, err := w.agent.Sync(context.Background(), d)
	if err != nil {
		return
	}
	if len(r.Refused) > 0 { // a restore that failed too often, or a set; Verify mends it
		w.faults(false)
		d.Verify = true
		if r, err = w.agent.Sync(context.Background(), d); err != nil || len(r.Refused) > 0 {
			w.t.Errorf("step %d: Sync() without faults = %+v, %v", w.step, r, err)
		}
		w.faults(true)
	}
	clear(w.changed)
	if d.Prune {
		w.compare(r.Unsettled > 0)
	}
}

// restart starts a new agent, to which every port is new. It may have the other
// form.
func (w *walk) restart() {
	w.cfg.Compact = w.rng.IntN(2) == 0
	w.agent = fakeAgentWithLoops(w.t, w.kernel, w.sets, w.loops, w.cfg)
	clear(w.changed)
	for p := range w.snap.All() {
		w.changed[p.Name] = true
	}
}

// change adds, changes or removes one port.
func (w *walk) change() {
	n := w.rng.IntN(12)
	name := portName("ns", fmt.Sprintf("svc%d", n/3), fmt.Sprintf("p%d", n%3), []model.Protocol{model.TCP, model.UDP, model.SCTP}[w.rng.IntN(3)])
	var p *model.ServicePort
	if w.rng.IntN(4) > 0 {
		p = &model.ServicePort{Name: name, AffinityTimeout: time.Duration(w.rng.IntN(3)) * time.Hour, ClusterIP: w.addr(96, n/3), Port: uint16(80 + n%3 + 3*w.rng.IntN(2))}
		for i := range 5 {
			if w.rng.IntN(2) == 0 {
				p.Endpoints = append(p.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(w.addr(244, i), 8080), Local: w.rng.IntN(2) == 0})
				p.Usable = true
			}
		}
	}
	w.snap = w.snap.With(map[model.ServicePortName]*model.ServicePort{name: p})
	w.changed[name] = true
}

func (w *walk) addr(net, host int) netip.Addr {
	if w.cfg.Family == model.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", net, host+1))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", net, host+1))
}

// anyOdds are what may differ for a while.
var anyOdds = regexp.MustCompile(`--probability [0-9.]+`)

// compare compares with what a fresh agent makes of the same ports. While a mode
// is unsettled, the odds of some endpoints are not right yet.
func (w *walk) compare(unsettled bool) {
	w.t.Helper()
	fresh, sets := fakeHost()
	var ports []*model.ServicePort
	for p := range w.snap.All() {
		ports = append(ports, p)
	}
	loops := fakeLoops(w.cfg.Family)
	fakeAgentWithLoops(w.t, fresh, sets, loops, w.cfg).sync(ports...)
	want, got := fresh.Save(), w.kernel.Save()
	if unsettled {
		want, got = anyOdds.ReplaceAllString(want, ""), anyOdds.ReplaceAllString(got, "")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("step %d: rules (-full +incremental):\n%s", w.step, diff)
	}
	// What could not be destroyed goes with the next sync, with or without a
	// change.
	w.faults(false)
	w.agent.syncChanged(w.snap, nil)
	if diff := cmp.Diff(sets.Names(), w.sets.Names()); diff != "" {
		w.t.Errorf("step %d: sets (-full +incremental):\n%s", w.step, diff)
	}
	if diff := cmp.Diff(loops.In(), w.loops.In(), netipEqual); diff != "" {
		w.t.Errorf("step %d: endpoints that reach themselves (-full +incremental):\n%s", w.step, diff)
	}
	w.faults(true)
}
