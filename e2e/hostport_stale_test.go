// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
)

// TestKernelHostPortStale: after a restart of the node, pods show the addresses that
// they had before. A host port leads to no pod that has its address from then: neither
// if another has it by now, with host ports or without, nor if the pod's network is not
// made, or no route leads there; and it leads to the pod again once that has its network.
func TestKernelHostPortStale(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, dir := l.Nodes[0], newDirectory(t)
		first, second := node.Pods[0], node.Pods[1]
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir())
		a.waitSynced(ctx, 0)
		pod := func(name string, at *lab.NS, wired int, ports ...corev1.ContainerPort) *corev1.Pod {
			p := podObject(name, at, ports...)
			start := metav1.NewTime(time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC))
			p.Status.StartTime = &start
			p.Status.Conditions = []corev1.PodCondition{{
				Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue,
				LastTransitionTime: metav1.NewTime(start.Add(time.Duration(wired) * time.Minute)),
			}}
			return p
		}
		unwired := func(p *corev1.Pod) *corev1.Pod {
			p.Status.Conditions[0].Status = corev1.ConditionFalse
			return p
		}
		addressed := func(p *corev1.Pod, ips ...string) *corev1.Pod {
			p.Status.PodIPs = nil
			for _, ip := range ips {
				p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
			}
			return p
		}
		const more = hostPort + 1
		write := func(objs ...runtime.Object) {
			t.Helper()
			from := len(a.log())
			dir.write("pods.yaml", objs...)
			a.waitSynced(ctx, from)
		}
		check := func(when string, port uint16, want *lab.NS) {
			t.Helper()
			for _, f := range families() {
				r := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), port)}.Once(ctx)
				if want == nil && r.Outcome != lab.Refused || want != nil && r.Server != want.Label {
					t.Errorf("%s: %s: port %d: %s, want an answer of %v", when, f, port, r, want)
				}
			}
		}
		write(pod("web", first, 1, publish(hostPort)))
		check("before", hostPort, first)
		write(pod("web", first, 1, publish(hostPort)), pod("fresh", first, 2, publish(more)))
		check("its address is that of another with host ports", hostPort, nil)
		check("its address is that of another with host ports", more, first)
		write(pod("web", first, 1, publish(hostPort)), pod("fresh", first, 2))
		check("its address is that of another without host ports", hostPort, nil)
		a.waitLog(ctx, 0, 2, "Refused a host port", "is that of pod default/fresh by now")
		write(pod("web", second, 3, publish(hostPort)), pod("fresh", first, 2))
		check("its network made again, with another address", hostPort, second)
		write(unwired(pod("web", second, 4, publish(hostPort))), pod("fresh", first, 2))
		check("its network not made", hostPort, nil)
		write(pod("web", second, 5, publish(hostPort)), pod("fresh", first, 2))
		check("its network made again, with the same address", hostPort, second)

		lost := addressed(pod("web", second, 6, publish(hostPort)), "10.243.0.5", "fd00:10:243::5")
		write(lost)
		check("no route leads to its address", hostPort, nil)
		a.waitLog(ctx, 0, 2, "Refused a host port", "has no route but the default one")
		own := addressed(pod("web", second, 6, publish(hostPort)), node.Addr(families()[0]).String(), node.Addr(families()[1]).String())
		write(own)
		check("its address is the node's", hostPort, nil)
		a.waitLog(ctx, 0, 2, "Refused a host port", "is the node's own")
		write(lost)
		for _, c := range []struct {
			in   *lab.NS
			args []string
		}{ // as a CNI plugin does that gives each pod a route of its own
			{second, []string{"addr", "add", "10.243.0.5/32", "dev", "eth0"}},
			{second, []string{"addr", "add", "fd00:10:243::5/128", "dev", "eth0", "nodad"}},
			{node.NS, []string{"route", "add", "10.243.0.5/32", "dev", "cni0"}},
			{node.NS, []string{"route", "add", "fd00:10:243::5/128", "dev", "cni0"}},
		} {
			if _, err := c.in.Run(ctx, "ip", c.args...); err != nil {
				t.Fatal(err)
			}
		}
		write(lost, pod("fresh", first, 7)) // any sync will do
		check("with a route of its own", hostPort, second)
	})
}
