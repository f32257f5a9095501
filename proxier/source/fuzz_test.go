// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

// FuzzTranslate feeds any object that the API's JSON can spell to the
// translations: none may panic, and what they accept holds the model's
// invariants.
func FuzzTranslate(f *testing.F) {
	policy := source.Policy{
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	}
	for _, seed := range []string{
		`{"metadata":{"namespace":"shop","name":"web"},"spec":{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10","fd00::1"],
		  "ports":[{"name":"a","port":80},{"name":"b","port":80},{"name":"a","protocol":"UDP","port":53}]}}`,
		`{"metadata":{"namespace":"shop","name":"web","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
		  "ports":[{"name":"a","port":8080},{"port":0},{"name":"a","protocol":"SCTP","port":1}],
		  "endpoints":[{"addresses":["010.1.2.3"],"nodeName":"n"},{"addresses":["127.0.0.1"]},{"addresses":[]}]}`,
		`{"metadata":{"namespace":"shop","name":"web","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv6",
		  "endpoints":[{"addresses":["::ffff:1.2.3.4"]},{"addresses":["fe80::1%eth0"]},{"addresses":["2001:db8::01.2.3.4"]}]}`,
		`{"metadata":{"namespace":"shop","name":"web"},"spec":{"clusterIP":"10.96.0.10","type":"LoadBalancer",
		  "ports":[{"name":"a","port":80,"nodePort":30080},{"name":"b","port":81,"nodePort":30080},{"name":"c","port":82,"nodePort":-1}],
		  "externalIPs":["192.0.2.1","192.0.2.01","10.96.0.10","10.244.0.1","::ffff:192.0.2.1"],
		  "loadBalancerSourceRanges":[" 10.1.2.3/8 ","0.0.0.0/0","::/0","2001:db8::/129","10.0.0.0/08"],
		  "externalTrafficPolicy":"Local","internalTrafficPolicy":"Local","healthCheckNodePort":30080,
		  "sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":86401}}},
		  "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"ip":"192.0.2.2","ipMode":"Proxy"},{"hostname":"x"},{"ip":"169.254.1.1","ipMode":"VIP"}]}}}`,
		`{"metadata":{"namespace":"shop","name":"web","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
		  "endpoints":[{"addresses":["10.1.2.3"],"hints":{"forZones":[{"name":"a"},{"name":"a"},{"name":"\nCOMMIT"}],"forNodes":[{"name":"n"},{"name":""}]}}]}`,
		`{"metadata":{"name":"n","labels":{"topology.kubernetes.io/zone":"Zone_1.a"}},"spec":{"podCIDR":"10.244.0.1/24","podCIDRs":["10.244.0.1/24","fd00::/64","x"]},
		  "status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},{"type":"ExternalIP","address":"192.0.2.1"},{"type":"ExternalIP","address":"2001:db8::1"},{"type":"Hostname","address":"n"}]}}`,
		`{"metadata":{"name":"node.example","deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{"taints":[{"key":"x"}]}}`,
		`{"metadata":{"namespace":"shop","name":"web-0","uid":"\nCOMMIT"},"spec":{"nodeName":"n","containers":[{"ports":[{"hostPort":80,"containerPort":80},
		  {"hostPort":80,"containerPort":81,"hostIP":"0.0.0.0"},{"hostPort":53,"containerPort":53,"protocol":"UDP","hostIP":"fe80::1%eth0"},{"hostPort":70000,"containerPort":1}]}]},
		  "status":{"podIPs":[{"ip":"10.244.0.1"},{"ip":"fd00::1"},{"ip":"10.244.0.2"}],"podIP":"::1","startTime":"2026-01-01T00:00:00Z"}}`,
		`{"metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.1/12","10.96.0.0/12","fd00::/112","::ffff:10.0.0.0/104","x"]}}`,
		`{"metadata":{"namespace":"a\nCOMMIT","name":"\"x"},"spec":{"clusterIP":"1.2.3.4"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var svc corev1.Service
		if json.Unmarshal(data, &svc) == nil {
			if s, ok, refused := source.TranslateService(&svc, policy); ok {
				check(t, sourcetest.CheckService(s), refused)
				checkPolicy(t, s, policy)
			}
		}
		var slice discoveryv1.EndpointSlice
		if json.Unmarshal(data, &slice) == nil {
			if s, ok, refused := source.TranslateEndpointSlice(&slice); ok {
				check(t, sourcetest.CheckEndpointSlice(s), refused)
			}
		}
		var cidr networkingv1.ServiceCIDR
		if json.Unmarshal(data, &cidr) == nil {
			if c, ok, refused := source.TranslateServiceCIDR(&cidr); ok {
				check(t, sourcetest.CheckServiceCIDR(c), refused)
			}
		}
		var pod corev1.Pod
		if json.Unmarshal(data, &pod) == nil {
			if p, ok, refused := source.TranslatePod(&pod, "n"); ok {
				check(t, sourcetest.CheckPod(p), refused)
			}
		}
		var node corev1.Node
		if json.Unmarshal(data, &node) == nil {
			if n, ok, refused := source.TranslateNode(&node); ok {
				check(t, sourcetest.CheckNode(n), refused)
			}
		}
	})
}

// checkPolicy fails the test where the Service has an address that the policy
// forbids.
func checkPolicy(t *testing.T, s *model.Service, policy source.Policy) {
	t.Helper()
	for _, ip := range slices.Concat(s.ExternalIPs, s.LoadBalancerIPs) {
		for _, prefix := range slices.Concat(policy.ServiceCIDRs, policy.PodCIDRs) {
			if prefix.Contains(ip) {
				t.Errorf("accepted %v, which is in %v", ip, prefix)
			}
		}
	}
}

func check(t *testing.T, err error, refused []source.Refusal) {
	t.Helper()
	if err != nil {
		t.Errorf("accepted what breaks an invariant: %v", err)
	}
	for _, r := range refused {
		for _, c := range []byte(r.String()) {
			if c < ' ' || c > '~' {
				t.Errorf("refusal %q is not one printable line", r.String())
			}
		}
	}
}
