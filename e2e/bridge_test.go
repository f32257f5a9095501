// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"fairlead/e2e/lab"
)

// bridgeSettings make packets between two ports of one bridge pass the rules.
func bridgeSettings() []string {
	return []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"}
}

// bridgeLab is a lab whose first node has two pods on one bridge, and does not
// show the rules what they send to each other.
func bridgeLab(t *testing.T) (*lab.Lab, *directory) {
	t.Helper()
	l := newLab(t)
	for _, name := range bridgeSettings() {
		if _, err := os.Stat(filepath.Join("/proc/sys", name)); err != nil {
			t.Skipf("%v: lab.Node.AddPod lets the node route between pods on such a kernel", err)
		}
		if err := l.Nodes[0].SetSysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, l.Nodes[0].Pods[0])...)
	return l, dir
}

// TestKernelBridgeNetfilter: where the kernel can show the rules what pods on
// one bridge send to each other, the agent makes it do so.
func TestKernelBridgeNetfilter(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l, dir := bridgeLab(t)
	node := l.Nodes[0]
	startAgent(ctx, t, node, oneVariant(), "--manifests", dir.path).waitSynced(ctx, 0)
	for _, f := range families() {
		checkSpread(ctx, t, webProbe(node.Pods[1], f, "tcp"), map[string]netip.Addr{node.Pods[0].Label: node.Pods[1].Addr(f)})
	}
	for _, name := range bridgeSettings() { // the control: without it that fails
		if err := node.SetSysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range families() {
		if r := webProbe(node.Pods[1], f, "tcp").Once(ctx); r.Outcome == lab.Answered {
			t.Errorf("%s: %s although the rules do not see the answer", f, r)
		}
	}
}

// TestKernelNoBridgeNetfilter: where the kernel cannot, pods reach their
// neighbours through a Service all the same, with the node's address.
func TestKernelNoBridgeNetfilter(t *testing.T) {
	forVariants(t, func(t *testing.T, _ *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		l, dir := bridgeLab(t)
		node := l.Nodes[0]
		startHidden(ctx, t, node, v, dir).waitSynced(ctx, 0)
		for _, f := range families() {
			bridge := node.PodCIDR(f).Addr().Next()
			checkSpread(ctx, t, webProbe(node.Pods[1], f, "tcp"), map[string]netip.Addr{node.Pods[0].Label: bridge})
		}
	})
}

// startHidden starts the agent where it does not find the bridge settings, as
// on a kernel without br_netfilter.
func startHidden(ctx context.Context, t *testing.T, node *lab.Node, v lab.Variant, dir *directory, args ...string) *agent {
	t.Helper()
	script := filepath.Join(t.TempDir(), "fairlead")
	text := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none /proc/sys/net/bridge && exec %s \"$@\"' sh \"$@\"\n", binary)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return startProgram(ctx, t, node, v, script, nil, append([]string{"--manifests", dir.path}, args...)...)
}
