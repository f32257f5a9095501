// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelOneFamily: where IPv6 is off, or has no iptables, the agent says so
// and does IPv4 alone.
func TestKernelOneFamily(t *testing.T) {
	for _, c := range []struct {
		name string
		env  func(t *testing.T, n *lab.Node) []string
		says []string
	}{
		{"IPv6 off", func(t *testing.T, n *lab.Node) []string {
			if err := n.SetSysctl("net/ipv6/conf/all/disable_ipv6", "1"); err != nil {
				t.Fatal(err)
			}
			return nil
		}, []string{"IPv6 is off in this kernel", "IPv4 alone"}},
		{"no ip6tables", func(t *testing.T, _ *lab.Node) []string {
			return []string{"PATH=" + onlyIPv4Tools(t)}
		}, []string{"IPv4 alone", "ip6tables"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
				ctx := testContext(t)
				node, server := l.Nodes[0], l.Nodes[0].Pods[0]
				dir := newDirectory(t)
				dir.write("web.yaml", web(l, server)...)
				a := startAgentEnv(ctx, t, node, v, c.env(t, node), iptablesMode, "--manifests", dir.path)
				a.waitLog(ctx, 0, 1, c.says...)
				a.waitLog(ctx, 0, 1, "Synced", `ipFamily="IPv4"`)
				if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Server != server.Label {
					t.Errorf("IPv4: %s", r)
				}
				checkNoRules(ctx, t, node, v, model.IPv6)
				a.stop()
			})
		})
	}
}

// onlyIPv4Tools returns a directory with all that is in PATH of the name
// iptables, and nothing for IPv6.
func onlyIPv4Tools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, v := range []string{"", "-nft", "-legacy"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			tool, err := exec.LookPath("iptables" + v + suffix)
			if err != nil {
				continue
			}
			if err := os.Symlink(tool, filepath.Join(dir, filepath.Base(tool))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// checkNoRules checks that a node has no rule of the agent in a family.
func checkNoRules(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant, f model.Family) {
	t.Helper()
	text, err := n.Save(ctx, v, f)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "KUBE-") {
		t.Errorf("rules of %s:\n%s", f, text)
	}
}
