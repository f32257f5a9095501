// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// udpClient is a client that keeps one socket, and so its flow in conntrack.
type udpClient struct {
	t    *testing.T
	name string
	conn net.Conn
}

// ask sends a datagram and returns who answered, empty for nobody.
func (c *udpClient) ask() string {
	c.t.Helper()
	buf := make([]byte, 512)
	if err := c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.conn.Write([]byte("hello\n")); err != nil {
		return ""
	}
	n, err := c.conn.Read(buf)
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(string(buf[:n]), " ")
	return name
}

// exposed is the Service web with a node port, a load balancer and an external
// IP.
func exposed(l *lab.Lab, pods ...*lab.NS) []runtime.Object {
	objs := web(l, pods...)
	svc := objs[0].(*corev1.Service)
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	for i := range svc.Spec.Ports {
		svc.Spec.Ports[i].NodePort = int32(30080 + i)
	}
	svc.Spec.ExternalIPs = []string{"203.0.113.5", "2001:db8:f::5"}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.80"}, {IP: "2001:db8:f::80"}}
	return objs
}

const dnsNodePort = 30081

// udpAddrs are the addresses of an exposed Service, by kind.
func udpAddrs(l *lab.Lab, f model.Family) map[string]netip.AddrPort {
	external, balancer := netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("203.0.113.80")
	if f == model.IPv6 {
		external, balancer = netip.MustParseAddr("2001:db8:f::5"), netip.MustParseAddr("2001:db8:f::80")
	}
	return map[string]netip.AddrPort{
		"cluster IP":       netip.AddrPortFrom(vip(f, 10), dnsPort),
		"node port":        netip.AddrPortFrom(l.Nodes[0].Addr(f), dnsNodePort),
		"external IP":      netip.AddrPortFrom(external, dnsPort),
		"load balancer IP": netip.AddrPortFrom(balancer, dnsPort),
	}
}

// udpClients opens a socket to each address of an exposed Service, from a pod
// and from the client outside.
func udpClients(ctx context.Context, t *testing.T, l *lab.Lab) []*udpClient {
	t.Helper()
	var out []*udpClient
	for _, f := range families() {
		for kind, addr := range udpAddrs(l, f) {
			for _, from := range []*lab.NS{l.Nodes[0].Pods[1], l.Client} {
				if from == l.Client && kind == "cluster IP" {
					continue // reached only by way of its route, which is another test's
				}
				conn, err := from.Dial(ctx, "udp", addr.String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				out = append(out, &udpClient{t, from.Label + " to the " + kind + " " + addr.String(), conn})
			}
		}
	}
	return out
}

// checkAsk asks on every client's socket, and wants the same answer from all.
func checkAsk(t *testing.T, clients []*udpClient, when, want string) {
	t.Helper()
	for _, c := range clients {
		if got := c.ask(); got != want {
			t.Errorf("%s, %s: got an answer from %q, want %q", when, c.name, got, want)
		}
	}
}

// TestKernelUDPFlowsFollow: a client that keeps its UDP socket moves to the
// endpoint that there is now, whatever has become of the one before.
func TestKernelUDPFlowsFollow(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		if err := l.RouteClient(node, netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:f::/64")); err != nil {
			t.Fatal(err)
		}
		first, second := node.Pods[0], l.Nodes[1].Pods[0]
		dir := newDirectory(t)
		dir.write("web.yaml", exposed(l, first)...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		write := func(objs ...runtime.Object) {
			t.Helper()
			from := len(a.log())
			dir.write("web.yaml", objs...)
			a.waitSynced(ctx, from)
		}
		clients := udpClients(ctx, t, l)

		checkAsk(t, clients, "at first", first.Label)
		write(exposed(l, second)...)
		checkAsk(t, clients, "endpoint replaced", second.Label)
		write(exposed(l)...)
		checkAsk(t, clients, "scaled to zero", "")
		write(exposed(l, first)...)
		checkAsk(t, clients, "scaled up again", first.Label)
		write(service("other", 99))
		checkAsk(t, clients, "Service deleted", "")
		write(exposed(l, second)...)
		checkAsk(t, clients, "Service made again, while clients went on", second.Label)

		a.stop()
		dir.write("web.yaml", exposed(l, first)...)
		a = startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		checkAsk(t, clients, "changed while the agent was down", first.Label)

		a.stop()
		dir.write("web.yaml", service("other", 99))
		a = startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		checkAsk(t, clients, "Service deleted while the agent was down", "")
	})
}

// TestKernelFlowsStay: what is not stale goes on, TCP in any case.
func TestKernelFlowsStay(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		var held []*lab.Held
		for _, f := range families() {
			for _, network := range []string{"tcp", "udp"} {
				h, err := webProbe(node.Pods[1], f, network).Hold(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer h.Close()
				held = append(held, h)
			}
		}
		from := len(a.log())
		dir.write("web.yaml", web(l, node.Pods[0], l.Nodes[1].Pods[0])...)
		a.waitSynced(ctx, from)
		for _, h := range held {
			if r := h.Ping(ctx); r.Outcome != lab.Answered || r.Server != "" && r.Server != node.Pods[0].Label {
				t.Errorf("with a second endpoint: %s, want the first to go on", r)
			}
		}
		from = len(a.log())
		dir.write("web.yaml", web(l, l.Nodes[1].Pods[0])...)
		a.waitSynced(ctx, from)
		for i := 0; i < len(held); i += 2 {
			if r := held[i].Ping(ctx); r.Outcome != lab.Answered {
				t.Errorf("TCP after its endpoint has left the Service: %s, want it to go on", r)
			}
		}
	})
}
