// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelNodePortAddresses: node ports answer on the addresses that were
// asked for and on no others, and follow the node's addresses.
func TestKernelNodePortAddresses(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node := l.Nodes[0]
	dir := newDirectory(t)
	dir.write("web.yaml", exposed(l, node.Pods[0])...)
	object := nodeObject(node.Label)
	for _, f := range families() {
		object.Status.Addresses = append(object.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: node.Addr(f).String()})
	}
	dir.write("node.yaml", object)
	ask := func(when string, from *lab.NS, ip netip.Addr, want lab.Outcome) {
		t.Helper()
		p := lab.Probe{From: from, Network: "tcp", To: netip.AddrPortFrom(ip, 30080)}
		if r := p.Once(ctx); r.Outcome != want {
			t.Errorf("%s: %s: got %s, want %s", when, p, r, want)
		}
	}
	bridge := func(f model.Family) netip.Addr { return node.PodCIDR(f).Addr().Next() }

	a := startAgent(ctx, t, node, lab.NFT, "--manifests", dir.path, "--nodeport-addresses", "192.0.2.0/24")
	a.waitSynced(ctx, 0)
	ask("in the CIDR", l.Client, node.Addr(model.IPv4), lab.Answered)
	ask("outside the CIDR", node.Pods[1], bridge(model.IPv4), lab.Refused)
	ask("a family without a CIDR", l.Client, node.Addr(model.IPv6), lab.Refused)
	extra := netip.MustParsePrefix("192.0.2.77/24")
	if err := node.AddAddr("eth0", extra); err != nil {
		t.Fatal(err)
	}
	added := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(extra.Addr(), 30080)}
	if _, err := added.WaitUntil(ctx, lab.Answered); err != nil {
		t.Errorf("an address that was added: %v", err)
	}
	a.stop()

	a = startAgent(ctx, t, node, lab.NFT, "--manifests", dir.path, "--nodeport-addresses", "primary")
	a.waitSynced(ctx, 0)
	for _, f := range families() {
		ask("primary", l.Client, node.Addr(f), lab.Answered)
		ask("not primary", node.Pods[1], bridge(f), lab.Refused)
	}
	ask("not primary any more", l.Client, extra.Addr(), lab.Refused)
}

// TestKernelLocalDetection: by whatever sign pods are told, they keep their
// address, and others take the node's.
func TestKernelLocalDetection(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node, server := l.Nodes[0], l.Nodes[0].Pods[0]
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, server)...)
	object := nodeObject(node.Label)
	for _, f := range families() {
		object.Spec.PodCIDRs = append(object.Spec.PodCIDRs, node.PodCIDR(f).String())
	}
	dir.write("node.yaml", object)
	for _, args := range [][]string{
		{"--detect-local-mode", "ClusterCIDR", "--cluster-cidr", "10.99.0.0/16,10.244.0.0/16,fd00:99::/64,fd00:10:244::/48"},
		{"--detect-local-mode", "NodeCIDR"},
		{"--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "cni0"},
		{"--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "cni"},
	} {
		t.Run(args[1], func(t *testing.T) {
			a := startAgent(ctx, t, node, lab.NFT, append([]string{"--manifests", dir.path}, args...)...)
			a.waitSynced(ctx, 0)
			for _, f := range families() {
				bridge := node.PodCIDR(f).Addr().Next()
				checkSpread(ctx, t, webProbe(node.Pods[1], f, "tcp"), map[string]netip.Addr{server.Label: node.Pods[1].Addr(f)})
				checkSpread(ctx, t, webProbe(l.Client, f, "tcp"), map[string]netip.Addr{server.Label: bridge})
			}
			a.stop()
		})
	}
}
