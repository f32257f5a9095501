// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelHostPortMatrix: every kind of host IP, asked from everywhere at every address
// of the node, answers where it should and nowhere else, by TCP and UDP, and the pod sees
// who asks; with rules that see what pods on one bridge send to each other, and without.
func TestKernelHostPortMatrix(t *testing.T) {
	const matrix = "--host-ports-localhost"
	t.Run("bridge netfilter", func(t *testing.T) {
		forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
			ctx, dir := testContext(t), newDirectory(t)
			node := l.Nodes[0]
			rows := matrixRows(node)
			dir.write("pod.yaml", matrixPod(node.Pods[0], rows))
			startAgent(ctx, t, node, v, "--manifests", dir.path, matrix).waitSynced(ctx, 0)
			checkMatrix(ctx, t, l, rows, func(f model.Family) netip.Addr { return node.Pods[1].Addr(f) })
		})
	})
	t.Run("no bridge netfilter", func(t *testing.T) {
		forVariants(t, func(t *testing.T, _ *lab.Lab, v lab.Variant) {
			ctx := testContext(t)
			l, dir := bridgeLab(t)
			node := l.Nodes[0]
			rows := matrixRows(node)
			dir.write("pod.yaml", matrixPod(node.Pods[0], rows))
			startHidden(ctx, t, node, v, dir, matrix).waitSynced(ctx, 0)
			checkMatrix(ctx, t, l, rows, func(f model.Family) netip.Addr { return node.PodCIDR(f).Addr().Next() })
		})
	})
}

// matrixRow is a host IP, and the node's addresses that its host port answers on.
type matrixRow struct {
	hostIP string
	port   uint16
	on     []netip.Addr
}

var loopback4 = netip.MustParseAddr("127.0.0.1")

func matrixRows(node *lab.Node) []matrixRow {
	lan4, lan6 := node.Addr(model.IPv4), node.Addr(model.IPv6)
	bridge4, bridge6 := node.PodCIDR(model.IPv4).Addr().Next(), node.PodCIDR(model.IPv6).Addr().Next()
	rows := []matrixRow{
		{hostIP: "", on: []netip.Addr{lan4, bridge4, loopback4, lan6, bridge6}},
		{hostIP: "0.0.0.0", on: []netip.Addr{lan4, bridge4, loopback4}},
		{hostIP: "::", on: []netip.Addr{lan6, bridge6}},
		{hostIP: "127.0.0.1", on: []netip.Addr{loopback4}},
	}
	for _, one := range []netip.Addr{lan4, bridge4, lan6, bridge6} {
		rows = append(rows, matrixRow{hostIP: one.String(), on: []netip.Addr{one}})
	}
	for i := range rows {
		rows[i].port = uint16(hostPort + i)
	}
	return rows
}

// matrixPod has all the host ports.
func matrixPod(at *lab.NS, rows []matrixRow) *corev1.Pod {
	var ports []corev1.ContainerPort
	for _, r := range rows {
		ports = append(ports, corev1.ContainerPort{HostPort: int32(r.port), HostIP: r.hostIP})
	}
	return podObject("web", at, ports...)
}

// checkMatrix asks all of it. neighbour is the address with which the pod sees one on
// its bridge.
func checkMatrix(ctx context.Context, t *testing.T, l *lab.Lab, rows []matrixRow, neighbour func(model.Family) netip.Addr) {
	t.Helper()
	node := l.Nodes[0]
	for _, f := range families() {
		if err := l.RouteClient(node, node.PodCIDR(f)); err != nil {
			t.Fatal(err)
		}
		bridge := node.PodCIDR(f).Addr().Next()
		ats := []netip.Addr{node.Addr(f), bridge}
		if f == model.IPv4 {
			ats = append(ats, loopback4)
		}
		for _, from := range []*lab.NS{l.Client, l.Nodes[1].NS, l.Nodes[1].Pods[0], node.NS, node.Pods[1], node.Pods[0]} {
			for _, at := range ats {
				if at.IsLoopback() && from != node.NS {
					continue
				}
				saw := from.Addr(f)
				switch from {
				case node.NS:
					if saw = at; at.IsLoopback() {
						saw = bridge
					}
				case node.Pods[1]:
					saw = neighbour(f)
				case node.Pods[0]:
					saw = bridge
				}
				for _, row := range rows {
					checkCell(ctx, t, row, lab.Probe{From: from, To: netip.AddrPortFrom(at, row.port)}, saw, node.Pods[0].Label)
				}
			}
		}
	}
}

// checkCell asks one host port at one address.
func checkCell(ctx context.Context, t *testing.T, row matrixRow, p lab.Probe, saw netip.Addr, server string) {
	t.Helper()
	answers := false
	for _, a := range row.on {
		answers = answers || a == p.To.Addr()
	}
	for _, p.Network = range []string{"tcp", "udp"} {
		r := p.Once(ctx)
		switch {
		case answers && (r.Server != server || r.Source.Addr() != saw):
			t.Errorf("host IP %q: %s: %s, want an answer of %s to %s", row.hostIP, p, r, server, saw)
		case !answers && (r.Outcome == lab.Answered || r.Outcome != lab.Refused && p.Network == "tcp"):
			t.Errorf("host IP %q: %s: %s, want it refused", row.hostIP, p, r)
		}
		if !answers {
			return // what is refused by UDP takes its time: ICMP has a limit
		}
	}
}
