// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
)

var errRefused = errors.New("the kernel says no")

// outcome is how a Sync goes.
type outcome struct {
	takes  time.Duration
	err    error
	report Report
	// deaf is set where a Sync goes on although its context has ended.
	deaf bool
}

func failed(takes time.Duration) outcome { return outcome{takes: takes, err: errRefused} }
func took(takes time.Duration) outcome   { return outcome{takes: takes} }

// call is a Sync that a fakeMode was asked for.
type call struct {
	start, end time.Duration // since the fakeMode was made
	desired    Desired
	err        error
}

// String writes a call as "1.5s a b keep verify settle failed": when it started, the
// names of Changed, and what was out of the ordinary.
func (c call) String() string {
	words := []string{c.start.String()}
	for _, name := range c.desired.Changed {
		words = append(words, nameText(name))
	}
	if len(c.desired.Changed) == 0 {
		words = append(words, "-")
	}
	for _, flag := range []struct {
		word string
		on   bool
	}{{"keep", !c.desired.Prune}, {"verify", c.desired.Verify}, {"settle", c.desired.Settle}, {"failed", c.err != nil}} {
		if flag.on {
			words = append(words, flag.word)
		}
	}
	return strings.Join(words, " ")
}

// fakeMode is a Mode that keeps only what Changed names, and nothing of a Sync
// that failed. Its calls go as planned and, after the plan, at once.
type fakeMode struct {
	t0   time.Time
	plan func(n int) outcome

	mu      sync.Mutex
	running bool
	calls   []call
	ports   map[model.ServicePortName]*model.ServicePort
}

func newFakeMode(plan ...outcome) *fakeMode {
	return &fakeMode{t0: time.Now(), ports: map[model.ServicePortName]*model.ServicePort{}, plan: func(n int) outcome {
		if n < len(plan) {
			return plan[n]
		}
		return outcome{}
	}}
}

// setPlan says how calls go from now on.
func (m *fakeMode) setPlan(plan func(n int) outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plan = plan
}

func (m *fakeMode) Sync(ctx context.Context, d Desired) (Report, error) {
	m.mu.Lock()
	if m.running {
		panic("Sync is called while it runs")
	}
	m.running = true
	out, start := m.plan(len(m.calls)), time.Since(m.t0)
	m.mu.Unlock()

	err := out.err
	if out.deaf {
		time.Sleep(out.takes)
	} else if out.takes > 0 && !sleep(ctx, out.takes) {
		err = fmt.Errorf("sync: %w", ctx.Err())
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = false
	m.calls = append(m.calls, call{start: start, end: time.Since(m.t0), desired: d, err: err})
	if err == nil {
		m.apply(d, d.Changed)
	}
	return out.report, err
}

// apply takes over the ports that are named.
func (m *fakeMode) apply(d Desired, names []model.ServicePortName) {
	for _, name := range names {
		if p := d.Snapshot.Get(name); p != nil {
			m.ports[name] = p
		} else {
			delete(m.ports, name)
		}
	}
}

// fakeHealth writes down what it is told, by family.
type fakeHealth struct {
	t0 time.Time

	mu       sync.Mutex
	queued   map[model.Family][]time.Duration
	synced   map[model.Family][]time.Duration
	eligible []bool
}

func newFakeHealth() *fakeHealth {
	return &fakeHealth{t0: time.Now(), queued: map[model.Family][]time.Duration{}, synced: map[model.Family][]time.Duration{}}
}

func (h *fakeHealth) Queued(f model.Family, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queued[f] = append(h.queued[f], t.Sub(h.t0))
}

func (h *fakeHealth) Synced(f model.Family, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.synced[f] = append(h.synced[f], t.Sub(h.t0))
}

func (h *fakeHealth) SetNodeEligible(yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eligible = append(h.eligible, yes)
}

// told returns what was queued and synced for a family so far.
func (h *fakeHealth) told(f model.Family) (queued, synced []time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(queued, h.queued[f]...), append(synced, h.synced[f]...)
}

// rig is a Tracker and a running Loop with a fakeMode, in a synctest bubble.
type rig struct {
	t       *testing.T
	t0      time.Time
	health  *fakeHealth
	reg     *prometheus.Registry
	tracker *Tracker
	mode    *fakeMode
	loop    *Loop
	stop    context.CancelFunc
	stopped chan error
}

// inBubble runs f with a rig for IPv4 whose loop has the periods given and is
// stopped at the end. Time starts at 0 and moves only while all are waiting.
func inBubble(t *testing.T, minSync, period time.Duration, plan []outcome, f func(*testing.T, *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, minSync, period, plan)
		r.start()
		defer r.end()
		f(t, r)
	})
}

