// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// moreAddr is another address of the first node, which has it for itself.
func moreAddr(f model.Family) netip.Addr {
	if f == model.IPv6 {
		return netip.MustParseAddr("2001:db8:f::7")
	}
	return netip.MustParseAddr("203.0.113.7")
}

// onNode is the Service web with node ports, whose load balancer's address is the
// node's own, and with an external IP that is moreAddr.
func onNode(l *lab.Lab, endpoints ...*lab.NS) []runtime.Object {
	objs := exposed(l, endpoints...)
	svc, node := objs[0].(*corev1.Service), l.Nodes[0]
	svc.Status.LoadBalancer.Ingress, svc.Spec.ExternalIPs = nil, nil
	for _, f := range families() {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: node.Addr(f).String()})
		svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, moreAddr(f).String())
	}
	return objs
}

// TestKernelHostPortOfServices: a host port never gets what is sent to a Service, be
// that without endpoints, or without one for who asks; and gets it back when the
// Service is gone. So it is for clients that keep their UDP socket.
func TestKernelHostPortOfServices(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, dir := l.Nodes[0], newDirectory(t)
		pod, elsewhere := node.Pods[0], l.Nodes[1].Pods[0]
		for _, f := range families() {
			more := netip.PrefixFrom(moreAddr(f), moreAddr(f).BitLen())
			if _, err := node.Run(ctx, "ip", "addr", "add", more.String(), "dev", "lo"); err != nil {
				t.Fatal(err)
			}
			if err := l.RouteClient(node, more); err != nil {
				t.Fatal(err)
			}
		}
		dir.write("pod.yaml", podObject("web", pod, publish(httpPort), publish(dnsPort), publish(30080), publish(dnsNodePort)))
		args := []string{"--manifests", dir.path, "--cni-conf-dir", t.TempDir()}
		a := startAgent(ctx, t, node, v, args...)
		a.waitSynced(ctx, 0)
		write := func(objs ...runtime.Object) {
			t.Helper()
			from := len(a.log())
			dir.write("web.yaml", objs...)
			a.waitSynced(ctx, from)
		}
		var kept []*udpClient
		for _, f := range families() {
			for _, port := range []uint16{dnsPort, dnsNodePort} {
				to := netip.AddrPortFrom(node.Addr(f), port).String()
				conn, err := l.Client.Dial(ctx, "udp", to)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				kept = append(kept, &udpClient{t, "client to " + to, conn})
			}
		}
		// check asks the Service's ports, and wants an outcome, of a server if it is an
		// answer.
		check := func(when string, want lab.Outcome, server *lab.NS) {
			t.Helper()
			for _, f := range families() {
				for _, p := range []lab.Probe{
					{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), httpPort)},
					{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), 30080)},
					{From: l.Client, Network: "udp", To: netip.AddrPortFrom(node.Addr(f), dnsPort)},
					{From: l.Client, Network: "udp", To: netip.AddrPortFrom(node.Addr(f), dnsNodePort)},
					{From: l.Nodes[1].NS, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), 30080)},
					{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(moreAddr(f), httpPort)},
					{From: l.Client, Network: "udp", To: netip.AddrPortFrom(moreAddr(f), dnsPort)},
				} {
					r := p.Once(ctx)
					if r.Outcome != want || want == lab.Answered && r.Server != server.Label {
						t.Errorf("%s: %s: %s, want it %s", when, p, r, want)
					}
				}
			}
			name := ""
			if want == lab.Answered {
				name = server.Label
			}
			checkAsk(t, kept, when, name)
		}
		policy := func(p corev1.ServiceExternalTrafficPolicy, endpoints ...*lab.NS) []runtime.Object {
			objs := onNode(l, endpoints...)
			objs[0].(*corev1.Service).Spec.ExternalTrafficPolicy = p
			return objs
		}
		check("no Service", lab.Answered, pod)
		write(onNode(l)...)
		check("no endpoints", lab.Refused, nil)
		a.waitLog(ctx, 0, 1, "Refused a host port", "30080/tcp", "is a node port of Service default/web")
		a.waitLog(ctx, 0, 1, "Refused a host port", "80/tcp", "is a port of Service default/web on "+node.Addr(model.IPv4).String())
		rules := save(ctx, t, node, v)
		a.stop()
		a = startAgent(ctx, t, node, v, args...)
		a.waitSynced(ctx, 0)
		if diff := cmp.Diff(rules, save(ctx, t, node, v)); diff != "" {
			t.Errorf("after a restart (-before +after):\n%s", diff)
		}
		check("no endpoints, after a restart", lab.Refused, nil)
		write(policy(corev1.ServiceExternalTrafficPolicyLocal, elsewhere)...)
		checkDropped(ctx, t, l, "no endpoints here")
		write(onNode(l, elsewhere)...)
		check("an endpoint", lab.Answered, elsewhere)
		write(onNode(l)...)
		check("no endpoints any more", lab.Refused, nil)
		write(service("other", 99))
		check("no Service any more", lab.Answered, pod)
		if text := save(ctx, t, node, v); strings.Contains(text, "a Service has it") {
			t.Errorf("rules for a Service that is gone:\n%s", text)
		}
	})
}

// checkDropped checks that nothing outside gets an answer by what the Service on the
// node has.
func checkDropped(ctx context.Context, t *testing.T, l *lab.Lab, when string) {
	t.Helper()
	for _, f := range families() {
		for _, port := range []uint16{httpPort, 30080} {
			p := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(l.Nodes[0].Addr(f), port)}
			if r := p.Once(ctx); r.Outcome != lab.TimedOut {
				t.Errorf("%s: %s: %s, want no answer", when, p, r)
			}
		}
	}
}

// TestKernelHostPortOutsideOfServices: a host port keeps the addresses that are no
// Service's: those that node ports do not answer on, and those that no load balancer
// has. Who may not come to a load balancer's address does not come to a host port by it.
func TestKernelHostPortOutsideOfServices(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, dir := l.Nodes[0], newDirectory(t)
		pod, neighbour, elsewhere := node.Pods[0], node.Pods[1], l.Nodes[1].Pods[0]
		objs := onNode(l, elsewhere)
		svc := objs[0].(*corev1.Service)
		svc.Spec.ExternalIPs = nil
		svc.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
		svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, healthPort
		dir.write("web.yaml", objs...)
		dir.write("pod.yaml", podObject("web", pod, publish(httpPort), publish(30080), publish(healthPort)))
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir(), "--nodeport-addresses", "192.0.2.0/24,2001:db8::/64")
		a.waitSynced(ctx, 0)
		for _, f := range families() {
			bridge := node.PodCIDR(f).Addr().Next()
			for _, port := range []uint16{httpPort, 30080, healthPort} {
				p := lab.Probe{From: neighbour, Network: "tcp", To: netip.AddrPortFrom(bridge, port)}
				if r := p.Once(ctx); r.Server != pod.Label {
					t.Errorf("%s: %s, want an answer of %s", p, r, pod.Label)
				}
			}
			status, _, err := a.get(ctx, "http://"+netip.AddrPortFrom(node.Addr(f), healthPort).String())
			if status != 503 {
				t.Errorf("%s: health check node port: status %d (%v), want 503", f, status, err)
			}
		}
		checkDropped(ctx, t, l, "neither a source range nor a local endpoint")
	})
}
