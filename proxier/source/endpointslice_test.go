// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/model"
)

// emptyIsNil makes cmp see no difference between an empty and a nil slice.
var emptyIsNil = cmp.FilterValues(
	func(a, b any) bool { return lenOf(a) == 0 && lenOf(b) == 0 },
	cmp.Comparer(func(a, b any) bool { return true }))

func lenOf(v any) int {
	switch v := v.(type) {
	case []model.Port:
		return len(v)
	case []model.SliceEndpoint:
		return len(v)
	}
	return -1
}

func lines(refused []Refusal) []string {
	var out []string
	for _, r := range refused {
		out = append(out, r.String())
	}
	return out
}

func ptr[T any](v T) *T { return &v }

// webSlice returns a valid EndpointSlice, changed by each of the functions.
func webSlice(changes ...func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-x7k2p",
			Labels: map[string]string{LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr[int32](8080)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.5"}, NodeName: ptr("node-1")}},
	}
	for _, change := range changes {
		change(slice)
	}
	return slice
}

func withEndpoints(endpoints ...discoveryv1.Endpoint) func(*discoveryv1.EndpointSlice) {
	return func(s *discoveryv1.EndpointSlice) { s.Endpoints = endpoints }
}

// withAddress makes ip the only address of the only endpoint.
func withAddress(ip string) func(*discoveryv1.EndpointSlice) {
	return withEndpoints(discoveryv1.Endpoint{Addresses: []string{ip}})
}

func hintsFor(zones, nodes []string) *discoveryv1.EndpointHints {
	hints := &discoveryv1.EndpointHints{}
	for _, zone := range zones {
		hints.ForZones = append(hints.ForZones, discoveryv1.ForZone{Name: zone})
	}
	for _, node := range nodes {
		hints.ForNodes = append(hints.ForNodes, discoveryv1.ForNode{Name: node})
	}
	return hints
}

func withLabel(key, value string) func(*discoveryv1.EndpointSlice) {
	return func(s *discoveryv1.EndpointSlice) { s.Labels[key] = value }
}

// translated returns what webSlice translates to, changed by each of the
// functions.
func translated(changes ...func(*model.EndpointSlice)) *model.EndpointSlice {
	s := &model.EndpointSlice{
		Key:     model.ObjectKey{Namespace: "shop", Name: "web-x7k2p"},
		Service: model.ObjectKey{Namespace: "shop", Name: "web"},
		Family:  model.IPv4,
		Ports:   []model.Port{{Name: "http", Protocol: model.TCP, Number: 8080}},
		Endpoints: []model.SliceEndpoint{
			{Addr: netip.MustParseAddr("10.244.1.5"), NodeName: "node-1", Ready: true, Serving: true}},
	}
	for _, change := range changes {
		change(s)
	}
	return s
}

func endpoints(list ...model.SliceEndpoint) func(*model.EndpointSlice) {
	return func(s *model.EndpointSlice) { s.Endpoints = list }
}

func ready(ip string) model.SliceEndpoint {
	return model.SliceEndpoint{Addr: netip.MustParseAddr(ip), Ready: true, Serving: true}
}

type sliceCase struct {
	name string
	in   *discoveryv1.EndpointSlice
	// want is nil where there is nothing to program.
	want    *model.EndpointSlice
	refused []string
}

