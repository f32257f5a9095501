// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

func withType(t corev1.ServiceType) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Spec.Type = t }
}

func withExternalIPs(ips ...string) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Spec.ExternalIPs = ips }
}

// withIngress makes the Service one of a load balancer with the addresses.
func withIngress(ingress ...corev1.LoadBalancerIngress) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Status.LoadBalancer.Ingress = ingress
	}
}

// withRanges makes the Service one of a load balancer that is for the ranges.
func withRanges(ranges ...string) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.LoadBalancerSourceRanges = ranges
	}
}

func withPolicies(external corev1.ServiceExternalTrafficPolicy, internal corev1.ServiceInternalTrafficPolicy) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		svc.Spec.ExternalTrafficPolicy, svc.Spec.InternalTrafficPolicy = external, &internal
	}
}

func withHealthCheck(number int32) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Spec.HealthCheckNodePort = number }
}

func withAffinity(affinity corev1.ServiceAffinity, seconds *int32) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		svc.Spec.SessionAffinity = affinity
		svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: seconds}}
	}
}

// serviceCase is a Service, and what is external in what it translates to.
type serviceCase struct {
	name   string
	in     *corev1.Service
	policy Policy
	want   model.Service
	// refused are the refusals without the object's name.
	refused []string
}

func (tt serviceCase) run(t *testing.T) {
	got, ok, refused := TranslateService(tt.in, tt.policy)
	if !ok {
		t.Fatalf("refused as a whole: %v", lines(refused))
	}
	if tt.want.Ports == nil {
		tt.want.Ports = got.Ports
	}
	tt.want.Key, tt.want.ClusterIPs = got.Key, got.ClusterIPs
	if diff := cmp.Diff(&tt.want, got, compareAddr, comparePrefix); diff != "" {
		t.Errorf("TranslateService (-want +got):\n%s", diff)
	}
	var told []string
	for _, line := range lines(refused) {
		told = append(told, strings.TrimPrefix(line, `Service "shop/web": `))
	}
	if diff := cmp.Diff(tt.refused, told); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}

