// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// LabelServiceProxyName is the label of a Service that asks for a service
// proxy other than the cluster's default one.
const LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// TranslateService returns the Service as the model has it. ok is false where
// there is nothing to program for it: because it is none of a service proxy's
// business (headless, ExternalName, or labelled for another proxy), and then
// nothing is refused; or because its name or all its cluster IPs are refused.
//
// What is selected is what kube-proxy v1.36 selects.
func TranslateService(svc *corev1.Service, policy Policy) (s *model.Service, ok bool, refused []Refusal) {
	if !selectsService(svc) {
		return nil, false, nil
	}
	r := newRefusals(KindService, svc.Namespace, svc.Name)
	if !isLabel(svc.Namespace) {
		r.add("metadata.namespace", svc.Namespace, reasonLabel)
		return nil, false, r.list
	}
	if !isLabel(svc.Name) {
		r.add("metadata.name", svc.Name, reasonLabel)
		return nil, false, r.list
	}
	ips := clusterIPs(&svc.Spec, r)
	if len(ips) == 0 {
		return nil, false, r.list
	}
	s = &model.Service{
		Key:                  KeyOf(svc.Namespace, svc.Name),
		ClusterIPs:           ips,
		Ports:                servicePorts(&svc.Spec, r),
		InternalTrafficLocal: isLocal("spec.internalTrafficPolicy", string(deref(svc.Spec.InternalTrafficPolicy, "")), r),
		AffinityTimeout:      affinityTimeout(&svc.Spec, r),
		Scheduler:            scheduler(svc, r),
		Balancing:            balancing(svc, r),
	}
	addExternal(s, svc, &policy, r)
	return s, true, r.list
}

func selectsService(svc *corev1.Service) bool {
	if _, other := svc.Labels[LabelServiceProxyName]; other {
		return false
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return false
	}
	return svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != corev1.ClusterIPNone
}

// clusterIPs returns the valid addresses of spec.clusterIPs, or of
// spec.clusterIP where that list is empty, at most one per family.
func clusterIPs(spec *corev1.ServiceSpec, r *refusals) []netip.Addr {
	if len(spec.ClusterIPs) == 0 {
		return appendClusterIP(nil, "spec.clusterIP", spec.ClusterIP, r)
	}
	ips := make([]netip.Addr, 0, 2)
	for i, value := range spec.ClusterIPs {
		ips = appendClusterIP(ips, fmt.Sprintf("spec.clusterIPs[%d]", i), value, r)
	}
	return ips
}

func appendClusterIP(ips []netip.Addr, field, value string, r *refusals) []netip.Addr {
	ip, reason := parseUnicast(value)
	sameFamily := func(other netip.Addr) bool { return model.FamilyOf(other) == model.FamilyOf(ip) }
	if reason == "" && slices.ContainsFunc(ips, sameFamily) {
		reason = reasonSameFamily
	}
	if reason != "" {
		r.add(field, value, reason)
		return ips
	}
	return append(ips, ip)
}

func servicePorts(spec *corev1.ServiceSpec, r *refusals) []model.Port {
	in := bounded(r, "spec.ports", spec.Ports, maxPorts)
	ports := newPortList(r, "spec.ports", true, len(in))
	for i := range in {
		p := &in[i]
		raw := rawPort{name: p.Name, protocol: p.Protocol, number: p.Port}
		if hasNodePorts(spec.Type) {
			raw.nodePort = p.NodePort
		}
		ports.add(i, raw)
	}
	return ports.ports
}