func (tt sliceCase) run(t *testing.T) {
	before := tt.in.DeepCopy()
	got, ok, refused := TranslateEndpointSlice(tt.in)
	if ok != (got != nil) {
		t.Errorf("ok = %v with a value %v", ok, got)
	}
	if diff := cmp.Diff(tt.want, got, compareAddr, emptyIsNil); diff != "" {
		t.Errorf("TranslateEndpointSlice (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(tt.refused, lines(refused)); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, tt.in); diff != "" {
		t.Errorf("TranslateEndpointSlice changed its argument:\n%s", diff)
	}
}

func TestTranslateEndpointSlice(t *testing.T) {
	for _, tt := range []sliceCase{
		{name: "one endpoint", in: webSlice(), want: translated()},
		{
			name: "only the first address counts",
			in:   webSlice(withEndpoints(discoveryv1.Endpoint{Addresses: []string{"10.244.1.6", "127.0.0.1"}})),
			want: translated(endpoints(ready("10.244.1.6"))),
		},
		{
			name: "leading zeros",
			in:   webSlice(withAddress("010.244.001.006")),
			want: translated(endpoints(ready("10.244.1.6"))),
		},
		{
			name: "IPv6",
			in: webSlice(withAddress("2001:db8:0:0::6"), func(s *discoveryv1.EndpointSlice) {
				s.AddressType = discoveryv1.AddressTypeIPv6
			}),
			want: translated(endpoints(ready("2001:db8::6")), func(s *model.EndpointSlice) { s.Family = model.IPv6 }),
		},
		{
			name: "conditions as they are told",
			in: webSlice(withEndpoints(discoveryv1.Endpoint{
				Addresses:  []string{"10.244.1.6"},
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)},
			})),
			want: translated(endpoints(model.SliceEndpoint{Addr: netip.MustParseAddr("10.244.1.6"), Terminating: true})),
		},
		{
			name: "absent serving means serving, even where ready is false",
			in: webSlice(withEndpoints(discoveryv1.Endpoint{
				Addresses:  []string{"10.244.1.6"},
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(false)},
			})),
			want: translated(endpoints(model.SliceEndpoint{Addr: netip.MustParseAddr("10.244.1.6"), Serving: true})),
		},
		{
			name: "hints, without duplicates",
			in: webSlice(withEndpoints(discoveryv1.Endpoint{
				Addresses: []string{"10.244.1.6"},
				Hints:     hintsFor([]string{"Zone_1.a", "b", "b"}, []string{"node-1.example", "node-1.example"}),
			})),
			want: translated(endpoints(model.SliceEndpoint{
				Addr: netip.MustParseAddr("10.244.1.6"), Ready: true, Serving: true,
				Hints: model.NewHints([]string{"Zone_1.a", "b"}, []string{"node-1.example"}),
			})),
		},
		{
			name: "no hints",
			in:   webSlice(withEndpoints(discoveryv1.Endpoint{Addresses: []string{"10.244.1.6"}, Hints: &discoveryv1.EndpointHints{}})),
			want: translated(endpoints(ready("10.244.1.6"))),
		},
		{
			name: "empty name and absent protocol of a port",
			in: webSlice(func(s *discoveryv1.EndpointSlice) {
				s.Ports = []discoveryv1.EndpointPort{{Name: ptr(""), Port: ptr[int32](53)}}
			}),
			want: translated(func(s *model.EndpointSlice) { s.Ports = []model.Port{{Protocol: model.TCP, Number: 53}} }),
		},
		{
			name: "a port without number or name is ignored, without a word",
			in: webSlice(func(s *discoveryv1.EndpointSlice) {
				s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr("a")}, discoveryv1.EndpointPort{Name: ptr("b"), Port: ptr[int32](0)},
					discoveryv1.EndpointPort{Port: ptr[int32](53)})
			}),
			want: translated(),
		},
		{
			name: "two names for one number",
			in: webSlice(func(s *discoveryv1.EndpointSlice) {
				s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr("alt"), Port: ptr[int32](8080)})
			}),
			want: translated(func(s *model.EndpointSlice) {
				s.Ports = append(s.Ports, model.Port{Name: "alt", Protocol: model.TCP, Number: 8080})
			}),
		},
		{
			name: "trigger time",
			in: webSlice(func(s *discoveryv1.EndpointSlice) {
				s.Annotations = map[string]string{AnnotationTriggerTime: "2026-03-01T10:00:00.123456789Z"}
			}),
			want: translated(func(s *model.EndpointSlice) {
				s.TriggerTime = time.Date(2026, 3, 1, 10, 0, 0, 123456789, time.UTC)
			}),
		},
		{
			name: "malformed trigger time is no trigger time",
			in: webSlice(func(s *discoveryv1.EndpointSlice) {
				s.Annotations = map[string]string{AnnotationTriggerTime: "yesterday"}
			}),
			want: translated(),
		},
		{name: "headless, even with an empty value", in: webSlice(withLabel(LabelHeadless, ""))},
		{name: "of no Service", in: webSlice(func(s *discoveryv1.EndpointSlice) { s.Labels = nil })},
		{name: "names instead of addresses", in: webSlice(func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN })},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestTranslateEndpointSliceRefuses(t *testing.T) {
	const object = `EndpointSlice "shop/web-x7k2p": `
	address := func(ip, reason string) []string {
		return []string{object + `endpoints[0].addresses[0] "` + ip + `": ` + reason}
	}
	none := translated(endpoints())
	for _, tt := range []sliceCase{
		{name: "unspecified", in: webSlice(withAddress("0.0.0.0")), want: none, refused: address("0.0.0.0", reasonUnspecified)},
		{name: "loopback", in: webSlice(withAddress("127.8.9.1")), want: none, refused: address("127.8.9.1", reasonLoopback)},
		{name: "cloud metadata", in: webSlice(withAddress("169.254.169.254")), want: none, refused: address("169.254.169.254", reasonLinkLocal)},
		{name: "multicast", in: webSlice(withAddress("239.1.1.1")), want: none, refused: address("239.1.1.1", reasonMulticast)},
		{name: "broadcast", in: webSlice(withAddress("255.255.255.255")), want: none, refused: address("255.255.255.255", reasonBroadcast)},
		{name: "IPv4-mapped", in: webSlice(withAddress("::ffff:1.2.3.4")), want: none, refused: address("::ffff:1.2.3.4", reasonMapped)},
		{name: "other family", in: webSlice(withAddress("2001:db8::1")), want: none, refused: address("2001:db8::1", reasonFamily)},
		{name: "a host name", in: webSlice(withAddress("web.example")), want: none, refused: address("web.example", reasonNoAddress)},
		{name: "rules in an address", in: webSlice(withAddress("1.2.3.4\nCOMMIT\n")), want: none, refused: address(`1.2.3.4\nCOMMIT\n`, reasonNoAddress)},
		{
			name:    "no address",
			in:      webSlice(withEndpoints(discoveryv1.Endpoint{})),
			want:    none,
			refused: []string{object + `endpoints[0].addresses "": ` + reasonNoAddresses},
		},
		{
			name: "one bad endpoint among good ones",
			in: webSlice(withEndpoints(
				discoveryv1.Endpoint{Addresses: []string{"10.244.1.6"}},
				discoveryv1.Endpoint{Addresses: []string{"127.0.0.1"}},
				discoveryv1.Endpoint{Addresses: []string{"10.244.1.7"}})),
			want:    translated(endpoints(ready("10.244.1.6"), ready("10.244.1.7"))),
			refused: []string{object + `endpoints[1].addresses[0] "127.0.0.1": ` + reasonLoopback},
		},
		{
			name:    "a hostile node name leaves the endpoint without node",
			in:      webSlice(withEndpoints(discoveryv1.Endpoint{Addresses: []string{"10.244.1.6"}, NodeName: ptr("a\nb")})),
			want:    translated(endpoints(ready("10.244.1.6"))),
			refused: []string{object + `endpoints[0].nodeName "a\nb": ` + reasonSubdomain},
		},
		{
			name: "hostile hints leave the endpoint, and the others",
			in: webSlice(withEndpoints(discoveryv1.Endpoint{
				Addresses: []string{"10.244.1.6"},
				Hints:     hintsFor([]string{"", "a\nCOMMIT", "b"}, []string{"n", `n"`, strings.Repeat("a", 254)}),
			})),
			want: translated(endpoints(model.SliceEndpoint{
				Addr: netip.MustParseAddr("10.244.1.6"), Ready: true, Serving: true,
				Hints: model.NewHints([]string{"b"}, []string{"n"}),
			})),
			refused: []string{
				object + `endpoints[0].hints.forZones[0].name "": ` + reasonLabelValue,
				object + `endpoints[0].hints.forZones[1].name "a\nCOMMIT": ` + reasonLabelValue,
				object + `endpoints[0].hints.forNodes[1].name "n\"": ` + reasonSubdomain,
				object + `endpoints[0].hints.forNodes[2].name "` + strings.Repeat("a", 77) + `...": ` + reasonSubdomain,
			},
		},
		{
			name: "bad ports do not take the good one along",
			in: webSlice(func(s *discoveryv1.EndpointSlice) {
				s.Ports = append(s.Ports,
					discoveryv1.EndpointPort{Name: ptr("large"), Port: ptr[int32](70000)},
					discoveryv1.EndpointPort{Name: ptr("icmp"), Port: ptr[int32](1), Protocol: ptr(corev1.Protocol("ICMP"))},
					discoveryv1.EndpointPort{Name: ptr("x y"), Port: ptr[int32](1)},
					discoveryv1.EndpointPort{Name: ptr("http"), Port: ptr[int32](81)})
			}),
			want: translated(),
			refused: []string{
				object + `ports[1].port "70000": ` + reasonPort,
				object + `ports[2].protocol "ICMP": ` + reasonProtocol,
				object + `ports[3].name "x y": ` + reasonLabel,
				object + `ports[4].name "http": ` + reasonSameName,
			},
		},
		{
			name:    "hostile Service name",
			in:      webSlice(withLabel(LabelServiceName, "Web_1")),
			refused: []string{object + `metadata.labels["kubernetes.io/service-name"] "Web_1": ` + reasonLabel},
		},
		{
			name:    "unknown address type",
			in:      webSlice(func(s *discoveryv1.EndpointSlice) { s.AddressType = "IPX" }),
			refused: []string{object + `addressType "IPX": ` + reasonAddressType},
		},
		{
			name:    "hostile namespace",
			in:      webSlice(func(s *discoveryv1.EndpointSlice) { s.Namespace = "a/b" }),
			refused: []string{`EndpointSlice "a/b/web-x7k2p": metadata.namespace "a/b": ` + reasonLabel},
		},
		{
			name: "overlong name",
			in:   webSlice(func(s *discoveryv1.EndpointSlice) { s.Name = strings.Repeat("a", 1000) }),
			refused: []string{`EndpointSlice "shop/` + strings.Repeat("a", 250) + `...": metadata.name "` +
				strings.Repeat("a", 77) + `...": ` + reasonSubdomain},
		},
	} {
		t.Run(tt.name, tt.run)
	}
}
