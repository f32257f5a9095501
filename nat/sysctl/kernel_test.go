// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelSettings: the settings of a network namespace take effect in it,
// and those that it may not change are named.
func TestKernelSettings(t *testing.T) {
	if err := lab.Supported(t.Context()); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	outside := read(t, routeLocalnet)
	s := New("")
	err = l.Nodes[0].Do(func() error {
		inNamespace(t, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = l.Client.Do(func() error {
		wantProblems(t, s.Forwarding(model.Families()...), "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, routeLocalnet); got != outside {
		t.Errorf("outside, route_localnet: got %s, want %s as before", got, outside)
	}
}

// inNamespace changes and checks all settings of a node.
func inNamespace(t *testing.T, s *Settings) {
	ctx := t.Context()
	wantProblems(t, s.Forwarding(model.Families()...))
	for f, file := range map[model.Family]string{
		model.IPv4: "net/bridge/bridge-nf-call-iptables", model.IPv6: "net/bridge/bridge-nf-call-ip6tables",
	} {
		if _, err := os.Stat("/proc/sys/" + file); err != nil {
			continue
		}
		put(t, file, "0")
		passes, problems := s.BridgeNetfilter(ctx, f)
		wantProblems(t, problems)
		if got := read(t, file); !passes || got != "1" {
			t.Errorf("%s: got %t, and %s in the kernel, want true and 1", file, passes, got)
		}
	}
	wantProblems(t, s.SetRouteLocalnet(ctx))
	if got := read(t, routeLocalnet); got != "1" {
		t.Errorf("route_localnet: got %s, want 1", got)
	}
	wantProblems(t, s.ResetRouteLocalnet(ctx))
	if got := read(t, routeLocalnet); got != "0" {
		t.Errorf("route_localnet reset: got %s, want 0", got)
	}
	conntrackInNamespace(t, s)
}

func conntrackInNamespace(t *testing.T, s *Settings) {
	if s.BeLiberal() {
		t.Error("liberal at first")
	}
	wantProblems(t, s.Conntrack(t.Context(), ConntrackConfig{
		TCPEstablishedTimeout: 2 * time.Hour, TCPCloseWaitTimeout: 61 * time.Second,
		UDPTimeout: 31 * time.Second, UDPStreamTimeout: 121 * time.Second, TCPBeLiberal: true,
	}))
	if !s.BeLiberal() {
		t.Error("not liberal afterwards")
	}
	for setting, want := range map[string]string{
		"tcp_timeout_established": "7200", "tcp_timeout_close_wait": "61",
		"udp_timeout": "31", "udp_timeout_stream": "121", "tcp_be_liberal": "1",
	} {
		if got := read(t, "net/netfilter/nf_conntrack_"+setting); got != want {
			t.Errorf("%s: got %s, want %s", setting, got, want)
		}
	}
	// The limit is the machine's: a namespace may not change it.
	before := read(t, conntrackMax)
	problems := s.Conntrack(t.Context(), ConntrackConfig{MaxPerCore: 1, Min: 12_345})
	wantProblems(t, problems, "net.netfilter.nf_conntrack_max")
	if after := read(t, conntrackMax); after != before {
		t.Errorf("the machine's limit: got %s, want %s as before", after, before)
	}
}

func read(t *testing.T, sysctl string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + sysctl)
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(b))
}

func put(t *testing.T, sysctl, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0o644); err != nil {
		t.Error(err)
	}
}
