// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

type resolveCase struct {
	name   string
	svc    *model.Service
	slices []*model.EndpointSlice
	node   string // here if empty
	family model.Family
	want   []string
}

// run resolves a case with its slices in several orders.
func (tc resolveCase) run(t *testing.T) {
	if tc.node == "" {
		tc.node = here
	}
	if tc.family == 0 {
		tc.family = model.IPv4
	}
	order := append([]*model.EndpointSlice(nil), tc.slices...)
	r := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		var got []string
		for _, p := range Resolve(tc.svc, order, Locality{Node: tc.node}, tc.family) {
			got = append(got, portText(p))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Fatalf("got ports that differ (-want +got):\n%s", diff)
		}
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
}

func TestResolveServices(t *testing.T) {
	eps := []*model.EndpointSlice{slice("web-1", "web", "http 8080/TCP", "10.1.0.1")}
	for _, tc := range []resolveCase{
		{name: "no Service", slices: eps},
		{name: "no slices", svc: service("web", "10.96.0.1", "http 80/TCP"),
			want: []string{"web:http/TCP 10.96.0.1:80:"}},
		{name: "no cluster IP of the family", svc: service("web", "fd00::1", "http 80/TCP"), slices: eps},
		{name: "no ports", svc: service("web", "10.96.0.1"), slices: eps},
		{name: "no ports in the slice", svc: service("web", "10.96.0.1", "http 80/TCP"),
			slices: []*model.EndpointSlice{slice("web-1", "web", "", "10.1.0.1")},
			want:   []string{"web:http/TCP 10.96.0.1:80:"}},
		{name: "unnamed port", svc: service("web", "10.96.0.1", "80/TCP"),
			slices: []*model.EndpointSlice{slice("web-1", "web", "8080/TCP", "10.1.0.1")},
			want:   []string{"web/TCP 10.96.0.1:80: 10.1.0.1:8080"}},
		{name: "unnamed is not named", svc: service("web", "10.96.0.1", "80/TCP"), slices: eps,
			want: []string{"web/TCP 10.96.0.1:80:"}},
		{name: "other name", svc: service("web", "10.96.0.1", "https 80/TCP"), slices: eps,
			want: []string{"web:https/TCP 10.96.0.1:80:"}},
		{name: "other protocol", svc: service("web", "10.96.0.1", "http 80/UDP"), slices: eps,
			want: []string{"web:http/UDP 10.96.0.1:80:"}},
		{name: "one name for two protocols", svc: service("dns", "10.96.0.10", "dns 53/UDP", "dns 53/TCP"),
			slices: []*model.EndpointSlice{
				slice("dns-1", "dns", "dns 5353/TCP, dns 53/UDP", "10.1.0.1"),
				slice("dns-2", "dns", "dns 5300/UDP", "10.1.0.2"),
			},
			want: []string{
				"dns:dns/UDP 10.96.0.10:53: 10.1.0.1:53 10.1.0.2:5300",
				"dns:dns/TCP 10.96.0.10:53: 10.1.0.1:5353",
			}},
		{name: "a target port that differs between slices", svc: service("web", "10.96.0.1", "http 80/TCP"),
			slices: []*model.EndpointSlice{
				slice("web-1", "web", "http 8080/TCP", "10.1.0.1"),
				slice("web-2", "web", "http 8081/TCP", "10.1.0.1"),
			},
			want: []string{"web:http/TCP 10.96.0.1:80: 10.1.0.1:8080 10.1.0.1:8081"}},
	} {
		t.Run(tc.name, tc.run)
	}
}

func TestResolveFamilies(t *testing.T) {
	both := []*model.EndpointSlice{
		slice("web-4", "web", "http 8080/TCP", "10.1.0.1"),
		slice("web-6", "web", "http 8080/TCP", "fd01::1"),
	}
	for _, tc := range []resolveCase{
		{name: "IPv4 of dual-stack", svc: service("web", "10.96.0.1 fd00::1", "http 80/TCP"), slices: both,
			want: []string{"web:http/TCP 10.96.0.1:80: 10.1.0.1:8080"}},
		{name: "IPv6 of dual-stack", svc: service("web", "10.96.0.1 fd00::1", "http 80/TCP"), slices: both,
			family: model.IPv6, want: []string{"web:http/TCP [fd00::1]:80: [fd01::1]:8080"}},
		{name: "IPv6 first", svc: service("web", "fd00::1 10.96.0.1", "http 80/TCP"), slices: both,
			want: []string{"web:http/TCP 10.96.0.1:80: 10.1.0.1:8080"}},
		{name: "slices of the other family only", svc: service("web", "10.96.0.1", "http 80/TCP"), slices: both[1:],
			want: []string{"web:http/TCP 10.96.0.1:80:"}},
	} {
		t.Run(tc.name, tc.run)
	}
}