// newRig returns a rig whose loop does not run yet.
func newRig(t *testing.T, minSync, period time.Duration, plan []outcome) *rig {
	r := &rig{t: t, t0: time.Now(), health: newFakeHealth(), reg: prometheus.NewPedanticRegistry(), mode: newFakeMode(plan...)}
	metrics := NewMetrics(r.reg, model.Families())
	r.tracker = NewTracker(TrackerConfig{Families: model.Families(), Health: r.health, Metrics: metrics})
	r.loop = NewLoop(LoopConfig{
		Family: model.IPv4, Mode: r.mode, Tracker: r.tracker, Health: r.health, Metrics: metrics,
		NodeName: here, MinSyncPeriod: minSync, SyncPeriod: period,
	})
	return r
}

// start runs the loop, without its log.
func (r *rig) start() {
	ctx, stop := context.WithCancel(silent(r.t))
	r.stop, r.stopped = stop, make(chan error, 1)
	go func() { r.stopped <- r.loop.Run(ctx) }()
}

// end stops the loop, and checks that it returns nil.
func (r *rig) end() {
	r.stop()
	if err := <-r.stopped; err != nil {
		r.t.Errorf("Run: got %v, want nil", err)
	}
	r.stopped <- nil // for the next to ask
}

// at waits until d and delivers the changes.
func (r *rig) at(d time.Duration, changes ...model.Changes) {
	r.t.Helper()
	if late := r.now() - d; late > 0 {
		r.t.Fatalf("it is %v already, %v late", r.now(), late)
	}
	time.Sleep(d - r.now())
	for _, c := range changes {
		r.tracker.Update(c)
	}
	synctest.Wait()
}

// now is the time since the rig was made.
func (r *rig) now() time.Duration { return time.Since(r.t0) }

// calls returns the calls of the mode that have ended.
func (r *rig) calls() []call {
	synctest.Wait()
	r.mode.mu.Lock()
	defer r.mode.mu.Unlock()
	return append([]call(nil), r.mode.calls...)
}

// want checks the calls of the mode that have ended.
func (r *rig) want(want ...string) {
	r.t.Helper()
	var got []string
	for _, c := range r.calls() {
		got = append(got, c.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("got syncs that differ (-want +got):\n%s", diff)
	}
}

// wantKernel checks which Services the mode has.
func (r *rig) wantKernel(want ...string) {
	r.t.Helper()
	synctest.Wait()
	r.mode.mu.Lock()
	defer r.mode.mu.Unlock()
	got := map[string]bool{}
	for _, p := range r.mode.ports {
		got[portText(p)] = true
	}
	wanted := map[string]bool{}
	for _, text := range want {
		wanted[text] = true
	}
	if !maps.Equal(got, wanted) {
		r.t.Errorf("got ports that differ (-want +got):\n%s", cmp.Diff(wanted, got))
	}
}

// silent returns a context without a log.
func silent(t *testing.T) context.Context { return klog.NewContext(t.Context(), klog.Logger{}) }

// add is the creation, or a change, of a Service named name; each version has
// another port number.
func add(name string, version int) model.Changes {
	return services(service(name, "10.96.0.1", fmt.Sprintf("%d/TCP", version)))
}
