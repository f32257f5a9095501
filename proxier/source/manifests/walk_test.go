// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

// expected is what a directory must mean: the last good text of every file that
// is there, and which files are broken.
type expected struct {
	good   map[string]string
	broken map[string]bool
}

func (e *expected) write(name, text string, broken bool) {
	e.broken[name] = broken
	if !broken {
		e.good[name] = text
	}
}

func (e *expected) remove(name string) {
	delete(e.good, name)
	delete(e.broken, name)
}

// state returns the objects, the duplicates among them and whether each file
// has made sense once.
func (e *expected) state(t *testing.T) (s sourcetest.State, duplicates int, complete bool) {
	s.Services = map[model.ObjectKey]*model.Service{}
	s.EndpointSlices = map[model.ObjectKey]*model.EndpointSlice{}
	s.ServiceCIDRs = map[model.ObjectKey]*model.ServiceCIDR{}
	seen := map[id]bool{}
	for _, name := range slices.Sorted(maps.Keys(e.good)) {
		docs, p := parseText(name, e.good[name])
		if p != nil {
			t.Fatal(p.in(name))
		}
		for _, doc := range docs {
			for _, o := range doc.objects {
				if seen[o.id] {
					duplicates++
					continue
				}
				seen[o.id] = true
				if o.service != nil {
					s.Services[o.key] = o.service
				}
				if o.slice != nil {
					s.EndpointSlices[o.key] = o.slice
				}
				if o.serviceCIDR != nil {
					s.ServiceCIDRs[o.key] = o.serviceCIDR
				}
			}
		}
	}
	for name := range e.broken {
		if _, ok := e.good[name]; !ok {
			return s, duplicates, false
		}
	}
	return s, duplicates, true
}

// randomText returns a few objects of a few names, some of which mean nothing.
func randomText(rnd *rand.Rand) string {
	var texts []string
	for range rnd.IntN(4) {
		name, n := fmt.Sprintf("o%d", rnd.IntN(4)), rnd.IntN(3)+1
		switch rnd.IntN(5) {
		case 0:
			texts = append(texts, svc(name, "None"))
		case 1:
			texts = append(texts, slice(name, fmt.Sprintf("10.244.0.%d", n), "127.0.0.1"))
		case 2:
			texts = append(texts, serviceCIDR(name, fmt.Sprintf("10.%d.0.0/16", 96+n), "10.0.0.0"))
		default:
			texts = append(texts, svc(name, fmt.Sprintf("10.96.0.%d", n)))
		}
	}
	return docs(texts...)
}

// TestAnySequenceOfChangesEndsInWhatTheFilesSay changes files at random and
// compares what was delivered with what the files say after every change.
func TestAnySequenceOfChangesEndsInWhatTheFilesSay(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWalk(t, rand.New(rand.NewPCG(seed, 1)))
			for step := range 50 {
				w.change(step)
				w.read()
				w.compare(step)
				if t.Failed() {
					return
				}
			}
		})
	}
}

type walk struct {
	t       *testing.T
	rnd     *rand.Rand
	folder  *folder
	want    *expected
	sink    *sourcetest.Recorder
	dir     *directory
	metrics *Metrics
	now     time.Time
	changed map[string]struct{}
}

func newWalk(t *testing.T, rnd *rand.Rand) *walk {
	w := &walk{
		t: t, rnd: rnd,
		folder:  newFolder(t).made(),
		want:    &expected{good: map[string]string{}, broken: map[string]bool{}},
		sink:    sourcetest.NewRecorder(t),
		metrics: NewMetrics(prometheus.NewPedanticRegistry()),
		now:     time.Now(),
	}
	w.dir = newDirectory(Config{Dir: w.folder.path, NodeName: "node-1", FileMetrics: w.metrics})
	return w
}

// change does something to one to three of the files.
func (w *walk) change(step int) {
	w.changed = map[string]struct{}{}
	for _, i := range w.rnd.Perm(4)[:w.rnd.IntN(3)+1] {
		name := fmt.Sprintf("%c.yaml", 'a'+i)
		w.changed[name] = struct{}{}
		switch w.rnd.IntN(6) {
		case 0:
			w.folder.remove(name)
			w.want.remove(name)
		case 1:
			w.write(name, brokenText+fmt.Sprintf("# %d\n", step), true)
		default:
			w.write(name, randomText(w.rnd), false)
		}
	}
}

// write gives the file another time of change every time: the kernel's may be
// the same for two changes in a row.
func (w *walk) write(name, text string, broken bool) {
	if w.rnd.IntN(2) == 0 {
		w.folder.write(name, text)
	} else {
		w.folder.replace(name, text)
	}
	w.now = w.now.Add(time.Second)
	w.folder.check(os.Chtimes(w.folder.file(name), w.now, w.now))
	w.want.write(name, text, broken)
}

// read reads what has changed, with or without a hint, until nothing is in
// doubt.
func (w *walk) read() {
	ctx := klog.NewContext(w.t.Context(), sourcetest.NewLog(w.t).Logger())
	w.now = w.now.Add(time.Minute)
	if w.dir.listed && w.rnd.IntN(2) == 0 {
		w.dir.readSome(ctx, w.changed, w.now)
	} else {
		w.dir.readAll(ctx, w.now)
	}
	for {
		if c, ok := w.dir.step(ctx); ok {
			w.sink.Update(c)
		}
		next := w.dir.nextRetry()
		if next.IsZero() {
			return
		}
		w.now = next
		names, _ := w.dir.retries(w.now)
		w.dir.readSome(ctx, names, w.now)
	}
}

func (w *walk) compare(step int) {
	want, duplicates, complete := w.want.state(w.t)
	var got sourcetest.State
	w.sink.WaitFor("what it has", func(s *sourcetest.State) bool { got = *s; return true })
	ignoreTime := cmpopts.IgnoreFields(model.EndpointSlice{}, "TriggerTime")
	if diff := cmp.Diff(want.Services, got.Services, compareAddr); diff != "" {
		w.t.Errorf("step %d: Services (-want +got):\n%s", step, diff)
	}
	if diff := cmp.Diff(want.EndpointSlices, got.EndpointSlices, compareAddr, ignoreTime); diff != "" {
		w.t.Errorf("step %d: EndpointSlices (-want +got):\n%s", step, diff)
	}
	if diff := cmp.Diff(want.ServiceCIDRs, got.ServiceCIDRs, comparePrefix); diff != "" {
		w.t.Errorf("step %d: ServiceCIDRs (-want +got):\n%s", step, diff)
	}
	if got.Status.Complete != complete {
		w.t.Errorf("step %d: complete is %v, want %v", step, got.Status.Complete, complete)
	}
	broken := 0
	for _, b := range w.want.broken {
		if b {
			broken++
		}
	}
	if got := testutil.ToFloat64(w.metrics.broken); got != float64(broken) {
		w.t.Errorf("step %d: %v files are broken, want %d", step, got, broken)
	}
	if got := testutil.ToFloat64(w.metrics.duplicates); got != float64(duplicates) {
		w.t.Errorf("step %d: %v duplicates, want %d", step, got, duplicates)
	}
}
