// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
)

var seedFlag = flag.Uint64("seed", 0, "run the random tests with this seed alone")

// seeds returns the seeds of a random test: n that are always the same, and one
// that never was before.
func seeds(n uint64) []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	var out []uint64
	for seed := range n {
		out = append(out, seed+1)
	}
	return append(out, rand.Uint64())
}

// world is the objects that a random test changes.
type world struct {
	rand     *rand.Rand
	services map[model.ObjectKey]*model.Service
	slices   map[model.ObjectKey]*model.EndpointSlice
}

func newWorld(seed uint64) *world {
	return &world{
		rand:     rand.New(rand.NewPCG(seed, 0)),
		services: map[model.ObjectKey]*model.Service{},
		slices:   map[model.ObjectKey]*model.EndpointSlice{},
	}
}

// pick returns one of a few names, so that steps meet each other.
func (w *world) pick(prefix string, n int) string { return fmt.Sprint(prefix, w.rand.IntN(n)) }

// ports returns up to three ports, of different names or protocols.
func (w *world) ports() []model.Port {
	all := []model.Port{
		{Name: "", Protocol: model.TCP}, {Name: "http", Protocol: model.TCP},
		{Name: "dns", Protocol: model.UDP}, {Name: "dns", Protocol: model.TCP}, {Name: "sig", Protocol: model.SCTP},
	}
	w.rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	ports := all[:w.rand.IntN(4)]
	for i := range ports {
		ports[i].Number = uint16(80 + w.rand.IntN(3) + 10*i)
	}
	return ports
}

func (w *world) addr(f model.Family, n int) netip.Addr {
	if f == model.IPv4 {
		return netip.AddrFrom4([4]byte{10, 96, 0, byte(w.rand.IntN(n))})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(w.rand.IntN(n))})
}

func (w *world) service() *model.Service {
	s := &model.Service{Key: objectKey(w.pick("svc-", 6)), Ports: w.ports()}
	families := model.Families()
	if w.rand.IntN(2) == 0 {
		slices.Reverse(families)
	}
	for _, f := range families[:1+w.rand.IntN(2)] {
		s.ClusterIPs = append(s.ClusterIPs, w.addr(f, 200))
	}
	return s
}

func (w *world) slice() *model.EndpointSlice {
	s := &model.EndpointSlice{
		Key: objectKey(w.pick("slice-", 12)), Service: objectKey(w.pick("svc-", 7)),
		Family: model.Families()[w.rand.IntN(2)], Ports: w.ports(),
	}
	if old := w.slices[s.Key]; old != nil && w.rand.IntN(3) > 0 { // mostly a small change
		s.Service, s.Family, s.Ports = old.Service, old.Family, old.Ports
	}
	for range w.rand.IntN(5) {
		s.Endpoints = append(s.Endpoints, model.SliceEndpoint{
			Addr: w.addr(s.Family, 12), NodeName: []string{"", here, "there"}[w.rand.IntN(3)],
			Ready: w.rand.IntN(4) > 0, Terminating: w.rand.IntN(4) == 0,
		})
	}
	return s
}

// step changes one to three objects, and returns the changes.
func (w *world) step() model.Changes {
	c := model.Changes{Services: map[model.ObjectKey]*model.Service{}, EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{}}
	for range 1 + w.rand.IntN(3) {
		svc, slice := w.service(), w.slice()
		switch w.rand.IntN(8) {
		case 0, 1, 2:
			c.Services[svc.Key], w.services[svc.Key] = svc, svc
		case 3:
			c.Services[svc.Key] = nil
			delete(w.services, svc.Key)
		case 4, 5, 6:
			c.EndpointSlices[slice.Key], w.slices[slice.Key] = slice, slice
		case 7:
			c.EndpointSlices[slice.Key] = nil
			delete(w.slices, slice.Key)
		}
	}
	return c
}

// resolved is what a family must have in the end, from all objects at once.
func (w *world) resolved(f model.Family) map[string]bool {
	out := map[string]bool{}
	for key, svc := range w.services {
		var of []*model.EndpointSlice
		for _, s := range w.slices {
			if s.Service == key {
				of = append(of, s)
			}
		}
		for _, p := range Resolve(svc, of, Locality{Node: here}, f) {
			out[portText(p)] = true
		}
	}
	return out
}

