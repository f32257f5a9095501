// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

// marker is a part of every hostile string. No value of the model may have it,
// but for the names of zones: they may be in capitals.
const marker = "COMMIT"

// hostile are strings that would end a line, a word or a buffer somewhere.
var hostile = []string{
	marker,
	"a\n" + marker + "\n",
	"a\" -j ACCEPT " + marker,
	"a' " + marker + " `reboot`",
	"a\x00" + marker + "\xff",
	" " + marker + " ",
	strings.Repeat("a", 250) + marker + strings.Repeat("a", 1<<16),
	"127.0.0.1" + marker,
	"10.0.0.0/8\n" + marker,
}

// eachString calls check while each string in v in turn is a hostile one.
func eachString(v reflect.Value, path string, check func(path string)) {
	switch v.Kind() {
	case reflect.String:
		old := v.String()
		for _, s := range hostile {
			v.SetString(s)
			check(fmt.Sprintf("%s = %.40q", path, s))
		}
		v.SetString(old)
	case reflect.Pointer:
		if !v.IsNil() {
			eachString(v.Elem(), path, check)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachString(v.Index(i), fmt.Sprintf("%s[%d]", path, i), check)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			old := v.MapIndex(key)
			for _, s := range hostile {
				v.SetMapIndex(key, reflect.ValueOf(s))
				check(fmt.Sprintf("%s[%v] = %.40q", path, key, s))
			}
			v.SetMapIndex(key, old)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				eachString(v.Field(i), path+"."+f.Name, check)
			}
		}
	}
}

func name() metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63),
		Labels: map[string]string{
			source.LabelServiceName: strings.Repeat("s", 63), source.LabelZone: strings.Repeat("Z", 63),
		},
		Annotations: map[string]string{source.AnnotationTriggerTime: "2026-01-01T00:00:00Z"},
	}
}

// fullService is a valid Service whose names are as long as they may be, with a
// value in every field that is read.
func fullService() *corev1.Service {
	mode, internal, timeout := corev1.LoadBalancerIPModeVIP, corev1.ServiceInternalTrafficPolicyLocal, int32(60)
	return &corev1.Service{
		ObjectMeta: name(),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10", "fd00::10"},
			Ports: []corev1.ServicePort{
				{Name: strings.Repeat("p", 63), Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080},
				{Name: "q", Protocol: corev1.ProtocolUDP, Port: 53, NodePort: 30053},
			},
			ExternalIPs: []string{"192.0.2.1"}, LoadBalancerSourceRanges: []string{"10.0.0.0/8", "::/0"},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, InternalTrafficPolicy: &internal,
			HealthCheckNodePort: 32000, SessionAffinity: corev1.ServiceAffinityClientIP,
			SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{
			Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.2", IPMode: &mode, Hostname: "lb.example"}}}},
	}
}

func fullSlice() *discoveryv1.EndpointSlice {
	meta, name63, protocol, number, node := name(), strings.Repeat("p", 63), corev1.ProtocolTCP, int32(8080), strings.Repeat("n", 253)
	meta.Name = node
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  meta,
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name63, Protocol: &protocol, Port: &number}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{"10.244.1.5"}, NodeName: &node,
			Hints: &discoveryv1.EndpointHints{
				ForZones: []discoveryv1.ForZone{{Name: strings.Repeat("Z", 63)}}, ForNodes: []discoveryv1.ForNode{{Name: node}},
			},
		}},
	}
}

func fullPod() *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: name(),
		Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{
			{HostPort: 8080, ContainerPort: 80, Protocol: corev1.ProtocolTCP, HostIP: "192.0.2.1"},
			{HostPort: 53, ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.244.0.1"}, {IP: "fd00::1"}}},
	}
	pod.Name, pod.UID = strings.Repeat("n", 253), "0c5f0c6e-8b0d-4f6e-9d4b-000000000000"
	return pod
}

func fullNode() *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: name(),
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeExternalIP, Address: "2001:db8::1"}}},
	}
	node.Name = strings.Repeat("n", 253)
	return node
}

