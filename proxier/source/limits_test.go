// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// manyPorts returns n ports of a Service, with node ports.
func manyPorts(n int) []corev1.ServicePort {
	ports := make([]corev1.ServicePort, n)
	for i := range ports {
		ports[i] = corev1.ServicePort{Name: fmt.Sprintf("port-%d", i), Port: int32(i + 1), NodePort: int32(i + 1)}
	}
	return ports
}

// manyAddrs returns n different addresses.
func manyAddrs(n int) []string {
	out := make([]string, n)
	addr := netip.MustParseAddr("198.18.0.0")
	for i := range out {
		out[i] = addr.String()
		addr = addr.Next()
	}
	return out
}

func manyRanges(n int) []string {
	out := manyAddrs(n)
	for i := range out {
		out[i] += "/32"
	}
	return out
}

func manyIngresses(n int) []corev1.LoadBalancerIngress {
	out := make([]corev1.LoadBalancerIngress, n)
	for i, addr := range manyAddrs(n) {
		out[i].IP = addr
	}
	return out
}

// sizes are the lengths of a Service's lists.
type sizes struct{ ports, external, vips, ranges int }

func TestListsOfServicesAreBounded(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   sizes
		want sizes
		// refused are the refusals without the object's name.
		refused []string
	}{
		{name: "large, and in use", in: sizes{10000, 6, 6, 6}, want: sizes{10000, 6, 6, 6}},
		{name: "1,000 source ranges", in: sizes{20, 3, 2, 1000}, want: sizes{20, 3, 2, 1000}},
		{name: "the limits", in: sizes{20000, 3, 3, 3}, want: sizes{20000, 3, 3, 3}},
		{name: "the limits at few ports", in: sizes{1, 256, 256, 2048}, want: sizes{1, 256, 256, 2048}},
		{
			name: "beyond", in: sizes{20001, 4, 1000, 50000}, want: sizes{20000, 3, 3, 3},
			refused: []string{
				`spec.ports "20001 elements": is more than 20000, the last 1 are left out`,
				`status.loadBalancer.ingress "1000 elements": is more than 3 (at 20000 ports), the last 997 are left out`,
				`spec.loadBalancerSourceRanges "50000 elements": is more than 3 (at 20000 ports), the last 49997 are left out`,
				`spec.externalIPs "4 elements": is more than 3 (at 20000 ports), the last 1 are left out`,
			},
		},
		{
			name: "beyond, without ports", in: sizes{0, 257, 257, 2049}, want: sizes{0, 256, 256, 2048},
			refused: []string{
				`status.loadBalancer.ingress "257 elements": is more than 256 (at 0 ports), the last 1 are left out`,
				`spec.loadBalancerSourceRanges "2049 elements": is more than 2048 (at 0 ports), the last 1 are left out`,
				`spec.externalIPs "257 elements": is more than 256 (at 0 ports), the last 1 are left out`,
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := webService(withPorts(manyPorts(tt.in.ports)...), withRanges(manyRanges(tt.in.ranges)...),
				withIngress(manyIngresses(tt.in.vips)...))
			for _, ip := range manyAddrs(tt.in.external) {
				svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, strings.Replace(ip, "198.18.", "192.0.", 1))
			}
			got, ok, refused := TranslateService(svc, Policy{})
			if !ok {
				t.Fatal("refused as a whole")
			}
			sizes := sizes{len(got.Ports), len(got.ExternalIPs), len(got.LoadBalancerIPs), len(got.SourceRanges)}
			if sizes != tt.want || !got.Restricted {
				t.Errorf("lists of %+v, restricted %v; want %+v", sizes, got.Restricted, tt.want)
			}
			var told []string
			for _, line := range lines(refused) {
				told = append(told, strings.TrimPrefix(line, `Service "shop/web": `))
			}
			if diff := cmp.Diff(tt.refused, told); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

func TestListsOfEndpointSlicesAreBounded(t *testing.T) {
	const object = `EndpointSlice "shop/web-x7k2p": `
	slice := webSlice(func(s *discoveryv1.EndpointSlice) {
		s.Ports, s.Endpoints = nil, nil
		for i := range maxPorts + 2 {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr(fmt.Sprintf("p-%d", i)), Port: ptr(int32(i + 1))})
		}
		for _, ip := range manyAddrs(maxEndpoints + 5) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
		}
		hints := &discoveryv1.EndpointHints{}
		for i := range 1000 {
			hints.ForZones = append(hints.ForZones, discoveryv1.ForZone{Name: fmt.Sprintf("zone-%d", i)})
			hints.ForNodes = append(hints.ForNodes, discoveryv1.ForNode{Name: fmt.Sprintf("node-%d", i)})
		}
		s.Endpoints[0].Hints = hints
	})
	got, _, refused := TranslateEndpointSlice(slice)
	zones := strings.Split(got.Endpoints[0].Hints.Zones(), ",")
	nodes := strings.Split(got.Endpoints[0].Hints.Nodes(), ",")
	if len(got.Ports) != maxPorts || len(got.Endpoints) != maxEndpoints || len(zones) != maxHints || len(nodes) != maxHints {
		t.Errorf("%d ports, %d endpoints with %d zones and %d nodes", len(got.Ports), len(got.Endpoints), len(zones), len(nodes))
	}
	want := []string{
		object + `ports "20002 elements": is more than 20000, the last 2 are left out`,
		object + `endpoints "1005 elements": is more than 1000, the last 5 are left out`,
		object + `endpoints[0].hints.forZones "1000 elements": is more than 8, the last 992 are left out`,
		object + `endpoints[0].hints.forNodes "1000 elements": is more than 8, the last 992 are left out`,
	}
	if diff := cmp.Diff(want, lines(refused)); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}

