// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
)

// fakeTables is what a kernel would tell.
type fakeTables struct {
	mu     sync.Mutex
	infos  map[ruleset.Table]info
	err    error
	closed bool
}

func (f *fakeTables) Infos() (map[ruleset.Table]info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.infos), f.err
}

func (f *fakeTables) Close() error { f.closed = true; return nil }

// add adds entries to the nat table, or removes some.
func (f *fakeTables) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.infos[ruleset.NAT]
	i.Entries += uint32(n)
	i.Size += uint32(n) * 200
	f.infos[ruleset.NAT] = i
}

// set sets what the kernel tells of a table.
func (f *fakeTables) set(t ruleset.Table, i info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.infos[t] = i
}

// fail makes the kernel tell nothing.
func (f *fakeTables) fail() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = errors.New("no")
}

// listing is how long reading everything takes in tests.
const listing = time.Second

// legacyTest runs a test of a watcher that knows everything, with its clock.
func legacyTest(t *testing.T, test func(t *testing.T, w *Legacy, f *fakeTables)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fakeTables{infos: map[ruleset.Table]info{ruleset.NAT: {Entries: 1000, Size: 200000}}}
		w := newLegacy(testConfig(kerneltest.Setup{Variant: ruleset.Legacy}), f)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.Run(ctx) }()
		if got := w.Take(); !got.All {
			t.Fatalf("the first Take() = %v, want All", got)
		}
		w.Listed(listing)
		test(t, w, f)
		cancel()
		if err := <-ended; err != nil || !f.closed {
			t.Errorf("Run() = %v, closed = %t", err, f.closed)
		}
		w.Listed(listing)
		if !w.Take().All {
			t.Error("after Run() Take() is not All")
		}
	})
}

// after returns how long it takes until everything is to be read.
func after(t *testing.T, w *Legacy) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		<-w.Wake()
		if w.Take().All {
			return time.Since(start)
		}
	}
}

// TestLegacyRest: how soon everything is read after a change.
func TestLegacyRest(t *testing.T) {
	const audit = restAudit * listing
	for _, test := range []struct {
		name string
		do   func(w *Legacy, f *fakeTables)
		want time.Duration
	}{
		{"nothing", func(*Legacy, *fakeTables) {}, audit},
		{"added", func(_ *Legacy, f *fakeTables) { f.add(1) }, restLate * listing},
		{"removed", func(_ *Legacy, f *fakeTables) { f.add(-1) }, restSoon * listing},
		{"only the size", func(_ *Legacy, f *fakeTables) { f.set(ruleset.NAT, info{Entries: 1000, Size: 1}) }, restLate * listing},
		{"only the chains", func(_ *Legacy, f *fakeTables) {
			f.set(ruleset.NAT, info{Entries: 1000, Size: 200000, HookEntry: [5]uint32{1, 2}})
		}, restLate * listing},
		{"added and removed again", func(w *Legacy, f *fakeTables) { f.add(1); w.Take(); f.add(-1) }, restLate * listing},
		{"added, and more removed", func(w *Legacy, f *fakeTables) { f.add(1); w.Take(); f.add(-2) }, restSoon * listing},
		{"another table", func(_ *Legacy, f *fakeTables) { f.set(ruleset.Filter, info{Entries: 4}) }, restLate * listing},
		{"a table that does not matter", func(_ *Legacy, f *fakeTables) { f.set(ruleset.Mangle, info{Entries: 6}) }, audit},
		{"the table is gone", func(_ *Legacy, f *fakeTables) { f.set(ruleset.NAT, info{}) }, restSoon * listing},
		{"not to be seen", func(_ *Legacy, f *fakeTables) { f.fail() }, restLate * listing},
	} {
		t.Run(test.name, func(t *testing.T) {
			legacyTest(t, func(t *testing.T, w *Legacy, f *fakeTables) {
				test.do(w, f)
				if got := after(t, w); got != test.want {
					t.Errorf("everything is to be read after %s, want %s", got, test.want)
				}
			})
		})
	}
}

// TestLegacyAudit: how soon everything is read without a change.
func TestLegacyAudit(t *testing.T) {
	for _, test := range []struct{ took, want time.Duration }{
		{time.Millisecond, auditLeast},
		{time.Second, 1000 * time.Second},
		{3200 * time.Millisecond, 3200 * time.Second},
		{20 * time.Second, auditMost},
	} {
		t.Run(test.took.String(), func(t *testing.T) {
			legacyTest(t, func(t *testing.T, w *Legacy, _ *fakeTables) {
				w.Take()
				w.Listed(test.took)
				if got := after(t, w); got != test.want {
					t.Errorf("everything is to be read after %s, want %s", got, test.want)
				}
			})
		})
	}
}

// TestLegacyWindow: a restore of ours is no change, if it does what it says.
func TestLegacyWindow(t *testing.T) {
	const audit = restAudit * listing
	growth := map[ruleset.Table]ruleset.Growth{ruleset.NAT: {Chains: 2, Rules: 3}}
	shrinks := map[ruleset.Table]ruleset.Growth{ruleset.NAT: {Chains: -2, Rules: -3}}
	for _, test := range []struct {
		name   string
		before int // entries that others add before Begin
		during int // entries that come in between
		end    ruleset.Committed
		want   time.Duration
	}{
		{"ours", 0, 7, ruleset.Committed{OK: true, Growth: growth}, audit},
		{"ours, and it shrinks", 0, -7, ruleset.Committed{OK: true, Growth: shrinks}, audit},
		{"more", 0, 8, ruleset.Committed{OK: true, Growth: growth}, restLate * listing},
		{"fewer", 0, 6, ruleset.Committed{OK: true, Growth: growth}, restSoon * listing},
		{"not counted", 0, -100, ruleset.Committed{OK: true}, audit},
		{"nothing, and others' rules went", 0, -1, ruleset.Committed{OK: true, Growth: map[ruleset.Table]ruleset.Growth{}}, restSoon * listing},
		{"failed", 0, 0, ruleset.Committed{}, restSoon * listing},
		{"others before", 5, 7, ruleset.Committed{OK: true, Growth: growth}, restLate * listing},
	} {
		t.Run(test.name, func(t *testing.T) {
			legacyTest(t, func(t *testing.T, w *Legacy, f *fakeTables) {
				f.add(test.before)
				w.Begin()
				f.add(test.during)
				time.Sleep(2 * interval) // nobody looks meanwhile
				w.End(test.end)
				if got := after(t, w) + 2*interval; got != test.want {
					t.Errorf("everything is to be read after %s, want %s", got, test.want)
				}
			})
		})
	}
}

// TestLegacyFloor: after a restore that removed much, others' additions are
// measured by what is left.
func TestLegacyFloor(t *testing.T) {
	legacyTest(t, func(t *testing.T, w *Legacy, f *fakeTables) {
		w.Begin()
		f.add(-500)
		w.End(ruleset.Committed{OK: true})
		f.add(1)
		if got, want := after(t, w), restLate*listing; got != want {
			t.Errorf("everything is to be read after %s, want %s", got, want)
		}
	})
}

// TestLegacyWhileListing: what changes while everything is being read is read
// again.
func TestLegacyWhileListing(t *testing.T) {
	legacyTest(t, func(t *testing.T, w *Legacy, f *fakeTables) {
		w.Take()
		f.add(1)
		time.Sleep(2 * interval)
		w.Listed(listing)
		if got, want := after(t, w), restLate*listing; got != want {
			t.Errorf("everything is to be read after %s, want %s", got, want)
		}
	})
}
