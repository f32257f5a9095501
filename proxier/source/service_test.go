// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/model"
)

// compareAddr lets cmp compare values that hold addresses.
var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func addrs(ips ...string) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		out = append(out, netip.MustParseAddr(ip))
	}
	return out
}

// webService returns a valid Service, changed by each of the functions.
func webService(changes ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeClusterIP,
			ClusterIP:  "10.96.0.10",
			ClusterIPs: []string{"10.96.0.10"},
			Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, change := range changes {
		change(svc)
	}
	return svc
}

func withIPs(ips ...string) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", ips
		if len(ips) > 0 {
			svc.Spec.ClusterIP = ips[0]
		}
	}
}

func withPorts(ports ...corev1.ServicePort) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Spec.Ports = ports }
}

func TestTranslateService(t *testing.T) {
	key := model.ObjectKey{Namespace: "shop", Name: "web"}
	http := []model.Port{{Name: "http", Protocol: model.TCP, Number: 80}}
	for _, tt := range []struct {
		name string
		in   *corev1.Service
		// policy is the zero one where that makes no difference.
		policy Policy
		// want is nil where there is nothing to program.
		want    *model.Service
		refused []string
	}{
		{
			name: "one cluster IP, one port",
			in:   webService(),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: http},
		},
		{
			name: "dual-stack keeps the order of families",
			in:   webService(withIPs("fd00::10", "10.96.0.10")),
			want: &model.Service{Key: key, ClusterIPs: addrs("fd00::10", "10.96.0.10"), Ports: http},
		},
		{
			name: "clusterIP alone is enough",
			in:   webService(func(s *corev1.Service) { s.Spec.ClusterIPs = nil }),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: http},
		},
		{
			name: "clusterIPs wins over clusterIP",
			in:   webService(func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.99" }),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: http},
		},
		{
			name: "NodePort and LoadBalancer have cluster IPs too",
			in:   webService(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: http},
		},
		{
			name: "an absent protocol is TCP, an absent name is empty",
			in:   webService(withPorts(corev1.ServicePort{Port: 443})),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: []model.Port{{Protocol: model.TCP, Number: 443}}},
		},
		{
			name: "same name and number for two protocols",
			in: webService(withPorts(
				corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
				corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolTCP, Port: 53},
				corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolSCTP, Port: 53})),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: []model.Port{
				{Name: "dns", Protocol: model.UDP, Number: 53},
				{Name: "dns", Protocol: model.TCP, Number: 53},
				{Name: "dns", Protocol: model.SCTP, Number: 53}}},
		},
		{name: "headless", in: webService(withIPs("None"))},
		{name: "no cluster IP yet", in: webService(withIPs())},
		{
			name: "ExternalName, even with a cluster IP",
			in:   webService(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }),
		},
		{
			name: "labelled for another service proxy, even with an empty value",
			in:   webService(func(s *corev1.Service) { s.Labels = map[string]string{LabelServiceProxyName: ""} }),
		},
		{
			name: "what others act on: publishNotReadyAddresses, trafficDistribution, topology annotations",
			in: webService(func(s *corev1.Service) {
				s.Spec.PublishNotReadyAddresses = true
				s.Spec.TrafficDistribution = ptr(corev1.ServiceTrafficDistributionPreferSameNode)
				s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
			}),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: http},
		},
		{
			name: "no ports",
			in:   webService(withPorts()),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10")},
		},
		{
			name:    "one bad cluster IP of two",
			in:      webService(withIPs("127.0.0.1", "fd00::10")),
			want:    &model.Service{Key: key, ClusterIPs: addrs("fd00::10"), Ports: http},
			refused: []string{`Service "shop/web": spec.clusterIPs[0] "127.0.0.1": is a loopback address`},
		},
		{
			name:    "two cluster IPs of one family",
			in:      webService(withIPs("10.96.0.10", "10.96.0.11")),
			want:    &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: http},
			refused: []string{`Service "shop/web": spec.clusterIPs[1] "10.96.0.11": is a second address of the same family`},
		},
		{
			name:    "no cluster IP is left",
			in:      webService(func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "224.0.0.1", nil }),
			refused: []string{`Service "shop/web": spec.clusterIP "224.0.0.1": is a multicast address`},
		},
		{
			name:    "hostile name",
			in:      webService(func(s *corev1.Service) { s.Name = "web\" -j ACCEPT\nCOMMIT" }),
			refused: []string{`Service "shop/web\" -j ACCEPT\nCOMMIT": metadata.name "web\" -j ACCEPT\nCOMMIT": ` + reasonLabel},
		},
		{
			name:    "hostile namespace",
			in:      webService(func(s *corev1.Service) { s.Namespace = "shop\n" }),
			refused: []string{`Service "shop\n/web": metadata.namespace "shop\n": ` + reasonLabel},
		},
		{
			name:    "missing name",
			in:      webService(func(s *corev1.Service) { s.Name = "" }),
			refused: []string{`Service "shop/": metadata.name "": ` + reasonLabel},
		},
		{
			name: "bad ports do not take the good one along",
			in: webService(withPorts(
				corev1.ServicePort{Name: "zero", Port: 0},
				corev1.ServicePort{Name: "minus", Port: -1},
				corev1.ServicePort{Name: "large", Port: 65536},
				corev1.ServicePort{Name: "icmp", Port: 1, Protocol: "ICMP"},
				corev1.ServicePort{Name: "lower", Port: 1, Protocol: "tcp"},
				corev1.ServicePort{Name: "COMMIT", Port: 1},
				corev1.ServicePort{Name: strings.Repeat("a", 64), Port: 1},
				corev1.ServicePort{Name: "http", Port: 80},
				corev1.ServicePort{Name: "http", Port: 81},
				corev1.ServicePort{Name: "again", Port: 80},
				corev1.ServicePort{Name: "last", Port: 65535})),
			want: &model.Service{Key: key, ClusterIPs: addrs("10.96.0.10"), Ports: []model.Port{
				{Name: "http", Protocol: model.TCP, Number: 80},
				{Name: "last", Protocol: model.TCP, Number: 65535}}},
			refused: []string{
				`Service "shop/web": spec.ports[0].port "0": ` + reasonPort,
				`Service "shop/web": spec.ports[1].port "-1": ` + reasonPort,
				`Service "shop/web": spec.ports[2].port "65536": ` + reasonPort,
				`Service "shop/web": spec.ports[3].protocol "ICMP": ` + reasonProtocol,
				`Service "shop/web": spec.ports[4].protocol "tcp": ` + reasonProtocol,
				`Service "shop/web": spec.ports[5].name "COMMIT": ` + reasonLabel,
				`Service "shop/web": spec.ports[6].name "` + strings.Repeat("a", 64) + `": ` + reasonLabel,
				`Service "shop/web": spec.ports[8].name "http": ` + reasonSameName,
				`Service "shop/web": spec.ports[9].port "80": ` + reasonSameNumber,
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.in.DeepCopy()
			got, ok, refused := TranslateService(tt.in, tt.policy)
			if ok != (got != nil) {
				t.Errorf("ok = %v with a value %v", ok, got)
			}
			if diff := cmp.Diff(tt.want, got, compareAddr, emptyIsNil); diff != "" {
				t.Errorf("TranslateService (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, lines(refused)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tt.in); diff != "" {
				t.Errorf("TranslateService changed its argument:\n%s", diff)
			}
		})
	}
}
