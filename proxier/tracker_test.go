// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// A Tracker is what sources deliver to. It says so here and not beside the
// type, so that no mode depends on the sources and on what they are made of.
var _ source.Sink = (*Tracker)(nil)

// newTracker returns a Tracker for both families, with its health and metrics.
func newTracker() (*Tracker, *fakeHealth, *prometheus.Registry) {
	health, reg := newFakeHealth(), prometheus.NewPedanticRegistry()
	return NewTracker(TrackerConfig{
		Families: model.Families(), Health: health, Metrics: NewMetrics(reg, model.Families()),
	}), health, reg
}

// batchText writes a batch as "a: 10.96.0.1 80/TCP [a-1 a-2]" for each Service,
// with "gone" where there is none, and its slices.
func batchText(b Batch) []string {
	var out []string
	for key, st := range b.Services {
		text := "gone"
		if st.Service != nil {
			text = fmt.Sprint(st.Service.ClusterIPs[0])
		}
		var names []string
		for _, s := range st.Slices {
			names = append(names, s.Key.Name)
		}
		slices.Sort(names)
		out = append(out, fmt.Sprintf("%s: %s %v", key.Name, text, names))
	}
	slices.Sort(out)
	return out
}

func wantBatch(t *testing.T, b Batch, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, batchText(b)); diff != "" {
		t.Errorf("got a batch that differs (-want +got):\n%s", diff)
	}
}

// awake takes the token of a family, if there is one.
func awake(tr *Tracker, f model.Family) bool { return received(tr.Wake(f)) }

// TestTrackerBatches takes a batch after each of the steps, which build on each
// other. What has been taken wakes nobody any more.
func TestTrackerBatches(t *testing.T) {
	tr, _, _ := newTracker()
	tr.Update(with(listed(), services(service("a", "10.96.0.1", "80/TCP"), service("b", "10.96.0.2", "80/TCP"))))
	wantBatch(t, tr.Take(model.IPv4), "a: 10.96.0.1 []", "b: 10.96.0.2 []")
	for _, step := range []struct {
		name    string
		changes []model.Changes
		want    []string
	}{
		{"nothing", nil, nil},
		{"a slice", []model.Changes{slicesOf(slice("s1", "a", "80/TCP", "10.1.0.1"))}, []string{"a: 10.96.0.1 [s1]"}},
		{"a second slice", []model.Changes{slicesOf(slice("s2", "a", "80/TCP", "10.1.0.2"))}, []string{"a: 10.96.0.1 [s1 s2]"}},
		{"a slice moves", []model.Changes{slicesOf(slice("s2", "b", "80/TCP", "10.1.0.2"))}, []string{"a: 10.96.0.1 [s1]", "b: 10.96.0.2 [s2]"}},
		{"and back, and there", []model.Changes{slicesOf(slice("s2", "a", "80/TCP", "10.1.0.2")), slicesOf(slice("s2", "b", "80/TCP", "10.1.0.2"))},
			[]string{"a: 10.96.0.1 [s1]", "b: 10.96.0.2 [s2]"}},
		{"to a Service that is not there", []model.Changes{slicesOf(slice("s2", "c", "80/TCP", "10.1.0.2"))},
			[]string{"b: 10.96.0.2 []", "c: gone [s2]"}},
		{"which then is", []model.Changes{services(service("c", "10.96.0.3", "80/TCP"))}, []string{"c: 10.96.0.3 [s2]"}},
		{"a Service goes before its slices", []model.Changes{services("-c")}, []string{"c: gone [s2]"}},
		{"and comes back", []model.Changes{services(service("c", "10.96.0.4", "80/TCP"))}, []string{"c: 10.96.0.4 [s2]"}},
		{"a slice goes", []model.Changes{slicesOf("-s2")}, []string{"c: 10.96.0.4 []"}},
		{"again", []model.Changes{slicesOf("-s2")}, nil},
		{"both in one step", []model.Changes{with(services(service("d", "10.96.0.5", "80/TCP")), slicesOf(slice("s3", "d", "80/TCP", "10.1.0.3"), "-s1"))},
			[]string{"a: 10.96.0.1 []", "d: 10.96.0.5 [s3]"}},
		{"a Service goes", []model.Changes{with(services("-d"), slicesOf("-s3"))}, []string{"d: gone []"}},
		{"again", []model.Changes{services("-d")}, nil},
		{"a Service comes and goes", []model.Changes{services(service("e", "10.96.0.6", "80/TCP")), services("-e")}, []string{"e: gone []"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			for _, c := range step.changes {
				tr.Update(c)
			}
			if got, want := awake(tr, model.IPv4), step.want != nil; got != want {
				t.Errorf("got woken %t, want %t", got, want)
			}
			wantBatch(t, tr.Take(model.IPv4), step.want...)
		})
	}
	tr.Update(with(services("-a", "-b", "-c"), slicesOf("-s1")))
	if n := len(tr.objects) + len(tr.slices); n != 0 {
		t.Errorf("got %d entries that are left without objects", n)
	}
}

