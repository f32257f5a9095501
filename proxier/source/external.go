// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// Reasons for which a value is refused that says how clients reach a Service.
const (
	reasonPolicy         = "is not one of Cluster and Local"
	reasonAffinity       = "is not one of None and ClientIP"
	reasonTimeout        = "is not a number of seconds from 1 to 86400, the default of 10800 is used"
	reasonHealthNodePort = "is a node port of the same Service"
)

// The seconds that a client keeps its endpoint, in the Kubernetes API.
const (
	defaultAffinitySeconds = corev1.DefaultClientIPServiceAffinitySeconds
	maxAffinitySeconds     = 86400
)

// hasNodePorts reports whether Services of the type have node ports.
func hasNodePorts(t corev1.ServiceType) bool {
	return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer
}

// addExternal fills in how clients from outside the cluster reach the Service.
// Its cluster IPs and its ports are there already.
func addExternal(s *model.Service, svc *corev1.Service, policy *Policy, r *refusals) {
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.LoadBalancerIPs = loadBalancerIPs(s, svc.Status.LoadBalancer.Ingress, policy, r)
		// A list of which nothing is left admits nobody.
		s.Restricted = len(svc.Spec.LoadBalancerSourceRanges) > 0
		s.SourceRanges = sourceRanges(s, svc.Spec.LoadBalancerSourceRanges, r)
	}
	s.ExternalIPs = externalIPs(s, svc.Spec.ExternalIPs, policy, r)
	if hasNodePorts(svc.Spec.Type) || len(s.ExternalIPs) > 0 {
		s.ExternalTrafficLocal = isLocal("spec.externalTrafficPolicy", string(svc.Spec.ExternalTrafficPolicy), r)
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficLocal {
		s.HealthCheckNodePort = healthCheckNodePort(s, svc.Spec.HealthCheckNodePort, r)
	}
}

// externalIPs returns the valid ones of spec.externalIPs. One that is the load
// balancer's address too is that alone: so its source ranges hold for it.
func externalIPs(s *model.Service, in []string, policy *Policy, r *refusals) []netip.Addr {
	if len(in) == 0 {
		return nil
	}
	const field = "spec.externalIPs"
	limit := forPorts(maxExternal, maxExternalPorts, len(s.Ports))
	list := newAddrList(s, policy.checkExternalIP, r)
	for _, ip := range s.LoadBalancerIPs {
		list.seen[ip] = struct{}{}
	}
	for i, value := range boundedForPorts(r, field, in, limit, len(s.Ports)) {
		list.add(value, func() string { return fmt.Sprintf("%s[%d]", field, i) })
	}
	return list.addrs
}

// loadBalancerIPs returns the addresses that packets still have as their
// destination when the load balancer sends them to a node.
func loadBalancerIPs(s *model.Service, in []corev1.LoadBalancerIngress, policy *Policy, r *refusals) []netip.Addr {
	if len(in) == 0 {
		return nil
	}
	const field = "status.loadBalancer.ingress"
	limit := forPorts(maxExternal, maxExternalPorts, len(s.Ports))
	list := newAddrList(s, policy.check, r)
	for i, ingress := range boundedForPorts(r, field, in, limit, len(s.Ports)) {
		isVIP := deref(ingress.IPMode, corev1.LoadBalancerIPModeVIP) == corev1.LoadBalancerIPModeVIP
		if ingress.IP == "" || !isVIP {
			continue
		}
		list.add(ingress.IP, func() string { return fmt.Sprintf("%s[%d].ip", field, i) })
	}
	return list.addrs
}

// sourceRanges returns the valid ones of spec.loadBalancerSourceRanges, with
// the bits of the host cleared. Padding with white space is part of the API.
// The annotation that came before the field is not read, as kube-proxy does not
// read it either.
func sourceRanges(s *model.Service, in []string, r *refusals) []netip.Prefix {
	if len(in) == 0 {
		return nil
	}
	const field = "spec.loadBalancerSourceRanges"
	limit := forPorts(maxSourceRanges, maxSourceRangePorts, len(s.Ports))
	var out []netip.Prefix
	seen := map[netip.Prefix]struct{}{}
	for i, value := range boundedForPorts(r, field, in, limit, len(s.Ports)) {
		prefix, reason := parsePrefix(strings.TrimSpace(value))
		if reason != "" {
			r.add(fmt.Sprintf("%s[%d]", field, i), value, reason)
			continue
		}
		if _, twice := seen[prefix]; !twice {
			seen[prefix] = struct{}{}
			out = append(out, prefix)
		}
	}
	return out
}

// isLocal reports whether a traffic policy keeps traffic on the node. One that
// is refused is the default, Cluster.
func isLocal(field, policy string, r *refusals) bool {
	switch policy {
	case "Local":
		return true
	case "", "Cluster":
	default:
		r.add(field, policy, reasonPolicy)
	}
	return false
}

func healthCheckNodePort(s *model.Service, number int32, r *refusals) uint16 {
	const field = "spec.healthCheckNodePort"
	if number == 0 {
		return 0
	}
	reason := ""
	if number < 0 || number > 65535 {
		reason = reasonPort
	} else if slices.ContainsFunc(s.Ports, func(p model.Port) bool {
		return p.Protocol == model.TCP && int32(p.NodePort) == number
	}) {
		reason = reasonHealthNodePort
	}
	if reason != "" {
		r.add(field, strconv.Itoa(int(number)), reason)
		return 0
	}
	return uint16(number)
}

// affinityTimeout returns how long a client keeps its endpoint, 0 where it does
// not.
func affinityTimeout(spec *corev1.ServiceSpec, r *refusals) time.Duration {
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
	case "", corev1.ServiceAffinityNone:
		return 0
	default:
		r.add("spec.sessionAffinity", string(spec.SessionAffinity), reasonAffinity)
		return 0
	}
	seconds := int32(defaultAffinitySeconds)
	if config := spec.SessionAffinityConfig; config != nil && config.ClientIP != nil {
		seconds = deref(config.ClientIP.TimeoutSeconds, seconds)
	}
	if seconds < 1 || seconds > maxAffinitySeconds {
		r.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", strconv.Itoa(int(seconds)), reasonTimeout)
		seconds = defaultAffinitySeconds
	}
	return time.Duration(seconds) * time.Second
}