// texts returns ports in the form of resolved.
func texts(ports map[model.ServicePortName]*model.ServicePort) map[string]bool {
	out := map[string]bool{}
	for _, p := range ports {
		out[portText(p)] = true
	}
	return out
}

// walk is one family of a random walk: a loop whose steps are called by hand,
// and a mode that has what Changed told it to take over, no more.
type walk struct {
	*fakeMode
	world *world
	loop  *Loop
	// seen is the last snapshot, and owed are the names that were different in
	// any of the snapshots since the last Sync that succeeded.
	seen *model.Snapshot
	owed map[model.ServicePortName]bool
	// fails is set where the next Sync is to fail; it then does some of what it
	// is asked for all the same.
	fails bool
	err   error
}

func (w *walk) Sync(_ context.Context, d Desired) (Report, error) {
	for name := range differing(w.seen, d.Snapshot) {
		w.owed[name] = true
	}
	w.seen = d.Snapshot
	if want := slices.SortedFunc(maps.Keys(w.owed), model.ServicePortName.Compare); !slices.Equal(want, d.Changed) {
		w.err = fmt.Errorf("changed names differ (-want +got):\n%s", cmp.Diff(want, d.Changed))
	}
	if !w.fails {
		w.owed = map[model.ServicePortName]bool{}
		w.apply(d, d.Changed)
		return Report{}, nil
	}
	for _, name := range d.Changed {
		if w.world.rand.IntN(2) == 0 {
			w.apply(d, []model.ServicePortName{name})
		}
	}
	return Report{}, errRefused
}

// differing returns the names of the ports that are not the same in a and b.
func differing(a, b *model.Snapshot) map[model.ServicePortName]bool {
	out := map[model.ServicePortName]bool{}
	for p := range a.All() {
		out[p.Name] = true
	}
	for p := range b.All() {
		if old := a.Get(p.Name); old != nil && old.Equal(p) {
			delete(out, p.Name)
		} else {
			out[p.Name] = true
		}
	}
	return out
}

// check compares what the mode has, after a Sync that succeeded, with what all
// the objects together ask for, and looks for what the loop forgot to forget.
func (w *walk) check() error {
	if w.err != nil {
		return w.err
	}
	want := w.world.resolved(w.loop.Family)
	if got := texts(w.ports); !maps.Equal(want, got) {
		return fmt.Errorf("ports differ (-want +got):\n%s", cmp.Diff(want, got))
	}
	if w.loop.snapshot.Len() != len(w.ports) || len(w.loop.changed) > 0 {
		return fmt.Errorf("got %d ports in the snapshot and %d changed, want %d and none", w.loop.snapshot.Len(), len(w.loop.changed), len(w.ports))
	}
	owners := map[model.ObjectKey]int{}
	for name := range w.ports {
		owners[name.Service]++
	}
	for key, ports := range w.loop.ports {
		if owners[key] != len(ports) || len(ports) == 0 {
			return fmt.Errorf("got %d ports for %v, want %d", len(ports), key, owners[key])
		}
		for _, p := range ports {
			if w.loop.snapshot.Get(p.Name) != p {
				return fmt.Errorf("got a second copy of %v", p.Name)
			}
		}
		delete(owners, key)
	}
	if len(owners) > 0 {
		return fmt.Errorf("got no ports for %v", owners)
	}
	return nil
}

// TestIncrementalEqualsFull changes objects at random; each family takes what
// there is now and then, and fails now and then.
func TestIncrementalEqualsFull(t *testing.T) {
	const steps = 3000
	for _, seed := range seeds(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			world := newWorld(seed)
			metrics := NewMetrics(prometheus.NewPedanticRegistry(), model.Families())
			health := newFakeHealth()
			tr := NewTracker(TrackerConfig{Families: model.Families(), Health: health, Metrics: metrics})
			var walks []*walk
			for _, f := range model.Families() {
				w := &walk{fakeMode: newFakeMode(), world: world, seen: model.NewSnapshot(), owed: map[model.ServicePortName]bool{}}
				w.loop = NewLoop(LoopConfig{Family: f, Mode: w, Tracker: tr, Health: health, Metrics: metrics, NodeName: here})
				walks = append(walks, w)
			}
			tr.Update(listed())
			ctx, checks := silent(t), 0
			for step := range steps {
				tr.Update(world.step())
				for _, w := range walks {
					if world.rand.IntN(3) > 0 && step < steps-1 {
						continue
					}
					w.fails = world.rand.IntN(3) == 0 && step < steps-1
					if w.loop.sync(ctx, request{}); w.fails {
						continue
					}
					if checks++; w.check() != nil {
						t.Fatalf("step %d, %v (-seed=%d to see it again): %v", step, w.loop.Family, seed, w.check())
					}
				}
			}
			if checks < steps/3 {
				t.Errorf("got %d checks, want at least %d", checks, steps/3)
			}
		})
	}
}