// TestResolveAddresses: what a Service has beside its endpoints comes along,
// each address and range in its own family.
func TestResolveAddresses(t *testing.T) {
	svc := service("web", "fd00::1 10.96.0.1", "http 80/TCP")
	svc.Ports[0].NodePort = 30080
	svc.ExternalIPs = parseAddrs("203.0.113.5", "2001:db8::5")
	svc.LoadBalancerIPs = parseAddrs("2001:db8::80", "203.0.113.80")
	svc.Restricted = true
	svc.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/48")}
	svc.ExternalTrafficLocal, svc.InternalTrafficLocal, svc.HealthCheckNodePort = true, true, 32000
	svc.AffinityTimeout = time.Minute
	svc.Scheduler.Name = "mh"
	common := model.ServicePort{
		Name: model.ServicePortName{Service: svc.Key, Port: "http", Protocol: model.TCP}, Port: 80, NodePort: 30080, Restricted: true,
		ExternalTrafficLocal: true, InternalTrafficLocal: true, HealthCheckNodePort: 32000, AffinityTimeout: time.Minute,
		SparePort: 80 ^ 1<<15, Scheduler: model.Scheduler{Name: "mh"},
	}
	for f, own := range map[model.Family]func(*model.ServicePort){
		model.IPv4: func(p *model.ServicePort) {
			p.ClusterIP = netip.MustParseAddr("10.96.0.1")
			p.ExternalIPs, p.LoadBalancerIPs = parseAddrs("203.0.113.5"), parseAddrs("203.0.113.80")
			p.SourceRanges = svc.SourceRanges[:1]
		},
		model.IPv6: func(p *model.ServicePort) {
			p.ClusterIP = netip.MustParseAddr("fd00::1")
			p.ExternalIPs, p.LoadBalancerIPs = parseAddrs("2001:db8::5"), parseAddrs("2001:db8::80")
			p.SourceRanges = svc.SourceRanges[1:]
		},
	} {
		want := common
		own(&want)
		if got := Resolve(svc, nil, Locality{Node: here}, f); len(got) != 1 || !got[0].Equal(&want) {
			t.Errorf("%s: got %+v, want %+v", f, got[0], want)
		}
	}
}

func TestResolveEndpoints(t *testing.T) {
	svc := service("web", "10.96.0.1", "80/TCP")
	one := func(endpoints ...string) []*model.EndpointSlice {
		return []*model.EndpointSlice{slice("web-1", "web", "8080/TCP", endpoints...)}
	}
	two := func(a, b string) []*model.EndpointSlice {
		return append(one(a), slice("web-2", "web", "8080/TCP", b))
	}
	const vip = "web/TCP 10.96.0.1:80:"
	for _, tc := range []resolveCase{
		{name: "only ready ones", slices: one("10.1.0.1", "10.1.0.2!", "10.1.0.3~"), want: []string{vip + " 10.1.0.1:8080"}},
		{name: "none ready", slices: one("10.1.0.2!"), want: []string{vip}},
		{name: "text order", slices: one("10.1.0.9", "10.1.0.10", "10.1.0.1", "9.1.0.1", "10.1.0.100"),
			want: []string{vip + " 10.1.0.100:8080 10.1.0.10:8080 10.1.0.1:8080 10.1.0.9:8080 9.1.0.1:8080"}},
		{name: "local by node name", slices: one("10.1.0.1@here", "10.1.0.2@there", "10.1.0.3"),
			want: []string{vip + " 10.1.0.1:8080* 10.1.0.2:8080 10.1.0.3:8080"}},
		{name: "no node name is nowhere", node: "-", slices: one("10.1.0.1", "10.1.0.2@here"),
			want: []string{vip + " 10.1.0.1:8080 10.1.0.2:8080"}},
		{name: "twice in one slice", slices: one("10.1.0.1", "10.1.0.1"), want: []string{vip + " 10.1.0.1:8080"}},
		{name: "in two slices", slices: two("10.1.0.1", "10.1.0.1"), want: []string{vip + " 10.1.0.1:8080"}},
		{name: "ready in one slice, not in the other", slices: two("10.1.0.1!", "10.1.0.1"),
			want: []string{vip + " 10.1.0.1:8080"}},
		{name: "ready in one slice, terminating in the other", slices: two("10.1.0.1~", "10.1.0.1@here"),
			want: []string{vip + " 10.1.0.1:8080*"}},
		{name: "the duplicate that is local stays", slices: two("10.1.0.1@there", "10.1.0.1@here"),
			want: []string{vip + " 10.1.0.1:8080*"}},
		{name: "the duplicate that does not terminate stays, ready or not", slices: two("10.1.0.1~+", "10.1.0.1!"),
			want: []string{vip}},
		{name: "the duplicate that serves stays", slices: two("10.1.0.1@here~!", "10.1.0.1@there~"),
			want: []string{vip + " 10.1.0.1:8080"}},
	} {
		tc.svc = svc
		t.Run(tc.name, tc.run)
	}
}

