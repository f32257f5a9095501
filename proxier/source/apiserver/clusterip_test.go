// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// TestClusterIP: the API server is not reached by the Service that the agent programs.
func TestClusterIP(t *testing.T) {
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112")}
	for _, tc := range []struct {
		name, server string
		cidrs        []netip.Prefix
		pod          string // KUBERNETES_PORT
		refused      string
	}{
		{name: "an address of a node", server: "https://192.0.2.10:6443", cidrs: cidrs, pod: "tcp://10.96.0.1:443"},
		{name: "a name", server: "https://api.example:6443", cidrs: cidrs, pod: "tcp://10.96.0.1:443"},
		{name: "a name that begins alike", server: "https://kubernetes.example:6443", cidrs: cidrs},
		{name: "an address without a scheme", server: "192.0.2.10:6443", cidrs: cidrs},
		{name: "what the kubelet tells", server: "https://10.96.0.1:443", pod: "tcp://10.96.0.1:443", refused: "cluster IP of the Service kubernetes"},
		{name: "what the kubelet tells, IPv6", server: "https://[fd00:10:96::1]:443", pod: "tcp://[fd00:10:96::1]:443", refused: "cluster IP of the Service kubernetes"},
		{name: "in a service CIDR", server: "https://10.111.0.1", cidrs: cidrs, refused: "10.96.0.0/12"},
		{name: "in a service CIDR, IPv6", server: "https://[fd00:10:96::1]:443", cidrs: cidrs, refused: "fd00:10:96::/112"},
		{name: "in a service CIDR, without a scheme", server: "10.96.0.1:443", cidrs: cidrs, refused: "10.96.0.0/12"},
		{name: "the Service's name", server: "https://kubernetes.default.svc", refused: "name of the Service"},
		{name: "the Service's full name", server: "https://kubernetes.default.svc.cluster.local.:443", refused: "name of the Service"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_PORT", tc.pod)
			_, err := NewClient(ClientConfig{Kubeconfig: writeFile(t, kubeconfig(tc.server)), ServiceCIDRs: tc.cidrs})
			if tc.refused == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if !errors.Is(err, ErrClusterIP) || !strings.Contains(err.Error(), tc.refused) || !strings.Contains(err.Error(), tc.server) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q and %q", err, tc.server, tc.refused)
			}
		})
	}
}
