// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

// A file's Services have the external addresses that the policy leaves them.
func TestPolicy(t *testing.T) {
	p := &parser{nodeName: "node-1", policy: source.Policy{
		ServiceCIDRs:        []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		RestrictExternalIPs: true, ExternalIPCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	}}
	docs, problem := p.parse("web.yaml", []byte(`apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  externalIPs: [10.96.0.11, 198.51.100.1, 192.0.2.1]
  loadBalancerSourceRanges: [192.0.2.77/24]
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  sessionAffinity: ClientIP
  ports: [{port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {ip: 192.0.2.3, ipMode: Proxy}]}}
`), nil)
	if problem != nil {
		t.Fatal(problem)
	}
	o := docs[0].objects[0]
	if err := sourcetest.CheckService(o.service); err != nil {
		t.Error(err)
	}
	var refused []string
	for _, r := range o.refused {
		refused = append(refused, r.String())
	}
	want := []string{
		`Service "default/web": spec.externalIPs[0] "10.96.0.11": is inside a service CIDR`,
		`Service "default/web": spec.externalIPs[1] "198.51.100.1": is outside the CIDRs that external IPs are allowed in`,
	}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	if len(o.service.ExternalIPs) != 1 || len(o.service.LoadBalancerIPs) != 1 || !o.service.Restricted ||
		o.service.HealthCheckNodePort != 32000 || o.service.AffinityTimeout == 0 || o.service.Ports[0].NodePort != 30080 {
		t.Errorf("the Service is %+v", o.service)
	}
}
