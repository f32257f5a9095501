// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// defaultService fills in what the API server would (v1.36), so that an object
// means the same in a file as through it. Cluster IPs it does not allocate.
func defaultService(svc *corev1.Service) {
	defaultNamespace(&svc.ObjectMeta)
	spec := &svc.Spec
	if spec.Type == "" {
		spec.Type = corev1.ServiceTypeClusterIP
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	defaultAffinity(spec)
	defaultPolicies(spec)
	if spec.Type != corev1.ServiceTypeExternalName {
		defaultClusterIPs(spec)
	}
}

func defaultNamespace(meta *metav1.ObjectMeta) {
	if meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault
	}
}

func defaultAffinity(spec *corev1.ServiceSpec) {
	switch spec.SessionAffinity {
	case "":
		spec.SessionAffinity = corev1.ServiceAffinityNone
	case corev1.ServiceAffinityClientIP:
		config := spec.SessionAffinityConfig
		if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
				ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout},
			}
		}
	}
}

func defaultPolicies(spec *corev1.ServiceSpec) {
	external := spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer
	if external && spec.ExternalTrafficPolicy == "" {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if (external || spec.Type == corev1.ServiceTypeClusterIP) && spec.InternalTrafficPolicy == nil {
		cluster := corev1.ServiceInternalTrafficPolicyCluster
		spec.InternalTrafficPolicy = &cluster
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer && spec.AllocateLoadBalancerNodePorts == nil {
		allocate := true
		spec.AllocateLoadBalancerNodePorts = &allocate
	}
}

// defaultClusterIPs makes clusterIP and clusterIPs say the same, and the
// families what they say.
func defaultClusterIPs(spec *corev1.ServiceSpec) {
	switch {
	case len(spec.ClusterIPs) == 0 && spec.ClusterIP != "":
		spec.ClusterIPs = []string{spec.ClusterIP}
	case len(spec.ClusterIPs) > 0 && spec.ClusterIP == "":
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	if len(spec.ClusterIPs) == 0 || spec.ClusterIP == corev1.ClusterIPNone {
		return
	}
	if len(spec.IPFamilies) == 0 {
		for _, ip := range spec.ClusterIPs {
			family := corev1.IPv4Protocol
			if addr, err := netip.ParseAddr(ip); err == nil && addr.Is6() {
				family = corev1.IPv6Protocol
			}
			spec.IPFamilies = append(spec.IPFamilies, family)
		}
	}
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if len(spec.ClusterIPs) > 1 || len(spec.IPFamilies) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec.IPFamilyPolicy = &policy
	}
}

// defaultPod fills in what the API server would, as far as it matters here. A pod
// that is on no node is on this one: there is nobody else who would choose one.
func defaultPod(pod *corev1.Pod, nodeName string) {
	defaultNamespace(&pod.ObjectMeta)
	if pod.Spec.NodeName == "" {
		pod.Spec.NodeName = nodeName
	}
}

// defaultEndpointSlice fills in what the API server would.
func defaultEndpointSlice(slice *discoveryv1.EndpointSlice) {
	defaultNamespace(&slice.ObjectMeta)
	name, protocol := "", corev1.ProtocolTCP
	for i := range slice.Ports {
		p := &slice.Ports[i]
		if p.Name == nil {
			p.Name = &name
		}
		if p.Protocol == nil {
			p.Protocol = &protocol
		}
	}
}
