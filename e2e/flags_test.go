// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fairlead/e2e/lab"
)

// TestKernelFlags: flags have their effect in the rules and in the kernel's
// settings.
func TestKernelFlags(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node := l.Nodes[0]
	dir := newDirectory(t)
	dir.write("web.yaml", exposed(l, node.Pods[0])...)
	notFromPods, external, balancer := "! -s 10.244.0.0/16 ", " -d 203.0.113.5/32 ", " -d 203.0.113.80/32 "
	if *proxyMode == "nftables" {
		notFromPods, external, balancer = "ip saddr != @pod-cidrs ", " 203.0.113.5 . tcp", " 203.0.113.80 . tcp"
	}
	for _, c := range []struct {
		name string
		args []string
		// has and lacks are parts of the rules, settings those of conntrack.
		has, lacks []string
		settings   map[string]string
	}{
		{
			name: "none", has: []string{notFromPods, "--set-xmark 0x4000/0x4000", external, balancer},
			settings: map[string]string{"tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600"},
		},
		{"masquerade-all", []string{"--masquerade-all"}, nil, []string{notFromPods}, nil},
		{"masquerade-bit", []string{"--iptables-masquerade-bit=20"}, []string{"--set-xmark 0x100000/0x100000"}, []string{"0x4000"}, nil},
		{"no external IPs", []string{"--external-ip-cidrs="}, []string{balancer}, []string{external}, nil},
		{"external IPs", []string{"--external-ip-cidrs=203.0.113.0/24"}, []string{external, balancer}, []string{"2001:db8:f::5"}, nil},
		{"service CIDRs", []string{"--service-cidrs=203.0.113.0/24"}, []string{"2001:db8:f::5"}, []string{external, balancer}, nil},
		{
			name:     "timeouts",
			args:     []string{"--conntrack-udp-timeout=45s", "--conntrack-udp-timeout-stream=3m", "--conntrack-tcp-timeout-established=2h", "--conntrack-tcp-timeout-close-wait=0"},
			settings: map[string]string{"udp_timeout": "45", "udp_timeout_stream": "180", "tcp_timeout_established": "7200", "tcp_timeout_close_wait": "3600"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := startAgent(ctx, t, node, oneVariant(), append([]string{"--manifests", dir.path}, c.args...)...)
			a.waitSynced(ctx, 0)
			rules := save(ctx, t, node, oneVariant())
			for _, part := range c.has {
				if !strings.Contains(rules, part) {
					t.Errorf("rules without %q", part)
				}
			}
			for _, part := range c.lacks {
				if strings.Contains(rules, part) {
					t.Errorf("rules with %q", part)
				}
			}
			for name, want := range c.settings {
				if got := conntrackSetting(t, node, name); got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
			}
			a.stop()
		})
	}
}

// conntrackSetting reads a setting of conntrack's in a node.
func conntrackSetting(t *testing.T, n *lab.Node, name string) string {
	t.Helper()
	var text []byte
	err := n.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/sys/net/netfilter", "nf_conntrack_"+name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