func TestTrackerFamilies(t *testing.T) {
	tr, health, _ := newTracker()
	tr.Update(with(listed(), services(service("a", "10.96.0.1 fd00::1", "80/TCP"))))
	wantBatch(t, tr.Take(model.IPv4), "a: 10.96.0.1 []")
	tr.Update(services(service("b", "fd00::2 10.96.0.2", "80/TCP")))
	wantBatch(t, tr.Take(model.IPv4), "b: fd00::2 []")
	wantBatch(t, tr.Take(model.IPv4))
	// What one family has taken still waits for the other.
	wantBatch(t, tr.Take(model.IPv6), "a: 10.96.0.1 []", "b: fd00::2 []")
	wantBatch(t, tr.Take(model.IPv6))

	for _, step := range []struct {
		name     string
		changes  model.Changes
		ip4, ip6 bool
	}{
		{"an IPv4 slice", slicesOf(slice("a4", "a", "80/TCP", "10.1.0.1")), true, false},
		{"an IPv6 slice", slicesOf(slice("a6", "a", "80/TCP", "fd01::1")), false, true},
		{"a slice of the other family under the same name", slicesOf(slice("a6", "a", "80/TCP", "10.1.0.2")), true, true},
		{"an IPv4 slice that moves", slicesOf(slice("a6", "b", "80/TCP", "10.1.0.2")), true, false},
		{"an IPv4 slice goes", slicesOf("-a6"), true, false},
		{"an IPv4 Service", services(service("c", "10.96.0.3", "80/TCP")), true, false},
		{"its change", services(service("c", "10.96.0.3", "81/TCP")), true, false},
		{"it gets a second family", services(service("c", "10.96.0.3 fd00::3", "81/TCP")), true, true},
		{"and loses it", services(service("c", "10.96.0.3", "81/TCP")), true, true},
		{"it goes", services("-c"), true, false},
	} {
		t.Run(step.name, func(t *testing.T) {
			before := map[model.Family]int{}
			for _, f := range model.Families() {
				queued, _ := health.told(f)
				before[f] = len(queued)
			}
			tr.Update(step.changes)
			for f, want := range map[model.Family]bool{model.IPv4: step.ip4, model.IPv6: step.ip6} {
				queued, _ := health.told(f)
				if got := len(queued) > before[f]; got != want {
					t.Errorf("%v: got queued %t, want %t", f, got, want)
				}
				if got := awake(tr, f); got != want {
					t.Errorf("%v: got woken %t, want %t", f, got, want)
				}
				if got := len(tr.Take(f).Services) > 0; got != want {
					t.Errorf("%v: got work %t, want %t", f, got, want)
				}
			}
		})
	}
}

func TestTrackerWakes(t *testing.T) {
	tr, health, _ := newTracker()
	check := func(what string, want bool) {
		t.Helper()
		for _, f := range model.Families() {
			if got := awake(tr, f); got != want {
				t.Errorf("%s: got %v woken %t, want %t", what, f, got, want)
			}
		}
	}
	ds := service("a", "10.96.0.1 fd00::1", "80/TCP")
	check("at the start", false)
	tr.Update(services(ds))
	tr.Update(model.Changes{Status: &model.SourceStatus{Complete: true}})
	check("before all is listed", false)
	wantBatch(t, tr.Take(model.IPv4)) // which does not lose what waits
	if queued, _ := health.told(model.IPv4); len(queued) > 0 {
		t.Errorf("got work queued at %v before all is listed", queued)
	}
	tr.Update(listed())
	check("listed", true)
	if b := tr.Take(model.IPv4); !b.Status.Listed || !b.Status.Complete {
		t.Errorf("got status %v, want listed and complete", b.Status)
	}
	tr.Update(listed())
	check("the same status", false)
	tr.Update(model.Changes{})
	tr.Update(model.Changes{Node: &model.NodeChange{Node: &model.Node{Name: here}}})
	check("nothing but a Node", false)
	tr.Update(incomplete())
	check("another status", true)
	if b := tr.Take(model.IPv4); b.Status.Complete || len(b.Services) > 0 {
		t.Errorf("got %v, want nothing but the status", b)
	}
	tr.Update(services(ds))
	tr.Update(services(ds))
	check("twice is", true)
	check("one token", false)
}