// TestLoopAtRandom runs a loop through a day of changes, of syncs that take
// their time or fail, and of checks, and then looks whether each sync was at
// its time, for a reason, and whether nothing was forgotten.
func TestLoopAtRandom(t *testing.T) {
	for _, seed := range seeds(30) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			world := newWorld(seed)
			minSync := []time.Duration{0, 0, time.Second}[world.rand.IntN(3)]
			outcomes := rand.New(rand.NewPCG(seed, 1)) // used by the loop's goroutine
			inBubble(t, minSync, 30*time.Second, nil, func(t *testing.T, r *rig) {
				r.mode.setPlan(func(int) outcome {
					out := took([]time.Duration{0, ms, 100 * ms, 3 * time.Second}[outcomes.IntN(4)])
					if outcomes.IntN(3) == 0 {
						out.err = errRefused
					}
					return out
				})
				var events []time.Duration
				r.at(12345, listed())
				for range 300 {
					gap := []time.Duration{ms, 50 * ms, time.Second, 40 * time.Second}[world.rand.IntN(4)]
					r.at(r.now() + 1 + time.Duration(world.rand.Int64N(int64(gap))))
					queued, _ := r.health.told(model.IPv4)
					r.at(r.now(), world.step())
					if after, _ := r.health.told(model.IPv4); len(after) > len(queued) {
						events = append(events, r.now())
					}
				}
				r.mode.setPlan(func(int) outcome { return outcome{} })
				r.at(r.now() + time.Minute)
				if want, got := world.resolved(model.IPv4), texts(r.mode.ports); !maps.Equal(want, got) {
					t.Errorf("ports differ (-want +got):\n%s", cmp.Diff(want, got))
				}
				checkTimes(t, r.calls(), events, minSync)
			})
			if t.Failed() {
				t.Logf("-seed=%d to see it again", seed)
			}
		})
	}
}

// checkTimes checks each sync against the one before it: it comes as soon as the
// pause is over and there is an event or a check to do, or a failure to make
// good, and not for anything else.
func checkTimes(t *testing.T, calls []call, events []time.Duration, minSync time.Duration) {
	t.Helper()
	const period, begin = 30 * time.Second, 12345
	failures, done := 0, time.Duration(begin) // the first tick counts from the first sync
	owed, strain, synced := false, time.Duration(0), false
	for i, c := range calls[1:] {
		last := calls[i]
		took := last.end - last.start
		rest := took * (1 + strain)
		if last.err == nil && (!synced || last.desired.Verify && len(last.desired.Changed) == 0) {
			rest = 0
		}
		synced = synced || last.err == nil
		rest = max(rest, minSync-took)
		earliest, latest := last.end+rest, last.end+rest
		if failures++; last.err == nil {
			failures = 0
		} else {
			bounds := pauseBounds[min(failures, len(pauseBounds))-1]
			earliest, latest = max(earliest, last.end+bounds.min), max(latest, last.end+bounds.max)
			owed = owed || last.desired.Verify
		}
		decision := earliest
		if last.err != nil {
			decision = c.start // the jitter is not known
		}
		if slices.ContainsFunc(events, func(e time.Duration) bool { return e > last.start && e <= decision }) {
			strain = min(strain+1, maxStrain)
		} else {
			strain = 0
		}
		tick := done + period
		next := slices.IndexFunc(events, func(e time.Duration) bool { return e > last.start })
		if failures == 0 {
			owed = false
			due := tick
			if next >= 0 {
				due = min(due, events[next])
			}
			earliest, latest = max(earliest, due), max(latest, due)
		}
		if c.start < earliest || c.start > latest {
			t.Fatalf("got sync %d %v after %v, want it at %v to %v", i+1, c, last, earliest, latest)
		}
		if want := owed || c.start >= tick; c.desired.Verify != want {
			t.Fatalf("got sync %d %v after %v, want a check %t", i+1, c, last, want)
		}
		for done+period <= c.start {
			done += period
		}
	}
}
