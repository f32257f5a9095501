// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"slices"
	"testing"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// TestUDPDestination: what dispatch rules say of where UDP clients send to, as
// the mode itself writes them.
func TestUDPDestination(t *testing.T) {
	dns := portName("kube-system", "kube-dns", "dns", model.UDP)
	web := portName("shop", "web", "http", model.TCP)
	rendered := func(cfg RenderConfig, p *model.ServicePort, in int) ruleset.Rule {
		shared := newRenderer(cfg).port(p, nil, newScratch()).shared
		return shared[slices.IndexFunc(shared, func(s idiom.Place) bool { return s.In == in })].Rules[0]
	}
	four := with(port(dns, "10.96.0.53", 53, "10.244.0.3:53"), nodePort)
	six := port(dns, "fd00:96::b", 53, "[fd00:244::1]:53")
	for _, tt := range []struct {
		name string
		rule ruleset.Rule
		want string
	}{
		{"cluster IP", rendered(v4(), four, translatedAddrs), "10.96.0.53:53"},
		{"IPv6", rendered(v6(), six, translatedAddrs), "[fd00:96::b]:53"},
		{"node port", rendered(v4(), four, translatedPorts), "invalid AddrPort"},
		{"TCP", rendered(v4(), port(web, "10.96.0.10", 80, "10.244.0.1:80"), translatedAddrs), ""},
		{"the end of the chain", newRenderer(v4()).nodePortRules(everywhere.NodePorts)[0], ""},
		{"a comment that looks like matches", `-d 10.0.0.1/32 -m comment --comment "-p udp --dport 5 " -j KUBE-SVC-X`, ""},
		{"no port", "-d 10.0.0.1/32 -p udp -m comment --comment x -j KUBE-SVC-X", ""},
	} {
		got, ok := idiom.UDPDestination(tt.rule)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: got %v, %v, want %q of %s", tt.name, got, ok, tt.want, tt.rule)
		}
	}
	if got, _ := idiom.UDPDestination(rendered(v4(), four, translatedPorts)); got != netip.AddrPortFrom(netip.Addr{}, 30080) {
		t.Errorf("node port: got %v, want port 30080 of no address", got)
	}
}