func TestTrackerNodeEligible(t *testing.T) {
	for _, tc := range []struct {
		name string
		node *model.Node
		want bool
	}{
		{"there", &model.Node{Name: here}, true},
		{"gone", nil, false},
		{"being deleted", &model.Node{Name: here, Deleting: true}, false},
		{"to be deleted", &model.Node{Name: here, ToBeDeleted: true}, false},
		{"both", &model.Node{Name: here, Deleting: true, ToBeDeleted: true}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr, health, _ := newTracker()
			tr.Update(model.Changes{}) // says nothing of the node
			tr.Update(model.Changes{Node: &model.NodeChange{Node: tc.node}})
			if !slices.Equal(health.eligible, []bool{tc.want}) {
				t.Errorf("got eligible %v, want %t once", health.eligible, tc.want)
			}
		})
	}
}

func TestTrackerTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, _, _ := newTracker()
		start := time.Now()
		at := func(name, svc, ip string, trigger time.Duration) model.Changes {
			return slicesOf(triggered(slice(name, svc, "80/TCP", ip), start.Add(trigger)))
		}
		check := func(what string, f model.Family, want ...time.Duration) {
			t.Helper()
			var got []time.Duration
			for _, trigger := range tr.Take(f).Triggers {
				got = append(got, trigger.Sub(start))
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: got triggers of %v that differ (-want +got):\n%s", what, f, diff)
			}
		}
		tr.Update(with(services(service("a", "10.96.0.1 fd00::1", "80/TCP")), at("s1", "a", "10.1.0.1", 1)))
		check("before all is listed", model.IPv4)
		tr.Update(listed())
		check("what waited for it", model.IPv4, 1)
		tr.Update(at("old", "a", "10.1.0.9", -time.Hour))
		tr.Update(at("now", "a", "10.1.0.8", 0))
		tr.Update(slicesOf(slice("none", "a", "80/TCP", "10.1.0.7")))
		check("what this process could not have been faster at", model.IPv4)
		tr.Update(at("s1", "a", "10.1.0.2", 2))
		tr.Update(at("s2", "a", "10.1.0.3", 3))
		tr.Update(at("s6", "a", "fd01::1", 4))
		check("each in its family", model.IPv4, 2, 3)
		check("each in its family", model.IPv6, 4)
		check("once", model.IPv4)
		check("once", model.IPv6)
		tr.Update(at("s1", "a", "10.1.0.4", 2))
		check("a change for another reason", model.IPv4)
		tr.Update(at("s1", "a", "10.1.0.4", 5))
		tr.Update(at("s1", "a", "10.1.0.5", 6))
		check("every one of those that are taken together", model.IPv4, 5, 6)
		tr.Update(slicesOf("-s1"))
		check("a deletion", model.IPv4)
	})
}

// TestTrackerTriggersAreBounded where nothing can be programmed for long, in
// the tracker as in the loop.
func TestTrackerTriggersAreBounded(t *testing.T) {
	tr, health, _ := newTracker()
	tr.Update(with(listed(), services(service("a", "10.96.0.1", "80/TCP"))))
	mode := newFakeMode()
	mode.setPlan(func(int) outcome { return failed(0) })
	loop := NewLoop(LoopConfig{Family: model.IPv4, Mode: mode, Tracker: tr, Health: health, Metrics: tr.metrics, NodeName: here})
	start := time.Now()
	for range 3 {
		for range 2 * maxTriggers {
			start = start.Add(1)
			tr.Update(slicesOf(triggered(slice("s", "a", "80/TCP", "10.1.0.1"), start.Add(time.Hour))))
		}
		if got := len(tr.views[model.IPv4].triggers); got > maxTriggers {
			t.Fatalf("got %d triggers in the tracker, want at most %d", got, maxTriggers)
		}
		loop.sync(silent(t), request{})
		if got := len(loop.triggers); got > maxTriggers {
			t.Fatalf("got %d triggers in the loop, want at most %d", got, maxTriggers)
		}
	}
}

