// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/klog/v2"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

// counters is a Source.
type counters struct {
	samples []Sample
	err     error
	reads   int
	takes   time.Duration
}

func (c *counters) Read(_ context.Context, yield func(Sample)) error {
	c.reads++
	time.Sleep(c.takes)
	for _, s := range c.samples {
		yield(s)
	}
	return c.err
}

func port(service string) model.ServicePortName {
	space, name, _ := strings.Cut(service, "/")
	return model.ServicePortName{Service: model.ObjectKey{Namespace: space, Name: name}, Port: "http", Protocol: model.TCP}
}

func connections(id uint64, service string, n uint64) Sample {
	return Sample{ID: id, Port: port(service), Counts: Counts{Connections: n}}
}

// rig is a Collector of one family.
type rig struct {
	t *testing.T
	*counters
	reg      *prometheus.Registry
	c        *Collector
	roster   *Roster
	follower proxier.Follower
	snapshot *model.Snapshot
}

func newRig(t *testing.T, limit int, packets bool, selected ...string) *rig {
	t.Helper()
	var directions []string
	if packets {
		directions = []string{"in", "out"}
	}
	selection, err := ParseSelection(selected)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, counters: &counters{}, reg: prometheus.NewPedanticRegistry(), roster: NewRoster(selection, limit), snapshot: model.NewSnapshot()}
	r.c = New(Config{Directions: directions, Registerer: r.reg, Logger: klog.Background()})
	r.follower = r.c.Family(model.IPv4, r.counters, r.roster)
	return r
}

// services makes these all that there are.
func (r *rig) services(names ...string) {
	r.t.Helper()
	changes := map[model.ServicePortName]*model.ServicePort{}
	for p := range r.snapshot.All() {
		changes[p.Name] = nil
	}
	for _, name := range names {
		changes[port(name)] = &model.ServicePort{Name: port(name)}
	}
	d := proxier.Desired{Snapshot: r.snapshot.With(changes)}
	for name := range changes {
		d.Changed = append(d.Changed, name)
	}
	if err := r.follower.Follow(r.t.Context(), d); err != nil {
		r.t.Fatal(err)
	}
	r.snapshot = d.Snapshot
}

func (r *rig) begin() {
	ready := make(chan struct{})
	close(ready)
	r.c.Begin(r.t.Context(), ready)
}

// scrape waits until the kernel may be read again, and compares connections.
func (r *rig) scrape(when string, want map[string]int) {
	r.t.Helper()
	time.Sleep(time.Hour)
	var b strings.Builder
	b.WriteString("# HELP fairlead_service_connections_total Connections to a port of a Service that were led to an endpoint.\n# TYPE fairlead_service_connections_total counter\n")
	for service, n := range want {
		p := port(service)
		if service == "*/*" {
			p = others
		}
		fmt.Fprintf(&b, "fairlead_service_connections_total{ip_family=\"IPv4\",protocol=%q,service_name=%q,service_namespace=%q,service_port=%q} %d\n",
			p.Protocol, p.Service.Name, p.Service.Namespace, p.Port, n)
	}
	if err := testutil.GatherAndCompare(r.reg, strings.NewReader(b.String()), "fairlead_service_connections_total"); err != nil {
		r.t.Errorf("%s: %v", when, err)
	}
}

// TestSums: what kernel counters add is added, whatever becomes of them.
func TestSums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 10, false, "*")
		r.samples = []Sample{connections(1, "shop/web", 1000)}
		r.scrape("before anything", map[string]int{"*/*": 0})
		r.services("shop/web", "shop/db")
		if r.scrape("before the rules are in place", map[string]int{"shop/web": 0, "shop/db": 0, "*/*": 0}); r.reads > 0 {
			t.Error("the kernel was read")
		}
		r.begin()
		r.scrape("what was before the start", map[string]int{"shop/web": 0, "shop/db": 0, "*/*": 0})
		r.samples = []Sample{connections(1, "shop/web", 1007), connections(2, "shop/web", 3), connections(3, "shop/db", 1)}
		r.scrape("more, and new counters", map[string]int{"shop/web": 10, "shop/db": 1, "*/*": 0})
		r.scrape("nothing more", map[string]int{"shop/web": 10, "shop/db": 1, "*/*": 0})
		r.samples = []Sample{connections(1, "shop/web", 5), connections(2, "shop/web", 3), connections(3, "shop/db", 1)}
		r.scrape("one begins anew", map[string]int{"shop/web": 15, "shop/db": 1, "*/*": 0})
		r.samples = nil
		r.scrape("all are gone", map[string]int{"shop/web": 15, "shop/db": 1, "*/*": 0})
		r.samples = []Sample{connections(1, "shop/web", 6)}
		r.scrape("one comes again", map[string]int{"shop/web": 21, "shop/db": 1, "*/*": 0})
		r.samples, r.err = []Sample{connections(1, "shop/web", 8)}, errors.New("no")
		r.scrape("a reading that ends early", map[string]int{"shop/web": 23, "shop/db": 1, "*/*": 0})
		if n := testutil.ToFloat64(r.c.failures); n != 1 {
			t.Errorf("%v readings failed, want 1", n)
		}
		r.err = nil
		r.services("shop/web")
		r.scrape("without a Service", map[string]int{"shop/web": 23, "*/*": 0})
	})
}

// TestBegin: what was there before is not counted, even where the rules are in place before
// it is known which counter is of which port.
func TestBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 10, false, "*")
		r.samples = []Sample{connections(1, "shop/web", 1000)}
		go r.begin()
		synctest.Wait()
		if r.reads > 0 {
			t.Error("the kernel was read")
		}
		r.services("shop/web")
		synctest.Wait()
		r.scrape("at first", map[string]int{"shop/web": 0, "*/*": 0})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.c.Begin(ctx, nil) // ends
	})
}