// TestHostileStrings puts hostile strings into every string field of objects in
// turn. None may reach the model, and none may take along what does not depend
// on it.
func TestHostileStrings(t *testing.T) {
	t.Run("Service", func(t *testing.T) {
		svc := fullService()
		if _, ok, refused := source.TranslateService(svc, source.Policy{}); !ok || len(refused) > 0 {
			t.Fatalf("the valid Service is refused: %v", refused)
		}
		eachString(reflect.ValueOf(svc).Elem(), "", func(path string) {
			s, ok, refused := source.TranslateService(svc, source.Policy{})
			if ok {
				check(t, sourcetest.CheckService(s), refused)
				checkUnmarked(t, path, s)
			}
			if ok != !takesAll(path, "ObjectMeta.Namespace", "ObjectMeta.Name") {
				t.Errorf("%s: used %v", path, ok)
			}
			if ok && strings.Contains(path, "SourceRanges[0]") && (!s.Restricted || len(s.SourceRanges) != 1) {
				t.Errorf("%s: restricted %v to %v", path, s.Restricted, s.SourceRanges)
			}
		})
	})
	t.Run("EndpointSlice", func(t *testing.T) {
		slice := fullSlice()
		if _, ok, refused := source.TranslateEndpointSlice(slice); !ok || len(refused) > 0 {
			t.Fatalf("the valid EndpointSlice is refused: %v", refused)
		}
		eachString(reflect.ValueOf(slice).Elem(), "", func(path string) {
			s, ok, refused := source.TranslateEndpointSlice(slice)
			if ok {
				check(t, sourcetest.CheckEndpointSlice(s), refused)
				checkUnmarked(t, path, s)
			}
			if ok != !takesAll(path, "ObjectMeta.Namespace", "ObjectMeta.Name", "ObjectMeta.Labels["+source.LabelServiceName, "AddressType") {
				t.Errorf("%s: used %v", path, ok)
			}
		})
	})
	t.Run("ServiceCIDR", func(t *testing.T) {
		cidr := &networkingv1.ServiceCIDR{ObjectMeta: name(), Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00::/112"}}}
		if _, ok, refused := source.TranslateServiceCIDR(cidr); !ok || len(refused) > 0 {
			t.Fatalf("the valid ServiceCIDR is refused: %v", refused)
		}
		eachString(reflect.ValueOf(cidr).Elem(), "", func(path string) {
			c, ok, refused := source.TranslateServiceCIDR(cidr)
			if ok {
				check(t, sourcetest.CheckServiceCIDR(c), refused)
				checkUnmarked(t, path, c)
			}
			if ok && strings.Contains(path, "CIDRs[0]") && len(c.CIDRs) != 1 {
				t.Errorf("%s: got %v, want the other alone", path, c.CIDRs)
			}
			if ok != !takesAll(path, "ObjectMeta.Name ") {
				t.Errorf("%s: used %v", path, ok)
			}
		})
	})
	t.Run("Pod", func(t *testing.T) {
		pod := fullPod()
		if _, ok, refused := source.TranslatePod(pod, "node"); !ok || len(refused) > 0 {
			t.Fatalf("the valid Pod is refused: %v", refused)
		}
		eachString(reflect.ValueOf(pod).Elem(), "", func(path string) {
			p, ok, refused := source.TranslatePod(pod, "node")
			if ok {
				check(t, sourcetest.CheckPod(p), refused)
				checkUnmarked(t, path, p)
			}
			if ok != !takesAll(path, "ObjectMeta.Namespace", "ObjectMeta.Name ", "Spec.NodeName") {
				t.Errorf("%s: used %v", path, ok)
			}
		})
	})
	t.Run("Node", func(t *testing.T) {
		node := fullNode()
		if _, ok, refused := source.TranslateNode(node); !ok || len(refused) > 0 {
			t.Fatalf("the valid Node is refused: %v", refused)
		}
		eachString(reflect.ValueOf(node).Elem(), "", func(path string) {
			n, ok, refused := source.TranslateNode(node)
			if ok {
				check(t, sourcetest.CheckNode(n), refused)
				checkUnmarked(t, path, n)
			}
			if ok != !takesAll(path, "ObjectMeta.Name ") {
				t.Errorf("%s: used %v", path, ok)
			}
		})
	})
}

// takesAll reports whether a hostile string at the path is one without which
// there is no object.
func takesAll(path string, fields ...string) bool {
	for _, field := range fields {
		if strings.HasPrefix(path, "."+field) {
			return true
		}
	}
	return false
}

func checkUnmarked(t *testing.T, path string, v any) {
	t.Helper()
	if strings.Contains(path, "ForZones") || strings.Contains(path, source.LabelZone) {
		return
	}
	if text := fmt.Sprintf("%+v", v); strings.Contains(text, marker) {
		t.Errorf("%s is in the model: %s", path, text)
	}
}

// FuzzExternal puts any text where an address or a CIDR belongs.
func FuzzExternal(f *testing.F) {
	for _, seed := range []string{"192.0.2.1", "10.0.0.1/8", "::ffff:1.2.3.4/96", "fe80::1%eth0/64", " 1.2.3.4/0\t", "010.1.2.3/024", "10.97.0.1"} {
		f.Add(seed)
	}
	policy := source.Policy{
		ServiceCIDRs:        []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		RestrictExternalIPs: true,
		ExternalIPCIDRs:     []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")},
	}
	f.Fuzz(func(t *testing.T, text string) {
		svc := fullService()
		svc.Spec.ExternalIPs = []string{text, "192.0.2.1"}
		svc.Spec.LoadBalancerSourceRanges = []string{text}
		svc.Status.LoadBalancer.Ingress[0].IP = text
		s, _, refused := source.TranslateService(svc, policy)
		check(t, sourcetest.CheckService(s), refused)
		checkPolicy(t, s, policy)
		for _, ip := range s.ExternalIPs {
			if !policy.ExternalIPCIDRs[0].Contains(ip) && !policy.ExternalIPCIDRs[1].Contains(ip) {
				t.Errorf("accepted %v as an external IP", ip)
			}
		}
		if !s.Restricted {
			t.Errorf("source ranges of %q do not restrict", text)
		}
		node := fullNode()
		node.Status.Addresses[0].Address, node.Spec.PodCIDRs[0] = text, text
		n, _, refused := source.TranslateNode(node)
		check(t, sourcetest.CheckNode(n), refused)
	})
}