// TestResolveUnnamedNode has no local endpoints where the node has no name,
// not even those whose node is unknown.
func TestResolveUnnamedNode(t *testing.T) {
	got := Resolve(service("web", "10.96.0.1", "80/TCP"),
		[]*model.EndpointSlice{slice("web-1", "web", "8080/TCP", "10.1.0.1")}, Locality{}, model.IPv4)
	if want := "web/TCP 10.96.0.1:80: 10.1.0.1:8080"; len(got) != 1 || portText(got[0]) != want {
		t.Errorf("got %v, want %q", got, want)
	}
}

// TestResolveIPv6Order sorts by the text of address and port, brackets and all.
func TestResolveIPv6Order(t *testing.T) {
	resolveCase{
		svc: service("web", "fd00::1", "80/TCP"), family: model.IPv6,
		slices: []*model.EndpointSlice{slice("web-1", "web", "8080/TCP", "fd01::a", "fd01::10", "fd01::1", "fd01::")},
		want:   []string{"web/TCP [fd00::1]:80: [fd01::10]:8080 [fd01::1]:8080 [fd01::]:8080 [fd01::a]:8080"},
	}.run(t)
}

// TestResolveLeavesItsInputAlone resolves twice and finds the same objects.
func TestResolveLeavesItsInputAlone(t *testing.T) {
	svc := service("web", "10.96.0.1", "http 80/TCP", "dns 53/UDP")
	in := func() []*model.EndpointSlice {
		return []*model.EndpointSlice{
			slice("web-1", "web", "http 8080/TCP, dns 53/UDP", "10.1.0.2@here", "10.1.0.1", "10.1.0.2"),
			slice("web-2", "web", "dns 53/UDP", "10.1.0.0", "10.1.0.1!"),
		}
	}
	used := in()
	first := Resolve(svc, used, Locality{Node: here}, model.IPv4)
	second := Resolve(svc, used, Locality{Node: here}, model.IPv4)
	addrs := cmp.Comparer(func(a, b model.ServicePort) bool { return a.Equal(&b) })
	if diff := cmp.Diff(first, second, addrs); diff != "" {
		t.Errorf("a second call differs:\n%s", diff)
	}
	for i, want := range in() {
		if diff := cmp.Diff(want.Endpoints, used[i].Endpoints, cmp.Comparer(func(a, b model.SliceEndpoint) bool { return reflect.DeepEqual(a, b) })); diff != "" {
			t.Errorf("slice %d was changed:\n%s", i, diff)
		}
	}
}

// TestSparePort: a number that no port of the protocol has, another one for each.
func TestSparePort(t *testing.T) {
	const half = 1 << 15
	for _, tt := range []struct {
		name        string
		ports, want []uint16
	}{
		{"one", []uint16{80}, []uint16{80 + half}},
		{"two", []uint16{80, 40000}, []uint16{80 + half, 40000 - half}},
		{"each is the other's", []uint16{80, 80 + half}, []uint16{1, 2}},
		{"one has none of its own", []uint16{half}, []uint16{1}},
		{"the next is taken, too", []uint16{half, 1, 2 + half}, []uint16{3, 1 + half, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ports []model.Port
			for _, n := range tt.ports {
				ports = append(ports, model.Port{Protocol: model.TCP, Number: n}, model.Port{Protocol: model.UDP, Number: n ^ 5})
			}
			for i, n := range tt.ports {
				if got := sparePort(ports, model.Port{Protocol: model.TCP, Number: n}); got != tt.want[i] {
					t.Errorf("got %d for %d, want %d", got, n, tt.want[i])
				}
			}
		})
	}
}
