// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

// nodePort, externalLocal and internalLocal are what a Service can have.
func nodePort(s *model.Service)      { s.Ports[0].NodePort = 30080 }
func externalLocal(s *model.Service) { s.ExternalTrafficLocal = true }
func internalLocal(s *model.Service) { s.InternalTrafficLocal = true }

// hinted makes every endpoint of a slice one for zones and nodes, those of an
// endpoint in a word each: "a,b" for zones, "@here" for a node, "-" for none.
func hintedSlice(s *model.EndpointSlice, hints ...string) *model.EndpointSlice {
	for i, h := range hints {
		var zones, nodes []string
		for _, hint := range strings.Split(h, ",") {
			node, isNode := strings.CutPrefix(hint, "@")
			switch {
			case hint == "-":
			case isNode:
				nodes = append(nodes, node)
			default:
				zones = append(zones, hint)
			}
		}
		s.Endpoints[i].Hints = model.NewHints(zones, nodes)
	}
	return s
}

// addrText lists the last byte of each endpoint's address.
func addrText(eps []model.Endpoint) string {
	var out []string
	for _, ep := range eps {
		a := ep.AddrPort.Addr().As4()
		out = append(out, string('0'+a[3]))
	}
	return strings.Join(out, " ")
}

// TestResolvePolicies: which endpoints serve each traffic policy.
func TestResolvePolicies(t *testing.T) {
	for _, tc := range []struct {
		name           string
		service        []func(*model.Service)
		endpoints      []string
		cluster, local string
		usable         bool
	}{
		{name: "a cluster IP needs no local endpoints", endpoints: []string{"10.1.0.1@here", "10.1.0.2@there"},
			cluster: "1 2", usable: true},
		{name: "nothing", usable: false},
		{name: "draining ones where none is ready", endpoints: []string{"10.1.0.1~", "10.1.0.2!"}, cluster: "1", usable: true},
		{name: "no draining ones where one is ready", endpoints: []string{"10.1.0.1~", "10.1.0.2"}, cluster: "2", usable: true},
		{name: "neither ready nor serving", endpoints: []string{"10.1.0.1!", "10.1.0.2~!"}, usable: false},
		{name: "serving alone is not enough", endpoints: []string{"10.1.0.1?"}, usable: false},
		{name: "ready is enough, also while it terminates", endpoints: []string{"10.1.0.1~+", "10.1.0.2~"}, cluster: "1", usable: true},
		{name: "internal Local keeps to this node", service: []func(*model.Service){internalLocal},
			endpoints: []string{"10.1.0.1@here", "10.1.0.2@there"}, local: "1", usable: true},
		{name: "internal Local with endpoints elsewhere is usable", service: []func(*model.Service){internalLocal},
			endpoints: []string{"10.1.0.2@there"}, usable: true},
		{name: "internal Local with a node port needs both", service: []func(*model.Service){internalLocal, nodePort},
			endpoints: []string{"10.1.0.1@here", "10.1.0.2@there"}, cluster: "1 2", local: "1", usable: true},
		{name: "external Local needs both", service: []func(*model.Service){externalLocal, nodePort},
			endpoints: []string{"10.1.0.1@here", "10.1.0.2@there"}, cluster: "1 2", local: "1", usable: true},
		{name: "external Local without an external address", service: []func(*model.Service){externalLocal},
			endpoints: []string{"10.1.0.1@here", "10.1.0.2@there"}, cluster: "1 2", usable: true},
		{name: "local drains while others are ready", service: []func(*model.Service){externalLocal, nodePort},
			endpoints: []string{"10.1.0.1@here~", "10.1.0.2@there"}, cluster: "2", local: "1", usable: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := service("web", "10.96.0.1", "80/TCP")
			for _, change := range tc.service {
				change(svc)
			}
			eps := []*model.EndpointSlice{slice("web-1", "web", "8080/TCP", tc.endpoints...)}
			got := Resolve(svc, eps, Locality{Node: here}, model.IPv4)[0]
			if c, l := addrText(got.Endpoints), addrText(got.LocalEndpoints); c != tc.cluster || l != tc.local || got.Usable != tc.usable {
				t.Errorf("got cluster %q, local %q, usable %v; want %q, %q, %v", c, l, got.Usable, tc.cluster, tc.local, tc.usable)
			}
		})
	}
}