// TestTrackerMetrics counts the changes that a family has yet to take, for
// the family that has the most of them.
func TestTrackerMetrics(t *testing.T) {
	tr, _, reg := newTracker()
	check := func(what string, serviceTotal, servicePending, sliceTotal, slicePending float64) {
		t.Helper()
		const p = "kubeproxy_sync_proxy_rules_"
		want := map[string]float64{p + "service_changes_total": serviceTotal, p + "service_changes_pending": servicePending,
			p + "endpoint_changes_total": sliceTotal, p + "endpoint_changes_pending": slicePending}
		got := map[string]float64{}
		for name := range want {
			got[name] = value(t, reg, name, "")
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: got metrics that differ (-want +got):\n%s", what, cmp.Diff(want, got))
		}
	}
	check("at the start", 0, 0, 0, 0)
	tr.Update(with(services(service("a", "10.96.0.1 fd00::1", "80/TCP")), slicesOf(slice("a4", "a", "80/TCP", "10.1.0.1"), slice("a6", "a", "80/TCP", "fd01::1"))))
	check("not listed", 1, 1, 2, 1)
	tr.Take(model.IPv4)
	check("nothing to take", 1, 1, 2, 1)
	tr.Update(with(listed(), slicesOf(slice("a4", "a", "80/TCP", "10.1.0.2"))))
	check("listed", 1, 1, 3, 2)
	tr.Take(model.IPv4)
	check("IPv4 has all, IPv6 has not", 1, 1, 3, 1)
	tr.Update(services(service("b", "10.96.0.2", "80/TCP")))
	check("IPv4 has to take one, IPv6 another", 2, 1, 3, 1)
	tr.Take(model.IPv6)
	check("IPv6 has all", 2, 1, 3, 0)
	tr.Take(model.IPv4)
	check("both have all", 2, 0, 3, 0)
	tr.Update(model.Changes{Node: &model.NodeChange{}})
	check("a Node", 2, 0, 3, 0)
}

// TestTrackerConcurrently has several sources and both families at work at
// once; each family must see the last version of everything.
func TestTrackerConcurrently(t *testing.T) {
	const writers, objects, rounds = 4, 8, 100
	tr, _, _ := newTracker()
	tr.Update(listed())
	var writing, reading sync.WaitGroup
	done := make(chan struct{})
	for w := range writers {
		writing.Go(func() {
			for round := range rounds {
				for o := range objects {
					name := fmt.Sprint(w, "-", o)
					tr.Update(with(services(service(name, "10.96.0.1 fd00::1", fmt.Sprintf("%d/TCP", round+1))),
						slicesOf(slice(name+"-4", name, "80/TCP", "10.1.0.1"), slice(name+"-6", name, "80/TCP", "fd01::1"))))
				}
			}
		})
	}
	seen := map[model.Family]map[model.ObjectKey]ServiceState{}
	for _, f := range model.Families() {
		seen[f] = map[model.ObjectKey]ServiceState{}
		mine := seen[f]
		reading.Go(func() {
			for last := false; !last; {
				select {
				case <-tr.Wake(f):
				case <-done:
					last = true
				}
				maps.Copy(mine, tr.Take(f).Services)
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	for f, states := range seen {
		if len(states) != writers*objects {
			t.Errorf("%v: got %d Services, want %d", f, len(states), writers*objects)
		}
		for key, st := range states {
			if st.Service == nil || st.Service.Ports[0].Number != rounds || len(st.Slices) != 2 {
				t.Errorf("%v: got %v of %v, want the last version and two slices", f, st, key)
			}
		}
	}
}

// TestTrackerKeepsWhatWasTaken changes objects after a batch was taken, which
// must stay as it was.
func TestTrackerKeepsWhatWasTaken(t *testing.T) {
	tr, _, _ := newTracker()
	tr.Update(with(with(listed(), services(service("a", "10.96.0.1", "80/TCP"))), slicesOf(slice("s1", "a", "80/TCP", "10.1.0.1"))))
	b := tr.Take(model.IPv4)
	before := strings.Join(batchText(b), "\n")
	tr.Update(with(services("-a"), slicesOf("-s1", slice("s2", "a", "80/TCP", "10.1.0.2"))))
	tr.Take(model.IPv4)
	if after := strings.Join(batchText(b), "\n"); after != before {
		t.Errorf("got %q, want it as it was taken: %q", after, before)
	}
}
