// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"math"
	"net/netip"
	"testing"

	"fairlead/iptables/ruleset/fake"
	"fairlead/nat/nfacct"
	"fairlead/proxier/model"
)

const (
	pod     = "10.244.0.200"
	outside = "192.0.2.7"
	nodeIP  = "192.0.2.1"
)

// traced returns a tracer over what a mode makes of ports.
func traced(t *testing.T, cfg RenderConfig, ports ...*model.ServicePort) *tracer {
	t.Helper()
	var k fake.Kernel
	fakeAgent(t, &k, cfg).sync(ports...)
	return newTracer(t, k.Save(), nodeIP)
}

// checkFates checks that what can become of a packet is just what is wanted,
// each as likely as the others.
func checkFates(t *testing.T, got map[fate]float64, want ...fate) {
	t.Helper()
	for _, f := range want {
		p, ok := got[f]
		if !ok {
			t.Errorf("fate %+v: never, want it among %v", f, got)
		} else if math.Abs(p-1/float64(len(want))) > 1e-6 {
			t.Errorf("fate %+v: probability %.9f, want 1/%d", f, p, len(want))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d fates %v, want %d", len(got), got, len(want))
	}
}

func TestTrace(t *testing.T) {
	web := portName("shop", "web", "http", model.TCP)
	two := port(web, "10.96.0.10", 80, "10.244.0.1:8080", "10.244.1.2:8081")
	none := port(web, "10.96.0.10", 80)
	counted := v4()
	counted.InvalidCounter = nfacct.InvalidDropped
	all := v4()
	all.MasqueradeAll = true
	bit, everywhere, hostBits := v4(), v4(), v4()
	bit.MasqueradeBit = 3
	everywhere.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	hostBits.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.3.7/16")}
	each := func(masq bool) []fate {
		return []fate{{"10.244.0.1:8080", masq, "ACCEPT"}, {"10.244.1.2:8081", masq, "ACCEPT"}}
	}
	for _, tt := range []struct {
		name string
		cfg  RenderConfig
		port *model.ServicePort
		pkt  packet
		want []fate
	}{
		{"pod reaches every endpoint, with its own address", v4(), two, packet{pod, "10.96.0.10", "tcp", 80, false}, each(false)},
		{"pod reaches every endpoint, what is invalid being counted", counted, two, packet{pod, "10.96.0.10", "tcp", 80, false}, each(false)},
		{"node reaches every endpoint, masqueraded", v4(), two, packet{nodeIP, "10.96.0.10", "tcp", 80, true}, each(true)},
		{"outside is masqueraded", v4(), two, packet{outside, "10.96.0.10", "tcp", 80, false}, each(true)},
		{"outside, cluster CIDR unknown", without(v4()), two, packet{outside, "10.96.0.10", "tcp", 80, false}, each(false)},
		{"outside, cluster CIDR that holds all", everywhere, two, packet{outside, "10.96.0.10", "tcp", 80, false}, each(false)},
		{"outside, cluster CIDR with host bits", hostBits, two, packet{outside, "10.96.0.10", "tcp", 80, false}, each(true)},
		{"pod, masquerade all", all, two, packet{pod, "10.96.0.10", "tcp", 80, false}, each(true)},
		{"outside, another mark bit", bit, two, packet{outside, "10.96.0.10", "tcp", 80, false}, each(true)},
		{
			"endpoint that reaches itself is masqueraded, and only then", v4(), two, packet{"10.244.0.1", "10.96.0.10", "tcp", 80, false},
			[]fate{{"10.244.0.1:8080", true, "ACCEPT"}, {"10.244.1.2:8081", false, "ACCEPT"}},
		},
		{"no endpoints, from a pod", v4(), none, packet{pod, "10.96.0.10", "tcp", 80, false}, []fate{{"10.96.0.10:80", false, "REJECT"}}},
		{"no endpoints, from the node", v4(), none, packet{nodeIP, "10.96.0.10", "tcp", 80, true}, []fate{{"10.96.0.10:80", false, "REJECT"}}},
		{"no endpoints, another port", v4(), none, packet{pod, "10.96.0.10", "tcp", 81, false}, []fate{{"10.96.0.10:81", false, "ACCEPT"}}},
		{"another port is left alone", v4(), two, packet{pod, "10.96.0.10", "tcp", 81, false}, []fate{{"10.96.0.10:81", false, "ACCEPT"}}},
		{"another protocol is left alone", v4(), two, packet{pod, "10.96.0.10", "udp", 80, false}, []fate{{"10.96.0.10:80", false, "ACCEPT"}}},
		{"a ping is left alone", v4(), two, packet{pod, "10.96.0.10", "icmp", 0, false}, []fate{{"10.96.0.10:0", false, "ACCEPT"}}},
		{"a ping is left alone, without endpoints", v4(), none, packet{pod, "10.96.0.10", "icmp", 0, false}, []fate{{"10.96.0.10:0", false, "ACCEPT"}}},
		{"another address is left alone", v4(), two, packet{pod, "10.96.0.11", "tcp", 80, false}, []fate{{"10.96.0.11:80", false, "ACCEPT"}}},
		{"the node's address is left alone", v4(), two, packet{outside, nodeIP, "tcp", 80, false}, []fate{{nodeIP + ":80", false, "ACCEPT"}}},
		{"an endpoint reached directly is left alone", v4(), two, packet{outside, "10.244.0.1", "tcp", 8080, false}, []fate{{"10.244.0.1:8080", false, "ACCEPT"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkFates(t, traced(t, tt.cfg, tt.port).trace(tt.pkt), tt.want...)
		})
	}
}

func TestTraceIPv6(t *testing.T) {
	tr := traced(t, v6(),
		port(portName("shop", "web", "http", model.TCP), "fd00:96::a", 80, "[fd00:244::1]:8080", "[fd00:244::2]:8080"),
		port(portName("shop", "idle", "", model.UDP), "fd00:96::b", 53),
	)
	checkFates(t, tr.trace(packet{"fd00:244::9", "fd00:96::a", "tcp", 80, false}),
		fate{"[fd00:244::1]:8080", false, "ACCEPT"}, fate{"[fd00:244::2]:8080", false, "ACCEPT"})
	checkFates(t, tr.trace(packet{"2001:db8::1", "fd00:96::a", "tcp", 80, false}),
		fate{"[fd00:244::1]:8080", true, "ACCEPT"}, fate{"[fd00:244::2]:8080", true, "ACCEPT"})
	checkFates(t, tr.trace(packet{"fd00:244::9", "fd00:96::b", "udp", 53, false}), fate{"[fd00:96::b]:53", false, "REJECT"})
	checkFates(t, tr.trace(packet{"::1", "::1", "tcp", 80, true}), fate{"[::1]:80", false, "ACCEPT"})
}

// TestTraceSamePortOfTwoProtocols: ports of one number do not mix.
func TestTraceSamePortOfTwoProtocols(t *testing.T) {
	tr := traced(t, v4(),
		port(portName("a", "dns", "p", model.TCP), "10.96.0.53", 53, "10.244.0.1:53"),
		port(portName("a", "dns", "p", model.UDP), "10.96.0.53", 53, "10.244.0.2:53"),
		port(portName("a", "dns", "p", model.SCTP), "10.96.0.53", 53),
	)
	for proto, want := range map[string]fate{
		"tcp":  {"10.244.0.1:53", false, "ACCEPT"},
		"udp":  {"10.244.0.2:53", false, "ACCEPT"},
		"sctp": {"10.96.0.53:53", false, "REJECT"},
	} {
		checkFates(t, tr.trace(packet{pod, "10.96.0.53", proto, 53, false}), want)
	}
}

// TestTraceUniform: however many endpoints, each is as likely as the others.
func TestTraceUniform(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 10, 50, 99, 250} {
		var eps []string
		var want []fate
		for i := range n {
			eps = append(eps, fmt.Sprintf("10.244.%d.%d:80", i/250, i%250))
			want = append(want, fate{eps[i], false, "ACCEPT"})
		}
		tr := traced(t, v4(), port(portName("a", "b", "c", model.TCP), "10.96.0.10", 80, eps...))
		checkFates(t, tr.trace(packet{"10.244.200.1", "10.96.0.10", "tcp", 80, false}), want...)
	}
}
