// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// nodePortLab is a node with the Service web on its node ports and a health
// check port, and the Node object with its addresses.
func nodePortLab(t *testing.T) (*lab.Lab, *directory) {
	t.Helper()
	l := newLab(t)
	node, dir := l.Nodes[0], newDirectory(t)
	objects := exposed(l, node.Pods[0])
	svc := objects[0].(*corev1.Service)
	svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, healthPort
	dir.write("web.yaml", objects...)
	dir.write("node.yaml", nodeObject(node))
	return l, dir
}

const healthPort = 30099

// TestKernelNodePortAddresses: node ports and health check ports answer on the
// addresses that were asked for and on no others, and follow the node's
// addresses. Packets for 127.0.0.1 are routed only where it is one of these.
func TestKernelNodePortAddresses(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l, dir := nodePortLab(t)
	node := l.Nodes[0]
	const four, six = model.IPv4, model.IPv6
	bridge := func(f model.Family) netip.Addr { return node.PodCIDR(f).Addr().Next() }
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name        string
		args        []string
		answer, not []netip.Addr
		localnet    string
	}{
		{"CIDR", []string{"192.0.2.0/24"}, []netip.Addr{node.Addr(four)}, []netip.Addr{bridge(four), node.Addr(six), loopback}, "0"},
		{"primary", []string{"primary"}, []netip.Addr{node.Addr(four), node.Addr(six)}, []netip.Addr{bridge(four), bridge(six), loopback}, "0"},
		{
			"primary, which the agent is told", []string{"primary", "--bind-address", bridge(four).String()},
			[]netip.Addr{bridge(four), node.Addr(six)}, []netip.Addr{node.Addr(four), bridge(six), loopback}, "0",
		},
		{"loopback", []string{"127.0.0.0/8"}, []netip.Addr{loopback}, []netip.Addr{node.Addr(four), node.Addr(six)}, "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := startAgent(ctx, t, node, oneVariant(), append([]string{"--manifests", dir.path, "--nodeport-addresses"}, c.args...)...)
			a.waitSynced(ctx, 0)
			for ip, want := range outcomes(c.answer, c.not) {
				p := lab.Probe{From: asker(l, ip), Network: "tcp", To: netip.AddrPortFrom(ip, 30080)}
				if r := p.Once(ctx); r.Outcome != want {
					t.Errorf("%s: got %s, want %s", p, r, want)
				}
				if got := connects(ctx, t, p.From, netip.AddrPortFrom(ip, healthPort)); got != (want == lab.Answered) {
					t.Errorf("health check port at %s answers: %t, want %s", ip, got, want)
				}
			}
			if got := routeLocalnet(t, node); got != c.localnet {
				t.Errorf("route_localnet is %s, want %s", got, c.localnet)
			}
			a.stop()
		})
	}
}

// outcomes says which addresses answer and which refuse.
func outcomes(answer, not []netip.Addr) map[netip.Addr]lab.Outcome {
	out := map[netip.Addr]lab.Outcome{}
	for _, ip := range answer {
		out[ip] = lab.Answered
	}
	for _, ip := range not {
		out[ip] = lab.Refused
	}
	return out
}

// asker is who can reach an address of the first node.
func asker(l *lab.Lab, ip netip.Addr) *lab.NS {
	node := l.Nodes[0]
	switch {
	case ip.IsLoopback():
		return node.NS
	case node.PodCIDR(model.FamilyOf(ip)).Contains(ip):
		return node.Pods[1]
	}
	return l.Client
}

// connects tells whether somebody listens.
func connects(ctx context.Context, t *testing.T, from *lab.NS, to netip.AddrPort) bool {
	t.Helper()
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err == nil {
		return conn.Close() == nil
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s → %s: %v, want an answer or a refusal", from.Label, to, err)
	}
	return false
}

// TestKernelNodePortsFollowAddresses: an address that the node gets has node
// ports at once, if it is one that they answer on.
func TestKernelNodePortsFollowAddresses(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l, dir := nodePortLab(t)
	node := l.Nodes[0]
	a := startAgent(ctx, t, node, oneVariant(), "--manifests", dir.path, "--nodeport-addresses", "192.0.2.0/24")
	a.waitSynced(ctx, 0)
	extra := netip.MustParsePrefix("192.0.2.77/24")
	if err := node.AddAddr("eth0", extra); err != nil {
		t.Fatal(err)
	}
	p := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(extra.Addr(), 30080)}
	if _, err := p.WaitUntil(ctx, lab.Answered); err != nil {
		t.Errorf("an address that was added: %v", err)
	}
	a.stop()
	a = startAgent(ctx, t, node, oneVariant(), "--manifests", dir.path, "--nodeport-addresses", "primary")
	a.waitSynced(ctx, 0)
	if r := p.Once(ctx); r.Outcome != lab.Refused {
		t.Errorf("an address that is not primary: %s, want refused", r)
	}
}

// TestKernelNodePortsHoldNoSocket: a process of the node may have the port, and
// gets nothing of what is for the Service.
func TestKernelNodePortsHoldNoSocket(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l, dir := nodePortLab(t)
	node := l.Nodes[0]
	startAgent(ctx, t, node, oneVariant(), "--manifests", dir.path).waitSynced(ctx, 0)
	if _, err := node.EchoPort(ctx, 30080); err != nil {
		t.Errorf("listen on a node port: %v", err)
	}
	for _, f := range families() {
		p := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), 30080)}
		if r := p.Once(ctx); r.Server != node.Pods[0].Label {
			t.Errorf("%s: %s, want an answer of the endpoint", p, r)
		}
	}
}

// TestKernelLocalDetection: by whatever sign pods are told, they keep their
// address, and others take the node's.
func TestKernelLocalDetection(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node, server := l.Nodes[0], l.Nodes[0].Pods[0]
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, server)...)
	object := nodeObject(node)
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
			a := startAgent(ctx, t, node, oneVariant(), append([]string{"--manifests", dir.path}, args...)...)
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
