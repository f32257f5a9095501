// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func ptr[T any](v T) *T { return &v }

func TestDefaultService(t *testing.T) {
	for _, tt := range []struct {
		name     string
		in, want corev1.ServiceSpec
	}{
		{
			name: "type, ports, affinity, policies and families of a cluster IP",
			in: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{
				{Port: 80},
				{Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromString("dns")},
			}},
			want: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: ptr(corev1.IPFamilyPolicySingleStack),
				SessionAffinity: corev1.ServiceAffinityNone, InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyCluster),
				Ports: []corev1.ServicePort{
					{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(80)},
					{Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromString("dns")},
				},
			},
		},
		{
			name: "two cluster IPs, and a load balancer",
			in: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"fd00::1", "10.96.0.1"},
				SessionAffinity: corev1.ServiceAffinityClientIP,
			},
			want: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "fd00::1", ClusterIPs: []string{"fd00::1", "10.96.0.1"},
				IPFamilies:            []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol},
				IPFamilyPolicy:        ptr(corev1.IPFamilyPolicyRequireDualStack),
				SessionAffinity:       corev1.ServiceAffinityClientIP,
				SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](10800)}},
				ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
				InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyCluster), AllocateLoadBalancerNodePorts: ptr(true),
			},
		},
		{
			name: "headless",
			in:   corev1.ServiceSpec{ClusterIP: "None"},
			want: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "None", ClusterIPs: []string{"None"},
				SessionAffinity: corev1.ServiceAffinityNone, InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyCluster),
			},
		},
		{
			name: "ExternalName",
			in:   corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"},
			want: corev1.ServiceSpec{
				Type: corev1.ServiceTypeExternalName, ExternalName: "example.com", SessionAffinity: corev1.ServiceAffinityNone,
			},
		},
		{
			name: "what is said stays",
			in: corev1.ServiceSpec{
				Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: ptr(corev1.IPFamilyPolicyPreferDualStack),
				SessionAffinity:       corev1.ServiceAffinityClientIP,
				SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](5)}},
				ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
				InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyLocal),
			},
			want: corev1.ServiceSpec{
				Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: ptr(corev1.IPFamilyPolicyPreferDualStack),
				SessionAffinity:       corev1.ServiceAffinityClientIP,
				SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](5)}},
				ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
				InternalTrafficPolicy: ptr(corev1.ServiceInternalTrafficPolicyLocal),
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := corev1.Service{Spec: tt.in}
			defaultService(&svc)
			if svc.Namespace != "default" {
				t.Errorf("namespace %q, want default", svc.Namespace)
			}
			if diff := cmp.Diff(tt.want, svc.Spec); diff != "" {
				t.Errorf("defaultService (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDefaultEndpointSlice(t *testing.T) {
	slice := discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{
		{Port: ptr[int32](80)},
		{Port: ptr[int32](53), Name: ptr("dns"), Protocol: ptr(corev1.ProtocolUDP)},
	}}
	slice.Namespace = "shop"
	defaultEndpointSlice(&slice)
	want := []discoveryv1.EndpointPort{
		{Port: ptr[int32](80), Name: ptr(""), Protocol: ptr(corev1.ProtocolTCP)},
		{Port: ptr[int32](53), Name: ptr("dns"), Protocol: ptr(corev1.ProtocolUDP)},
	}
	if diff := cmp.Diff(want, slice.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if slice.Namespace != "shop" {
		t.Errorf("namespace %q, want shop", slice.Namespace)
	}
}
