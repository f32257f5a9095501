// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

func portName(namespace, name, port string, proto model.Protocol) model.ServicePortName {
	return model.ServicePortName{Service: model.ObjectKey{Namespace: namespace, Name: name}, Port: port, Protocol: proto}
}

// TestChainNames: the names are those that kube-proxy gives.
func TestChainNames(t *testing.T) {
	for _, tt := range []struct {
		what, got, want string
	}{
		{"service port", serviceChain(portName("ns1", "svc1", "p80", model.TCP)), "KUBE-SVC-XPGD46QRK7WJZT7O"},
		{"endpoint", endpointChain(portName("ns1", "svc1", "p80", model.TCP), netip.MustParseAddrPort("10.180.0.1:80")), "KUBE-SEP-SXIVWICOYRO3J4NJ"},
		{"UDP", serviceChain(portName("kube-system", "kube-dns", "dns", model.UDP)), "KUBE-SVC-TCOU7JCQXEZGVUNU"},
	} {
		if tt.got != tt.want {
			t.Errorf("chain of %s = %s, want %s", tt.what, tt.got, tt.want)
		}
	}
}

// TestChainNamesDiffer: all that tells ports and endpoints apart is in the name.
func TestChainNamesDiffer(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")
	seen := map[string]bool{}
	for _, name := range []model.ServicePortName{
		portName("a", "b", "", model.TCP), portName("a", "b", "", model.UDP), portName("a", "b", "", model.SCTP),
		portName("a", "b", "c", model.TCP), portName("a", "b", "d", model.TCP), portName("b", "a", "", model.TCP),
	} {
		for _, chain := range []string{serviceChain(name), endpointChain(name, v4), endpointChain(name, v6)} {
			if seen[chain] {
				t.Errorf("chain %s of %s is another's, too", chain, name)
			}
			if len(chain) > ruleset.MaxChainName {
				t.Errorf("chain %s has %d characters, want at most %d", chain, len(chain), ruleset.MaxChainName)
			}
			seen[chain] = true
		}
	}
}