func TestListsOfNodesAreBounded(t *testing.T) {
	node := &corev1.Node{}
	node.Name = "n"
	for _, ip := range manyAddrs(1000) {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	node.Spec.PodCIDRs = manyRanges(1000)
	got, _, refused := TranslateNode(node)
	if len(got.Addrs) != maxNodeAddrs || len(got.PodCIDRs) != maxNodeAddrs {
		t.Errorf("%d addresses and %d pod CIDRs", len(got.Addrs), len(got.PodCIDRs))
	}
	want := []string{
		`Node "n": status.addresses "1000 elements": is more than 64, the last 936 are left out`,
		`Node "n": spec.podCIDRs "1000 elements": is more than 64, the last 936 are left out`,
	}
	if diff := cmp.Diff(want, lines(refused)); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}

// Objects of the largest size that the API lets through, good and bad.
func BenchmarkTranslate(b *testing.B) {
	service := webService(withPorts(manyPorts(10000)...), withIngress(manyIngresses(6)...))
	b.Run("10000 ports", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			TranslateService(service, Policy{})
		}
	})
	ranges := webService(withType(corev1.ServiceTypeNodePort), withPorts(manyPorts(32)...), withRanges(manyRanges(1000)...))
	b.Run("1000 source ranges", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			TranslateService(ranges, Policy{})
		}
	})
	bad := webService(withPorts(manyPorts(20000)...), withType(corev1.ServiceTypeNodePort))
	for i := range bad.Spec.Ports {
		bad.Spec.Ports[i].NodePort, bad.Spec.Ports[i].Name = -1, "COMMIT"
	}
	b.Run("20000 bad ports", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			TranslateService(bad, Policy{})
		}
	})
	slice := webSlice(func(s *discoveryv1.EndpointSlice) {
		s.Endpoints = nil
		for i, ip := range manyAddrs(1000) {
			zone, node := fmt.Sprintf("zone-%d", i%3), fmt.Sprintf("node-%d", i%100)
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &node,
				Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}, ForNodes: []discoveryv1.ForNode{{Name: node}}}})
		}
	})
	b.Run("1000 endpoints with hints", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			TranslateEndpointSlice(slice)
		}
	})
}