// TestResolveTopology: hints count only if every ready endpoint has them and
// one is for here; those for nodes go first.
func TestResolveTopology(t *testing.T) {
	for _, tc := range []struct {
		name  string
		hints []string
		zone  string
		want  string
	}{
		{"no hints", nil, "a", "1 2 3"},
		{"by zone", []string{"a", "b", "a,b"}, "a", "1 3"},
		{"a zone that no hint names", []string{"a", "b", "b"}, "c", "1 2 3"},
		{"one endpoint without a hint", []string{"a", "b", "-"}, "a", "1 2 3"},
		{"no zone", []string{"a", "b", "a"}, "", "1 2 3"},
		{"by node", []string{"@here", "@there", "@here"}, "", "1 3"},
		{"by node before zone", []string{"a,@there", "a,@here", "b,@there"}, "a", "2"},
		{"zone where no node hint is for here", []string{"a,@there", "b,@there", "b,@there"}, "a", "1"},
		{"zone where one has no node hint", []string{"a,@here", "b", "a,@here"}, "b", "2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := hintedSlice(slice("web-1", "web", "8080/TCP", "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4!"), tc.hints...)
			svc := service("web", "10.96.0.1", "80/TCP")
			got := Resolve(svc, []*model.EndpointSlice{s}, Locality{Node: here, Zone: tc.zone}, model.IPv4)[0]
			if eps := addrText(got.Endpoints); eps != tc.want {
				t.Errorf("got %q, want %q", eps, tc.want)
			}
		})
	}
}

// TestResolveHealthAndServing: what the health check port counts, with which
// endpoints UDP flows may go on, and how many there are whatever becomes of them.
func TestResolveHealthAndServing(t *testing.T) {
	svc := service("web", "10.96.0.1", "http 80/TCP", "dns 53/UDP")
	svc.ExternalTrafficLocal, svc.HealthCheckNodePort = true, 30081
	nodePort(svc)
	eps := []*model.EndpointSlice{
		slice("web-1", "web", "http 8080/TCP, dns 5353/UDP", "10.1.0.1@here", "10.1.0.2@there", "10.1.0.3@here~", "10.1.0.4!"),
		slice("web-2", "web", "http 8081/TCP, dns 5353/UDP", "10.1.0.1@here"),
	}
	got := Resolve(svc, eps, Locality{Node: here}, model.IPv4)
	if want := []netip.Addr{netip.MustParseAddr("10.1.0.1")}; !slices.Equal(got[0].LocalReady, want) {
		t.Errorf("local and ready: got %v, want %v", got[0].LocalReady, want)
	}
	if got[0].Known != 5 || got[1].Known != 4 {
		t.Errorf("known: got %d and %d endpoints, want 5 and 4", got[0].Known, got[1].Known)
	}
	if got[0].Serving != nil {
		t.Errorf("a TCP port lists %v as serving", got[0].Serving)
	}
	var serving []string
	for _, ep := range got[1].Serving {
		serving = append(serving, ep.String())
	}
	if diff := cmp.Diff([]string{"10.1.0.1:5353", "10.1.0.2:5353", "10.1.0.3:5353"}, serving); diff != "" {
		t.Errorf("serving (-want +got):\n%s", diff)
	}
}

// TestTrackerZone: another zone may change the endpoints of every Service.
func TestTrackerZone(t *testing.T) {
	tracker, _, _ := newTracker()
	tracker.Update(services(service("web", "10.96.0.1", "80/TCP"), service("api", "10.96.0.2", "80/TCP")))
	tracker.Update(model.Changes{Status: &model.SourceStatus{Listed: true, Complete: true}})
	tracker.Take(model.IPv4)
	zone := func(z string) Batch {
		tracker.Update(model.Changes{Node: &model.NodeChange{Node: &model.Node{Name: here, Zone: z}}})
		return tracker.Take(model.IPv4)
	}
	if b := zone("a"); len(b.Services) != 2 || b.Node.Zone != "a" {
		t.Errorf("in another zone: got %d Services and zone %q, want 2 and a", len(b.Services), b.Node.Zone)
	}
	if b := zone("a"); len(b.Services) != 0 {
		t.Errorf("in the same zone: got %d Services, want none", len(b.Services))
	}
}
