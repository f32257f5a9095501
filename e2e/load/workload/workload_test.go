// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func smallPlan(services, endpoints int) Plan {
	p := DefaultPlan()
	p.Services, p.Endpoints = services, endpoints
	return p
}

func TestPlanAddresses(t *testing.T) {
	p := smallPlan(10000, 10)
	for _, c := range []struct {
		what      string
		got, want netip.Addr
	}{
		{"first VIP", p.VIP(0), netip.MustParseAddr("10.96.1.0")},
		{"last VIP", p.VIP(9999), netip.MustParseAddr("10.96.40.15")},
		{"first endpoint", p.Endpoint(0), netip.MustParseAddr("10.128.0.1")},
		{"last endpoint", p.Endpoint(99999), netip.MustParseAddr("10.129.134.160")},
		{"last address of the range", p.Endpoint(p.addresses() - 1), netip.MustParseAddr("10.191.255.254")},
		{"address after it", p.Endpoint(p.addresses()), p.Endpoint(0)},
	} {
		if c.got != c.want {
			t.Errorf("%s is %s, want %s", c.what, c.got, c.want)
		}
	}
}

func TestSlices(t *testing.T) {
	for _, c := range []struct {
		endpoints int
		want      []int
	}{
		{0, []int{0}},
		{1, []int{1}},
		{100, []int{100}},
		{101, []int{100, 1}},
		{250, []int{100, 100, 50}},
	} {
		p := smallPlan(3, c.endpoints)
		var sizes []int
		seen := map[string]bool{}
		for i, s := range p.Slices(p.Service(2)) {
			sizes = append(sizes, len(s.Endpoints))
			if want := fmt.Sprintf("svc-000002-%d", i); s.Name != want || s.Labels[discoveryv1.LabelServiceName] != "svc-000002" {
				t.Errorf("%d endpoints: slice %d is %s of %s, want %s of svc-000002", c.endpoints, i, s.Name, s.Labels[discoveryv1.LabelServiceName], want)
			}
			for _, e := range s.Endpoints {
				seen[e.Addresses[0]] = true
			}
		}
		if !slices.Equal(sizes, c.want) || len(seen) != c.endpoints {
			t.Errorf("%d endpoints: got slices of %v with %d addresses, want %v with all", c.endpoints, sizes, len(seen), c.want)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Plan)
		want   string
	}{
		{"default", func(*Plan) {}, ""},
		{"large", func(p *Plan) { p.Services, p.Endpoints = 5000, 100 }, ""},
		{"negative", func(p *Plan) { p.Services = -1 }, "must not be below 0"},
		{"IPv6", func(p *Plan) { p.EndpointCIDR = netip.MustParsePrefix("fd00::/64") }, "must be of IPv4"},
		{"no namespace", func(p *Plan) { p.Namespace = "" }, "namespace is empty"},
		{"service CIDR full", func(p *Plan) { p.ServiceCIDR = netip.MustParsePrefix("10.96.0.0/22") }, "no room for 1000 cluster IPs"},
		{"endpoint CIDR full", func(p *Plan) { p.EndpointCIDR = netip.MustParsePrefix("10.128.0.0/18") }, "no room for twice 10000 endpoints"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := DefaultPlan()
			c.change(&p)
			err := p.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}

func TestParseMix(t *testing.T) {
	for _, c := range []struct {
		in, want string // want is the error's, if there is one
	}{
		{DefaultMix().String(), DefaultMix().String()},
		{"scale=1", "replace=0,scale=1,add=0,remove=0"},
		{"", `mix "": ""`},
		{"scale=0", "nothing in it"},
		{"grow=1", `"grow=1" is none of`},
		{"scale=-1", `"scale=-1" is none of`},
	} {
		m, err := ParseMix(c.in)
		got := m.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("ParseMix(%q) is %q, want %q", c.in, got, c.want)
		}
	}
}

func TestChurnRepeats(t *testing.T) {
	p := smallPlan(20, 3)
	one, same, other := NewChurn(p, DefaultMix(), 7).Take(200), NewChurn(p, DefaultMix(), 7).Take(200), NewChurn(p, DefaultMix(), 8).Take(200)
	if diff := cmp.Diff(one, same); diff != "" {
		t.Errorf("equal seeds make different changes:\n%s", diff)
	}
	if cmp.Equal(one, other) {
		t.Error("different seeds make equal changes")
	}
}

// state is what a sequence of changes leads to.
type state map[int][]int

func planned(p Plan) state {
	st := state{}
	for i := range p.Services {
		st[i] = p.Service(i).Endpoints
	}
	return st
}

// apply fails if the change does not start from what there is, or breaks a
// promise of its kind.
func (st state) apply(t *testing.T, p Plan, c Change) {
	t.Helper()
	now, exists := st[c.Number()]
	switch {
	case (c.Before != nil) != exists:
		t.Fatalf("%s: the Service exists: %t", c, exists)
	case exists && !slices.Equal(now, c.Before.Endpoints):
		t.Fatalf("%s: it has %v, not %v", c, now, c.Before.Endpoints)
	}
	if c.After == nil {
		delete(st, c.Number())
		return
	}
	st[c.Number()] = c.After.Endpoints
	sorted := slices.Sorted(slices.Values(c.After.Endpoints))
	switch n := len(sorted); {
	case len(slices.Compact(sorted)) != n:
		t.Fatalf("%s: endpoints %v repeat", c, c.After.Endpoints)
	case c.Kind == Replace && n != len(now), c.Kind == Scale && exists && (n == len(now) || n < 1 || n > max(2*p.Endpoints, 2)):
		t.Fatalf("%s: wrong number of endpoints", c)
	}
}

func TestChurnIsConsistent(t *testing.T) {
	for _, c := range []struct {
		name                string
		services, endpoints int
		mix                 string
	}{
		{"usual", 20, 3, DefaultMix().String()},
		{"without endpoints", 20, 0, "replace=1,scale=1"},
		{"of nothing", 0, 3, DefaultMix().String()},
		{"to nothing and back", 5, 2, "remove=1"},
		{"scale alone", 5, 1, "scale=1"},
		{"add alone until the range is full", 65000, 0, "add=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := smallPlan(c.services, c.endpoints)
			mix, err := ParseMix(c.mix)
			if err != nil {
				t.Fatal(err)
			}
			churn, st := NewChurn(p, mix, 1), planned(p)
			for range 2 {
				for _, change := range churn.Take(500) {
					st.apply(t, p, change)
				}
				for _, change := range churn.Undo() {
					st[change.Number()] = nil
					if change.After == nil {
						delete(st, change.Number())
					} else {
						st[change.Number()] = change.After.Endpoints
					}
				}
				if diff := cmp.Diff(planned(p), st); diff != "" {
					t.Fatalf("undone, it is not as planned (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestWriter: what a writer has written is what the changes lead to.
func TestWriter(t *testing.T) {
	for _, endpoints := range []int{2, 99} { // 99 is one or two slices
		t.Run(fmt.Sprint(endpoints), func(t *testing.T) {
			p, ctx := smallPlan(10, endpoints), t.Context()
			w := &Writer{Client: fake.NewClientset(), Plan: p, Workers: 4}
			if err := w.Create(ctx, 0, p.Services, nil); err != nil {
				t.Fatal(err)
			}
			churn, st := NewChurn(p, DefaultMix(), 1), planned(p)
			changes := churn.Take(300)
			if _, err := w.Run(ctx, 0, slices.Values(changes)); err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				st.apply(t, p, c)
			}
			compare(t, w, st)
			if _, err := w.Run(ctx, 0, slices.Values(churn.Undo())); err != nil {
				t.Fatal(err)
			}
			compare(t, w, planned(p))
			if n, err := w.DeleteAll(ctx); err != nil || n < 2*p.Services {
				t.Errorf("deleted %d objects, error %v; want at least %d", n, err, 2*p.Services)
			}
			compare(t, w, state{})
		})
	}
}

// compare reads back what is written.
func compare(t *testing.T, w *Writer, want state) {
	t.Helper()
	type object struct {
		VIP       string
		Endpoints []string
	}
	got, wanted := map[string]*object{}, map[string]*object{}
	services, err := w.Client.CoreV1().Services(w.Plan.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range services.Items {
		got[s.Name] = &object{VIP: s.Spec.ClusterIP}
	}
	list, err := w.Client.DiscoveryV1().EndpointSlices(w.Plan.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list.Items, func(a, b discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range list.Items {
		o := got[s.Labels[discoveryv1.LabelServiceName]]
		if o == nil {
			t.Fatalf("slice %s is of no Service", s.Name)
		}
		for _, e := range s.Endpoints {
			o.Endpoints = append(o.Endpoints, e.Addresses...)
		}
	}
	for number, endpoints := range want {
		o := &object{VIP: w.Plan.VIP(number).String()}
		for _, e := range endpoints {
			o.Endpoints = append(o.Endpoints, w.Plan.Endpoint(e).String())
		}
		wanted[serviceName(number)] = o
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("what is written differs (-want +got):\n%s", diff)
	}
}

// TestWriterFails: the first error ends a run and is its result.
func TestWriterFails(t *testing.T) {
	w := &Writer{Client: fake.NewClientset(), Plan: smallPlan(1, 1), Workers: 2}
	s := w.Plan.Service(0)
	var endless iter.Seq[Change] = func(yield func(Change) bool) {
		for yield(Change{Kind: Remove, Before: &s}) {
		}
	}
	_, err := w.Run(t.Context(), 0, endless)
	if err == nil || !strings.Contains(err.Error(), "svc-000000") {
		t.Errorf("got error %v, want one that names svc-000000", err)
	}
}

func TestNamespace(t *testing.T) {
	w := &Writer{Client: fake.NewClientset(), Plan: DefaultPlan(), Workers: 1}
	for range 2 { // the second time it is there
		if err := w.Namespace(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var got *corev1.Namespace
	got, err := w.Client.CoreV1().Namespaces().Get(t.Context(), "load", metav1.GetOptions{})
	if err != nil || got.Name != "load" {
		t.Errorf("got %v, %v", got, err)
	}
}
