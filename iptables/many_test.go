// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/proxier/model"
)

// manyCases are those in which what Services share is spread over a tree, and
// endpoints over groups.
func manyCases() []renderCase {
	addrs := func(format string) (out []*model.ServicePort) {
		for i := range 40 { // two networks, and many ports of one address
			name := portName("shop", fmt.Sprintf("web%02d", i), "http", []model.Protocol{model.TCP, model.UDP}[i%2])
			vip, number := fmt.Sprintf(format, i/20, 1+i%20), uint16(80)
			if i >= 38 {
				vip, number = fmt.Sprintf(format, 16, 1), uint16(443)
			}
			out = append(out, port(name, vip, number))
		}
		return out
	}
	vips, nodePorts := addrs("10.96.%d.%d"), addrs("10.96.%d.%d")
	for i := range vips {
		if i%4 == 0 {
			vips[i] = port(vips[i].Name, vips[i].ClusterIP.String(), vips[i].Port, fmt.Sprintf("10.244.0.%d:8080", i))
		}
		nodePorts[i].NodePort = uint16(30000 + 37*i)
	}
	nodePorts[0] = with(port(nodePorts[0].Name, "10.96.0.1", 80, "10.244.0.1:8080"), nodePort)
	crowded := many(v4(), 130)
	return []renderCase{
		{name: "many-cluster-ips", cfg: v4(), ports: vips},
		{name: "many-cluster-ips-refused-ipv6", cfg: v6(), ports: addrs("fd00:96::%x:%x")},
		{name: "many-node-ports", cfg: v4(), ports: nodePorts},
		{name: "many-endpoints", cfg: v4(), ports: []*model.ServicePort{crowded}, only: serviceChain(crowded.Name)},
		{
			name: "many-endpoints-affinity-ipv6", cfg: v6(), ports: []*model.ServicePort{with(many(v6(), 129), affinity)},
			only: serviceChain(crowded.Name) + "/0",
		},
	}
}

// many returns a port with n endpoints.
func many(cfg RenderConfig, n int) *model.ServicePort {
	vip, format := "10.96.0.10", "10.244.%d.%d:8080"
	if cfg.Family == model.IPv6 {
		vip, format = "fd00:96::a", "[fd00:244::%x:%x]:8080"
	}
	var eps []string
	for i := range n {
		eps = append(eps, fmt.Sprintf(format, 1+i/200, 1+i%200))
	}
	return port(portName("shop", "web", "http", model.TCP), vip, 80, eps...)
}

// TestCommentsAreDropped: above 1,000 endpoints of all ports together, and only
// in the chains that choose and translate. They come back with fewer.
func TestCommentsAreDropped(t *testing.T) {
	const comment = "-m comment --comment "
	other := with(port(portName("shop", "other", "", model.TCP), "10.96.0.11", 80, "10.244.0.1:80"), loadBalancer, nodePort, affinity, ranges("192.0.2.0/24"))
	var k fake.Kernel
	a := fakeAgent(t, &k, v4())
	for _, tt := range []struct {
		name      string
		endpoints int
		unready   int
		bare      bool
	}{
		{"as many as may be", 999, 0, false},
		{"one more", 1000, 0, true},
		{"one less", 999, 0, false},
		{"one more that is not ready", 999, 1, true},
		{"few are ready", 10, 989, false},
		{"many more", 1500, 0, true},
	} {
		a.sync(with(many(v4(), tt.endpoints), func(p *model.ServicePort) { p.Known += tt.unready }), other)
		d, err := ruleset.Parse(strings.NewReader(k.Save()))
		if err != nil {
			t.Fatal(err)
		}
		with, without := 0, 0
		for _, c := range slices.Concat(d[0].Chains, d[1].Chains) {
			for _, r := range c.Rules {
				own := strings.HasPrefix(c.Name, endpointPrefix) || strings.HasPrefix(r.Target(), endpointPrefix)
				switch has := strings.Contains(string(r), comment); {
				case own && has:
					with++
				case own:
					without++
				case !has && (c.Name == services || c.Name == nodePorts):
					t.Errorf("%s: %s has a rule without a comment: %s", tt.name, c.Name, r)
				}
			}
		}
		if tt.bare && with > 0 || !tt.bare && without > 0 || with+without < tt.endpoints {
			t.Errorf("%s: %d rules with a comment and %d without", tt.name, with, without)
		}
	}
}

// TestKernelManyEndpoints: also where a Service has many, in groups and without
// comments.
func TestKernelManyEndpoints(t *testing.T) {
	for _, cfg := range []RenderConfig{v4(), v6()} {
		for _, n := range []int{200, 1001} {
			p := many(cfg, n)
			t.Run(fmt.Sprintf("%s, %d endpoints", cfg.Family, n), func(t *testing.T) {
				onKernel(t, cfg.Family, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
					a := kernelAgent(t, s, h, cfg)
					a.sync(p)
					checkStable(t, s, h, cfg, p)
					checkClean(t, a, s, h, "")
				})
			})
		}
	}
}