func TestNodePorts(t *testing.T) {
	const np, lb = corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer
	port := func(name string, protocol corev1.Protocol, number, node int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: number, NodePort: node}
	}
	one := func(node uint16) model.Service {
		return model.Service{Ports: []model.Port{{Name: "a", Protocol: model.TCP, Number: 1, NodePort: node}}}
	}
	for _, tt := range []serviceCase{
		{name: "of a NodePort Service", in: webService(withType(np), withPorts(port("a", "TCP", 1, 30080))), want: one(30080)},
		{name: "of a LoadBalancer Service", in: webService(withType(lb), withPorts(port("a", "TCP", 1, 30080))), want: one(30080)},
		{name: "of a ClusterIP Service", in: webService(withPorts(port("a", "TCP", 1, 30080))), want: one(0)},
		{name: "of a ClusterIP Service, out of range", in: webService(withPorts(port("a", "TCP", 1, -1))), want: one(0)},
		{name: "none", in: webService(withType(lb), withPorts(port("a", "TCP", 1, 0))), want: one(0)},
		{name: "the last", in: webService(withType(np), withPorts(port("a", "TCP", 1, 65535))), want: one(65535)},
		{
			name:    "too large",
			in:      webService(withType(np), withPorts(port("a", "TCP", 1, 65536))),
			want:    one(0),
			refused: []string{`spec.ports[0].nodePort "65536": ` + reasonPort},
		},
		{
			name:    "negative",
			in:      webService(withType(np), withPorts(port("a", "TCP", 1, -1))),
			want:    one(0),
			refused: []string{`spec.ports[0].nodePort "-1": ` + reasonPort},
		},
		{
			name: "the same for two ports, and for another protocol",
			in: webService(withType(np), withPorts(
				port("a", "TCP", 1, 30080), port("b", "TCP", 2, 30080), port("c", "UDP", 1, 30080))),
			want: model.Service{Ports: []model.Port{
				{Name: "a", Protocol: model.TCP, Number: 1, NodePort: 30080},
				{Name: "b", Protocol: model.TCP, Number: 2},
				{Name: "c", Protocol: model.UDP, Number: 1, NodePort: 30080},
			}},
			refused: []string{`spec.ports[1].nodePort "30080": ` + reasonSameNode},
		},
		{
			name: "a port that is refused does not take it",
			in: webService(withType(np), withPorts(
				port("x y", "TCP", 1, 30080), port("b", "TCP", 2, 30080))),
			want:    model.Service{Ports: []model.Port{{Name: "b", Protocol: model.TCP, Number: 2, NodePort: 30080}}},
			refused: []string{`spec.ports[0].name "x y": ` + reasonLabel},
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestExternalIPs(t *testing.T) {
	external := func(ips ...string) model.Service { return model.Service{ExternalIPs: addrs(ips...)} }
	refused := func(ip, reason string) serviceCase {
		return serviceCase{name: ip, in: webService(withExternalIPs(ip, "192.0.2.1")), want: external("192.0.2.1"),
			refused: []string{`spec.externalIPs[0] "` + ip + `": ` + reason}}
	}
	policy := Policy{ServiceCIDRs: prefixes("10.96.0.0/12", "fd00:96::/112"), PodCIDRs: prefixes("10.244.0.0/16")}
	for _, tt := range []serviceCase{
		{name: "none", in: webService()},
		{name: "of both families", in: webService(withExternalIPs("2001:db8::1", "192.0.2.1")), want: external("2001:db8::1", "192.0.2.1")},
		{name: "leading zeros, and duplicates", in: webService(withExternalIPs("192.000.2.01", "192.0.2.1", "2001:DB8::1", "2001:db8:0::1")),
			want: external("192.0.2.1", "2001:db8::1")},
		{name: "of any type", in: webService(withType(corev1.ServiceTypeLoadBalancer), withExternalIPs("192.0.2.1")), want: external("192.0.2.1")},
		refused("127.0.0.1", reasonLoopback),
		refused("127.255.0.1", reasonLoopback),
		refused("::1", reasonLoopback),
		refused("169.254.169.254", reasonLinkLocal),
		refused("fe80::1", reasonLinkLocal),
		refused("224.0.0.1", reasonMulticast),
		refused("239.1.1.1", reasonMulticast),
		refused("ff02::1", reasonMulticast),
		refused("0.0.0.0", reasonUnspecified),
		refused("::", reasonUnspecified),
		refused("255.255.255.255", reasonBroadcast),
		refused("::ffff:192.0.2.1", reasonMapped),
		refused("2001:db8::1%eth0", reasonZone),
		refused("", reasonNoAddress),
		refused("192.0.2.1/32", reasonNoAddress),
		refused("10.96.0.10", reasonOwnClusterIP),
		refused("010.96.0.010", reasonOwnClusterIP),
		{
			name:    "the cluster IP of the other family",
			in:      webService(withIPs("10.96.0.10", "fd00::10"), withExternalIPs("fd00::10")),
			refused: []string{`spec.externalIPs[0] "fd00::10": ` + reasonOwnClusterIP},
		},
		{
			name:    "rules in an address",
			in:      webService(withExternalIPs("192.0.2.1\nCOMMIT")),
			refused: []string{`spec.externalIPs[0] "192.0.2.1\nCOMMIT": ` + reasonNoAddress},
		},
		{
			name:   "inside the service and the pod CIDRs",
			in:     webService(withExternalIPs("10.97.0.1", "192.0.2.1", "fd00:96::1", "10.244.9.9")),
			policy: policy,
			want:   external("192.0.2.1"),
			refused: []string{
				`spec.externalIPs[0] "10.97.0.1": ` + reasonServiceCIDR,
				`spec.externalIPs[2] "fd00:96::1": ` + reasonServiceCIDR,
				`spec.externalIPs[3] "10.244.9.9": ` + reasonPodCIDR,
			},
		},
		{
			name:    "only some are allowed",
			in:      webService(withExternalIPs("192.0.2.1", "198.51.100.1", "2001:db8::1")),
			policy:  Policy{RestrictExternalIPs: true, ExternalIPCIDRs: prefixes("192.0.2.0/24", "2001:db8::/32")},
			want:    external("192.0.2.1", "2001:db8::1"),
			refused: []string{`spec.externalIPs[1] "198.51.100.1": ` + reasonNotAllowed},
		},
		{
			name:    "none are allowed",
			in:      webService(withExternalIPs("192.0.2.1")),
			policy:  Policy{RestrictExternalIPs: true},
			refused: []string{`spec.externalIPs[0] "192.0.2.1": ` + reasonNotAllowed},
		},
		{
			name:    "what is allowed is still not to be a Pod's",
			in:      webService(withExternalIPs("10.244.9.9")),
			policy:  Policy{PodCIDRs: policy.PodCIDRs, RestrictExternalIPs: true, ExternalIPCIDRs: prefixes("0.0.0.0/0")},
			refused: []string{`spec.externalIPs[0] "10.244.9.9": ` + reasonPodCIDR},
		},
		{
			name:   "CIDRs do not restrict by themselves",
			in:     webService(withExternalIPs("198.51.100.1")),
			policy: Policy{ExternalIPCIDRs: prefixes("192.0.2.0/24")},
			want:   external("198.51.100.1"),
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestLoadBalancerIPs(t *testing.T) {
	ip := func(ip string) corev1.LoadBalancerIngress { return corev1.LoadBalancerIngress{IP: ip} }
	mode := func(address, mode string) corev1.LoadBalancerIngress {
		return corev1.LoadBalancerIngress{IP: address, IPMode: ptr(corev1.LoadBalancerIPMode(mode))}
	}
	vips := func(ips ...string) model.Service { return model.Service{LoadBalancerIPs: addrs(ips...)} }
	for _, tt := range []serviceCase{
		{name: "of both families, without duplicates", in: webService(withIngress(ip("192.0.2.1"), ip("2001:db8::1"), ip("192.0.02.1"))),
			want: vips("192.0.2.1", "2001:db8::1")},
		{name: "VIP by name", in: webService(withIngress(mode("192.0.2.1", "VIP"))), want: vips("192.0.2.1")},
		{name: "Proxy, an unknown mode and a host name are not ours",
			in: webService(withIngress(mode("127.0.0.1", "Proxy"), mode("192.0.2.1", "Other"), corev1.LoadBalancerIngress{Hostname: "lb.example"}))},
		{name: "of another type", in: webService(withIngress(ip("192.0.2.1")), withType(corev1.ServiceTypeNodePort))},
		{
			name: "hostile",
			in: webService(withIngress(ip("127.0.0.1"), ip("169.254.169.254"), ip("::"), ip("::ffff:1.2.3.4"),
				ip("10.96.0.10"), ip("\"\nCOMMIT"), ip("192.0.2.1"))),
			want: vips("192.0.2.1"),
			refused: []string{
				`status.loadBalancer.ingress[0].ip "127.0.0.1": ` + reasonLoopback,
				`status.loadBalancer.ingress[1].ip "169.254.169.254": ` + reasonLinkLocal,
				`status.loadBalancer.ingress[2].ip "::": ` + reasonUnspecified,
				`status.loadBalancer.ingress[3].ip "::ffff:1.2.3.4": ` + reasonMapped,
				`status.loadBalancer.ingress[4].ip "10.96.0.10": ` + reasonOwnClusterIP,
				`status.loadBalancer.ingress[5].ip "\"\nCOMMIT": ` + reasonNoAddress,
			},
		},
		{
			name:   "inside the service and the pod CIDRs",
			in:     webService(withIngress(ip("10.97.0.1"), ip("10.244.9.9"))),
			policy: Policy{ServiceCIDRs: prefixes("10.96.0.0/12"), PodCIDRs: prefixes("10.244.0.0/16")},
			refused: []string{
				`status.loadBalancer.ingress[0].ip "10.97.0.1": ` + reasonServiceCIDR,
				`status.loadBalancer.ingress[1].ip "10.244.9.9": ` + reasonPodCIDR,
			},
		},
		{
			name:   "what external IPs are restricted to does not matter",
			in:     webService(withIngress(ip("192.0.2.1"))),
			policy: Policy{RestrictExternalIPs: true},
			want:   vips("192.0.2.1"),
		},
		{
			name: "an external IP that is the load balancer's is that alone",
			in:   webService(withIngress(ip("192.0.2.1")), withExternalIPs("192.0.2.1", "192.0.2.2")),
			want: model.Service{LoadBalancerIPs: addrs("192.0.2.1"), ExternalIPs: addrs("192.0.2.2")},
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestSourceRanges(t *testing.T) {
	ranges := func(cidrs ...string) model.Service {
		return model.Service{Restricted: true, SourceRanges: prefixes(cidrs...)}
	}
	for _, tt := range []serviceCase{
		{name: "none", in: webService(withType(corev1.ServiceTypeLoadBalancer))},
		{name: "of both families", in: webService(withRanges("192.0.2.0/24", "2001:db8::/32")), want: ranges("192.0.2.0/24", "2001:db8::/32")},
		{name: "white space around", in: webService(withRanges("\t 192.0.2.0/24 \n")), want: ranges("192.0.2.0/24")},
		{name: "the bits of the host, and duplicates", in: webService(withRanges("192.0.2.77/24", "192.0.2.0/24", "192.000.2.0/24")), want: ranges("192.0.2.0/24")},
		{name: "every address stays", in: webService(withRanges("0.0.0.0/0", "192.0.2.0/24", "::/0")), want: ranges("0.0.0.0/0", "192.0.2.0/24", "::/0")},
		{name: "of another type", in: webService(withRanges("192.0.2.0/24", "x"), withType(corev1.ServiceTypeNodePort))},
		{
			name: "the annotation that came before",
			in: webService(withType(corev1.ServiceTypeLoadBalancer), func(svc *corev1.Service) {
				svc.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "192.0.2.0/24"}
			}),
		},
		{
			name: "invalid ones admit nobody",
			in:   webService(withRanges("", "192.0.2.1", "::ffff:0:0/96", "192.0.2.0/24\nCOMMIT")),
			want: model.Service{Restricted: true},
			refused: []string{
				`spec.loadBalancerSourceRanges[0] "": ` + reasonNoPrefix,
				`spec.loadBalancerSourceRanges[1] "192.0.2.1": ` + reasonNoPrefix,
				`spec.loadBalancerSourceRanges[2] "::ffff:0:0/96": ` + reasonMapped,
				`spec.loadBalancerSourceRanges[3] "192.0.2.0/24\nCOMMIT": ` + reasonNoPrefix,
			},
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestTrafficPolicies(t *testing.T) {
	const local, cluster = corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceExternalTrafficPolicyCluster
	const internalLocal, internalCluster = corev1.ServiceInternalTrafficPolicyLocal, corev1.ServiceInternalTrafficPolicyCluster
	for _, tt := range []serviceCase{
		{name: "none", in: webService()},
		{name: "Cluster", in: webService(withType(corev1.ServiceTypeNodePort), withPolicies(cluster, internalCluster))},
		{name: "Local, NodePort", in: webService(withType(corev1.ServiceTypeNodePort), withPolicies(local, internalCluster)),
			want: model.Service{ExternalTrafficLocal: true}},
		{name: "Local, LoadBalancer", in: webService(withType(corev1.ServiceTypeLoadBalancer), withPolicies(local, internalLocal)),
			want: model.Service{ExternalTrafficLocal: true, InternalTrafficLocal: true}},
		{name: "Local, ClusterIP", in: webService(withPolicies(local, internalLocal)), want: model.Service{InternalTrafficLocal: true}},
		{name: "Local, ClusterIP with an external IP", in: webService(withPolicies(local, internalCluster), withExternalIPs("192.0.2.1")),
			want: model.Service{ExternalTrafficLocal: true, ExternalIPs: addrs("192.0.2.1")}},
		{
			name:    "Local, ClusterIP with an external IP that is refused",
			in:      webService(withPolicies(local, internalCluster), withExternalIPs("127.0.0.1")),
			refused: []string{`spec.externalIPs[0] "127.0.0.1": ` + reasonLoopback},
		},
		{
			name: "neither",
			in:   webService(withType(corev1.ServiceTypeNodePort), withPolicies("local", "Local\n")),
			refused: []string{
				`spec.internalTrafficPolicy "Local\n": ` + reasonPolicy,
				`spec.externalTrafficPolicy "local": ` + reasonPolicy,
			},
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestHealthCheckNodePort(t *testing.T) {
	const local = corev1.ServiceExternalTrafficPolicyLocal
	lb := func(changes ...func(*corev1.Service)) *corev1.Service {
		return webService(append([]func(*corev1.Service){withType(corev1.ServiceTypeLoadBalancer), withPolicies(local, "Cluster")}, changes...)...)
	}
	want := func(number uint16) model.Service {
		return model.Service{ExternalTrafficLocal: true, HealthCheckNodePort: number}
	}
	nodePort := func(protocol corev1.Protocol) func(*corev1.Service) {
		return withPorts(corev1.ServicePort{Protocol: protocol, Port: 1, NodePort: 30080})
	}
	for _, tt := range []serviceCase{
		{name: "Local", in: lb(withHealthCheck(32000)), want: want(32000)},
		{name: "none yet", in: lb(), want: want(0)},
		{name: "Cluster", in: lb(withHealthCheck(32000), withPolicies("Cluster", "Cluster"))},
		{name: "NodePort", in: lb(withHealthCheck(32000), withType(corev1.ServiceTypeNodePort)), want: want(0)},
		{name: "a node port of UDP", in: lb(withHealthCheck(30080), nodePort("UDP")), want: want(30080)},
		{name: "too large", in: lb(withHealthCheck(65536)), want: want(0), refused: []string{`spec.healthCheckNodePort "65536": ` + reasonPort}},
		{name: "negative", in: lb(withHealthCheck(-1)), want: want(0), refused: []string{`spec.healthCheckNodePort "-1": ` + reasonPort}},
		{name: "a node port", in: lb(withHealthCheck(30080), nodePort("TCP")), want: want(0),
			refused: []string{`spec.healthCheckNodePort "30080": ` + reasonHealthNodePort}},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestSessionAffinity(t *testing.T) {
	const clientIP, none = corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone
	sticky := func(d time.Duration) model.Service { return model.Service{AffinityTimeout: d} }
	const timeout = `spec.sessionAffinityConfig.clientIP.timeoutSeconds `
	for _, tt := range []serviceCase{
		{name: "none", in: webService(withAffinity(none, ptr[int32](5)))},
		{name: "absent", in: webService(withAffinity("", nil))},
		{name: "by default", in: webService(withAffinity(clientIP, nil)), want: sticky(3 * time.Hour)},
		{name: "without a config", in: webService(func(s *corev1.Service) { s.Spec.SessionAffinity = clientIP }), want: sticky(3 * time.Hour)},
		{name: "the least", in: webService(withAffinity(clientIP, ptr[int32](1))), want: sticky(time.Second)},
		{name: "the most", in: webService(withAffinity(clientIP, ptr[int32](86400))), want: sticky(24 * time.Hour)},
		{name: "zero", in: webService(withAffinity(clientIP, ptr[int32](0))), want: sticky(3 * time.Hour), refused: []string{timeout + `"0": ` + reasonTimeout}},
		{name: "too long", in: webService(withAffinity(clientIP, ptr[int32](86401))), want: sticky(3 * time.Hour), refused: []string{timeout + `"86401": ` + reasonTimeout}},
		{name: "negative", in: webService(withAffinity(clientIP, ptr[int32](-1))), want: sticky(3 * time.Hour), refused: []string{timeout + `"-1": ` + reasonTimeout}},
		{name: "unknown", in: webService(withAffinity("Cookie", nil)), refused: []string{`spec.sessionAffinity "Cookie": ` + reasonAffinity}},
	} {
		t.Run(tt.name, tt.run)
	}
}
