// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead/proxier/model"
)

// Labels and the annotation of an EndpointSlice that are read here.
const (
	// LabelServiceName names the Service that an EndpointSlice belongs to.
	LabelServiceName = discoveryv1.LabelServiceName
	// LabelHeadless marks the EndpointSlices of headless Services.
	LabelHeadless = corev1.IsHeadlessService
	// AnnotationTriggerTime tells when the change happened that led to this
	// version of an EndpointSlice, in RFC 3339 with nanoseconds.
	AnnotationTriggerTime = corev1.EndpointsLastChangeTriggerTime
)

// Reasons for which a slice or an endpoint is refused.
const (
	reasonAddressType = "is not one of IPv4, IPv6 and FQDN"
	reasonNoAddresses = "has no address"
)

// TranslateEndpointSlice returns the EndpointSlice as the model has it. ok is
// false where there is nothing to program for it: because it is none of a
// service proxy's business (of a headless Service, of no Service, or with
// names instead of addresses), and then nothing is refused; or because its
// name, its Service's name or its address type is refused.
//
// What is selected is what kube-proxy v1.36 selects. So are the rules that only
// the first address of an endpoint counts, that a port without a number is
// ignored, or without a name, which the API makes an empty one, and that absent
// conditions mean ready, serving and not terminating.
func TranslateEndpointSlice(slice *discoveryv1.EndpointSlice) (s *model.EndpointSlice, ok bool, refused []Refusal) {
	service := slice.Labels[LabelServiceName]
	if _, headless := slice.Labels[LabelHeadless]; headless || service == "" {
		return nil, false, nil
	}
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, false, nil
	}
	r := newRefusals(KindEndpointSlice, slice.Namespace, slice.Name)
	family, known := familyOf(string(slice.AddressType))
	switch {
	case !isLabel(slice.Namespace):
		r.add("metadata.namespace", slice.Namespace, reasonLabel)
	case !isSubdomain(slice.Name):
		r.add("metadata.name", slice.Name, reasonSubdomain)
	case !isLabel(service):
		r.add(fmt.Sprintf("metadata.labels[%q]", LabelServiceName), service, reasonLabel)
	case !known:
		r.add("addressType", string(slice.AddressType), reasonAddressType)
	}
	if len(r.list) > 0 {
		return nil, false, r.list
	}
	return &model.EndpointSlice{
		Key:         KeyOf(slice.Namespace, slice.Name),
		Service:     KeyOf(slice.Namespace, service),
		Family:      family,
		Ports:       slicePorts(slice.Ports, r),
		Endpoints:   sliceEndpoints(slice.Endpoints, family, r),
		TriggerTime: triggerTime(slice.Annotations),
	}, true, r.list
}

func slicePorts(in []discoveryv1.EndpointPort, r *refusals) []model.Port {
	in = bounded(r, "ports", in, maxPorts)
	ports := newPortList(r, "ports", false, len(in))
	for i := range in {
		p := &in[i]
		if p.Name == nil || p.Port == nil || *p.Port == 0 {
			continue
		}
		ports.add(i, rawPort{name: *p.Name, protocol: deref(p.Protocol, ""), number: *p.Port})
	}
	return ports.ports
}

func sliceEndpoints(in []discoveryv1.Endpoint, family model.Family, r *refusals) []model.SliceEndpoint {
	in = bounded(r, "endpoints", in, maxEndpoints)
	out := make([]model.SliceEndpoint, 0, len(in))
	for i := range in {
		e := &in[i]
		if len(e.Addresses) == 0 {
			r.add(fmt.Sprintf("endpoints[%d].addresses", i), "", reasonNoAddresses)
			continue
		}
		addr, reason := parseUnicast(e.Addresses[0])
		if reason == "" && model.FamilyOf(addr) != family {
			reason = reasonFamily
		}
		if reason != "" {
			r.add(fmt.Sprintf("endpoints[%d].addresses[0]", i), e.Addresses[0], reason)
			continue
		}
		out = append(out, model.SliceEndpoint{
			Addr:        addr,
			NodeName:    endpointNode(e.NodeName, i, r),
			Ready:       deref(e.Conditions.Ready, true),
			Serving:     deref(e.Conditions.Serving, true),
			Terminating: deref(e.Conditions.Terminating, false),
			Hints:       hints(e.Hints, i, r),
		})
	}
	return out
}

// endpointNode returns the name of the endpoint's node. One that is refused is
// as good as unknown: the endpoint works, on no node in particular.
func endpointNode(name *string, i int, r *refusals) string {
	if name == nil || *name == "" {
		return ""
	}
	if !isSubdomain(*name) {
		r.add(fmt.Sprintf("endpoints[%d].nodeName", i), *name, reasonSubdomain)
		return ""
	}
	return intern(*name)
}

// triggerTime returns the time in the annotation, or the zero time. It serves
// a latency metric only, so a malformed one is not worth a refusal.
func triggerTime(annotations map[string]string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, annotations[AnnotationTriggerTime])
	if err != nil {
		return time.Time{}
	}
	return t
}

func deref[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}