// TestBound: beyond the limit, and what is not selected, is one series.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, false, "shop", "bank/api")
		r.services("shop/a", "shop/b", "shop/c", "bank/api", "bank/web")
		r.begin()
		r.samples = []Sample{
			connections(1, "shop/a", 1), connections(2, "shop/b", 2), connections(3, "shop/c", 4),
			connections(4, "bank/api", 8), connections(5, "bank/web", 16), connections(6, "unknown/unknown", 32),
		}
		r.scrape("the first by name", map[string]int{"bank/api": 8, "shop/a": 1, "*/*": 2 + 4 + 16 + 32})
		r.services("shop/a", "shop/b", "shop/c", "bank/web")
		r.samples[1] = connections(2, "shop/b", 3)
		r.scrape("the next has room", map[string]int{"shop/a": 1, "shop/b": 1, "*/*": 54})
		r.services("shop/a", "shop/b", "shop/0")
		r.scrape("who has a series keeps it", map[string]int{"shop/a": 1, "shop/b": 1, "*/*": 54})
	})
}

// TestPackets: packets and bytes of both directions, which the kernel may count modulo 2³².
func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, true, "*")
		r.services("shop/web")
		sample := func(conns, in, out uint32, bytesIn, bytesOut uint64) {
			r.samples = []Sample{{ID: 1, Port: port("shop/web"), Wraps: true, Counts: Counts{uint64(conns), uint64(in), uint64(out), bytesIn, bytesOut}}}
		}
		check := func(when string, want ...float64) {
			t.Helper()
			time.Sleep(time.Hour)
			all, err := r.reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			var got []float64
			for _, f := range all { // by name: bytes, connections, packets
				for _, m := range f.GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetName() == "service_name" && l.GetValue() == "web" {
							got = append(got, m.GetCounter().GetValue())
						}
					}
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: got %v, want %v", when, got, want)
			}
		}
		sample(math.MaxUint32-1, math.MaxUint32, 0, 1<<40, 1<<41)
		r.begin()
		check("at first", 0, 0, 0, 0, 0)
		sample(1, 4, 7, 1<<40+100, 1<<41+200)
		check("come around", 100, 200, 3, 5, 7)
		sample(1, 2, 3, 60, 70)
		check("begun anew", 160, 270, 4, 7, 10)
	})
}

// TestRarely: the kernel is read when somebody asks, and a fiftieth of the time at most.
func TestRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, false, "*")
		r.services()
		r.begin()
		gather := func(want int) {
			t.Helper()
			if _, err := r.reg.Gather(); err != nil || r.reads != want {
				t.Errorf("read %d times, %v, want %d", r.reads, err, want)
			}
		}
		gather(1)
		time.Sleep(time.Second)
		r.takes = 2 * time.Second
		gather(2)
		time.Sleep(99 * time.Second)
		gather(2)
		time.Sleep(time.Second)
		gather(3)
	})
}

func TestParseSelection(t *testing.T) {
	for item, want := range map[string]string{"shop": "shop/web shop/db", "shop/web": "shop/web", "*": "shop/web shop/db bank/web", "": "", "/": "", "a/": "", "a/b/c": "", "*/x": "", "a b": ""} {
		s, err := ParseSelection([]string{item})
		if (err != nil) != (want == "") || s.Empty() != (want == "") {
			t.Errorf("%q: %v, empty %t", item, err, s.Empty())
		}
		for _, service := range []string{"shop/web", "shop/db", "bank/web"} {
			if got := s.Has(port(service).Service); got != strings.Contains(want, service) {
				t.Errorf("%q has %s: %t", item, service, got)
			}
		}
	}
}

// TestRosterShared: a mode that asks before what follows its rules gets the same answers,
// and what a mode was told, and could not write, is not lost to the series.
func TestRosterShared(t *testing.T) {
	s, err := ParseSelection([]string{"shop"})
	if err != nil {
		t.Fatal(err)
	}
	r := NewRoster(s, 2)
	l := newLedger(model.IPv4, nil, r)
	snapshot := model.NewSnapshot()
	update := func(want string, changes map[string]bool) proxier.Desired {
		t.Helper()
		d, now := proxier.Desired{}, map[model.ServicePortName]*model.ServicePort{}
		for service, there := range changes {
			name := port(service)
			if now[name] = nil; there {
				now[name] = &model.ServicePort{Name: name}
			}
			d.Changed = append(d.Changed, name)
		}
		snapshot = snapshot.With(now)
		d.Snapshot = snapshot
		var got []string
		for _, name := range r.Update(d) {
			got = append(got, name.Service.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("moved are %q, want %q", got, want)
		}
		if again := r.Update(d); len(again) > 0 {
			t.Errorf("told again, %v move", again)
		}
		return d
	}
	series := func(d proxier.Desired, want string) {
		t.Helper()
		if err := l.Follow(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range l.series {
			got = append(got, name.Service.Name)
			if !r.Has(name) {
				t.Errorf("%s has series, and is not on the roster", name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("series of %q, want %q", got, want)
		}
	}
	series(update("a b", map[string]bool{"shop/a": true, "shop/b": true, "shop/c": true, "bank/a": true}), "a b")
	update("a c", map[string]bool{"shop/a": false}) // whose Sync fails
	series(update("", map[string]bool{"shop/a": true}), "b c")
	series(update("a b", map[string]bool{"shop/b": false}), "a c")
	series(update("a c", map[string]bool{"shop/a": false, "shop/c": false}), "")
}
