// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

// FuzzTranslate feeds any object that the API's JSON can spell to the
// translations: none may panic, and what they accept holds the model's
// invariants.
func FuzzTranslate(f *testing.F) {
	for _, seed := range []string{
		`{"metadata":{"namespace":"shop","name":"web"},"spec":{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10","fd00::1"],
		  "ports":[{"name":"a","port":80},{"name":"b","port":80},{"name":"a","protocol":"UDP","port":53}]}}`,
		`{"metadata":{"namespace":"shop","name":"web","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
		  "ports":[{"name":"a","port":8080},{"port":0},{"name":"a","protocol":"SCTP","port":1}],
		  "endpoints":[{"addresses":["010.1.2.3"],"nodeName":"n"},{"addresses":["127.0.0.1"]},{"addresses":[]}]}`,
		`{"metadata":{"namespace":"shop","name":"web","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv6",
		  "endpoints":[{"addresses":["::ffff:1.2.3.4"]},{"addresses":["fe80::1%eth0"]},{"addresses":["2001:db8::01.2.3.4"]}]}`,
		`{"metadata":{"name":"node.example","deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{"taints":[{"key":"x"}]}}`,
		`{"metadata":{"namespace":"a\nCOMMIT","name":"\"x"},"spec":{"clusterIP":"1.2.3.4"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var svc corev1.Service
		if json.Unmarshal(data, &svc) == nil {
			if s, ok, refused := source.TranslateService(&svc); ok {
				check(t, sourcetest.CheckService(s), refused)
			}
		}
		var slice discoveryv1.EndpointSlice
		if json.Unmarshal(data, &slice) == nil {
			if s, ok, refused := source.TranslateEndpointSlice(&slice); ok {
				check(t, sourcetest.CheckEndpointSlice(s), refused)
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
