// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
)

func portName(i int) ServicePortName {
	return ServicePortName{Service: ObjectKey{"shop", fmt.Sprint("svc-", i)}, Port: "http", Protocol: TCP}
}

// checkSnapshot compares what a snapshot's methods say with a plain map.
func checkSnapshot(t *testing.T, s *Snapshot, want map[ServicePortName]*ServicePort) {
	t.Helper()
	if s.Len() != len(want) {
		t.Fatalf("got length %d, want %d", s.Len(), len(want))
	}
	got := map[ServicePortName]*ServicePort{}
	for p := range s.All() {
		if got[p.Name] != nil {
			t.Fatalf("All yields %v twice", p.Name)
		}
		got[p.Name] = p
	}
	if !maps.Equal(got, want) {
		t.Fatalf("got %d ports from All that are not the %d wanted", len(got), len(want))
	}
	for name, p := range want {
		if s.Get(name) != p {
			t.Fatalf("got %v for %v, want %v", s.Get(name), name, p)
		}
	}
}

func TestSnapshotZeroValueIsEmpty(t *testing.T) {
	for name, s := range map[string]*Snapshot{"zero": {}, "new": NewSnapshot(), "emptied": NewSnapshot().With(nil)} {
		t.Run(name, func(t *testing.T) {
			checkSnapshot(t, s, nil)
			if got := s.Get(portName(1)); got != nil {
				t.Errorf("got %v from an empty snapshot", got)
			}
			p := &ServicePort{Name: portName(1)}
			full := s.With(map[ServicePortName]*ServicePort{p.Name: p, portName(2): nil})
			checkSnapshot(t, full, map[ServicePortName]*ServicePort{p.Name: p})
			checkSnapshot(t, s, nil)
			checkSnapshot(t, full.With(map[ServicePortName]*ServicePort{p.Name: nil}), nil)
		})
	}
}

func TestSnapshotAllStops(t *testing.T) {
	changes := map[ServicePortName]*ServicePort{}
	for i := range 100 {
		changes[portName(i)] = &ServicePort{Name: portName(i)}
	}
	seen := 0
	for range NewSnapshot().With(changes).All() {
		if seen++; seen == 7 {
			break
		}
	}
	if seen != 7 {
		t.Errorf("got %d ports, want to stop after 7", seen)
	}
}

// TestSnapshotAgainstMap makes random changes to a snapshot and to a map, and
// checks every version again once all the others were made from it. There are
// more names than shards, so that shards hold several and become empty.
func TestSnapshotAgainstMap(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			versions := []*Snapshot{NewSnapshot()}
			want := []map[ServicePortName]*ServicePort{{}}
			for range 60 {
				from := len(versions) - 1
				if r.IntN(4) == 0 { // a second one from an old one
					from = r.IntN(len(versions))
				}
				changes := map[ServicePortName]*ServicePort{}
				next := maps.Clone(want[from])
				for range r.IntN(100) {
					name := portName(r.IntN(2 * snapshotShards))
					if changes[name] = nil; r.IntN(3) > 0 {
						changes[name] = &ServicePort{Name: name}
					}
				}
				for name, p := range changes {
					if next[name] = p; p == nil {
						delete(next, name)
					}
				}
				versions, want = append(versions, versions[from].With(changes)), append(want, next)
			}
			for i := range versions {
				checkSnapshot(t, versions[i], want[i])
			}
		})
	}
}

// TestSnapshotIsReadWhileNewOnesAreMade is for the race detector.
func TestSnapshotIsReadWhileNewOnesAreMade(t *testing.T) {
	changes, want := map[ServicePortName]*ServicePort{}, map[ServicePortName]*ServicePort{}
	for i := range 2 * snapshotShards {
		changes[portName(i)] = &ServicePort{Name: portName(i)}
	}
	maps.Copy(want, changes)
	old := NewSnapshot().With(changes)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			next := old
			for i := range 200 {
				next = next.With(map[ServicePortName]*ServicePort{portName(i): nil, portName(-i - 1): {Name: portName(-i - 1)}})
			}
		})
		wg.Go(func() { checkSnapshot(t, old, want) })
	}
	wg.Wait()
	checkSnapshot(t, old, want)
}

// FuzzSnapshot takes its input as a program: each byte sets a port, or drops
// it, and 0xff ends a step.
func FuzzSnapshot(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0xff, 0x81, 2, 0xff})
	f.Add([]byte{0xff, 0xff, 0x80, 0, 0x80})
	f.Fuzz(func(t *testing.T, program []byte) {
		before, snapshot := NewSnapshot(), NewSnapshot()
		want := map[ServicePortName]*ServicePort{}
		wantBefore := maps.Clone(want)
		changes := map[ServicePortName]*ServicePort{}
		for _, b := range append(program, 0xff) {
			name := portName(int(b & 0x7f))
			switch {
			case b == 0xff:
				before, snapshot = snapshot, snapshot.With(changes)
				checkSnapshot(t, before, wantBefore)
				checkSnapshot(t, snapshot, want)
				wantBefore, changes = maps.Clone(want), map[ServicePortName]*ServicePort{}
			case b >= 0x80:
				changes[name] = nil
				delete(want, name)
			default:
				changes[name] = &ServicePort{Name: name}
				want[name] = changes[name]
			}
		}
	})
}

func BenchmarkSnapshotWith(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			changes := map[ServicePortName]*ServicePort{}
			for i := range n {
				changes[portName(i)] = &ServicePort{Name: portName(i)}
			}
			s := NewSnapshot().With(changes)
			one := map[ServicePortName]*ServicePort{portName(1): {Name: portName(1)}}
			b.ReportAllocs()
			for b.Loop() {
				s = s.With(one)
			}
		})
	}
}
