// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// hostPort is the port of the node that these tests use.
const hostPort = 9080

// podObject is a Pod on node-1, wired to a namespace, with host ports. An absent
// protocol is TCP and UDP, and an absent port of the container that of its server.
func podObject(name string, at *lab.NS, ports ...corev1.ContainerPort) *corev1.Pod {
	c := corev1.Container{Name: "c", Image: "none"}
	for _, p := range ports {
		if p.ContainerPort == 0 {
			p.ContainerPort = httpTarget
		}
		if p.Protocol != "" {
			c.Ports = append(c.Ports, p)
			continue
		}
		for _, p.Protocol = range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			c.Ports = append(c.Ports, p)
		}
	}
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{c}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, f := range families() {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: at.Addr(f).String()})
	}
	return pod
}

// publish is a host port.
func publish(port int32) corev1.ContainerPort { return corev1.ContainerPort{HostPort: port} }

// ask asks a host port of node-1.
func ask(from *lab.NS, network string, at netip.Addr) lab.Probe {
	return lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(at, hostPort)}
}

// checkHostPort checks that a host port leads to a pod, from everywhere, and with which
// address the pod sees who asks. neighbour is that of a pod on the same bridge.
func checkHostPort(ctx context.Context, t *testing.T, l *lab.Lab, pod *lab.NS, neighbour func(model.Family) netip.Addr) {
	t.Helper()
	node := l.Nodes[0]
	forFlows(t, func(t *testing.T, f model.Family, network string) {
		bridge := node.PodCIDR(f).Addr().Next()
		for _, c := range []struct {
			name     string
			from     *lab.NS
			at, want netip.Addr
		}{
			{"from outside", l.Client, node.Addr(f), l.Client.Addr(f)},
			{"from another node", l.Nodes[1].NS, node.Addr(f), l.Nodes[1].Addr(f)},
			{"from a pod on another node", l.Nodes[1].Pods[0], node.Addr(f), l.Nodes[1].Pods[0].Addr(f)},
			{"from the node", node.NS, node.Addr(f), node.Addr(f)},
			{"from the node, at its address to the pods", node.NS, bridge, bridge},
			{"from a neighbour", node.Pods[1], node.Addr(f), neighbour(f)},
			{"from a neighbour, at the node's address to the pods", node.Pods[1], bridge, neighbour(f)},
			{"from the pod itself", pod, node.Addr(f), bridge},
		} {
			r := checkSource(ctx, t, c.name, ask(c.from, network, c.at), c.want)
			if r.Outcome == lab.Answered && r.Server != pod.Label {
				t.Errorf("%s: answered by %s, want %s", c.name, r.Server, pod.Label)
			}
		}
	})
}

// TestKernelHostPort: a host port leads to its pod from everywhere, which sees those
// outside with their own address, also where is dropped what nobody accepts. Everything
// else passes as ever: other ports of the node, and the same port of others.
func TestKernelHostPort(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, other := l.Nodes[0], l.Nodes[0].Pods[0], l.Nodes[0].Pods[1]
		for _, f := range families() {
			if err := l.RouteClient(node, node.PodCIDR(f)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := other.EchoPort(ctx, hostPort); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Echo(ctx, "process", netip.AddrPortFrom(netip.MustParseAddr("10.244.0.1"), hostPort)); err != nil {
			t.Fatal(err)
		}
		dir := newDirectory(t)
		dir.write("pod.yaml", podObject("web", pod, publish(hostPort)))
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--host-ports", "auto", "--cni-conf-dir", t.TempDir())
		a.waitSynced(ctx, 0)
		checkHostPort(ctx, t, l, pod, func(f model.Family) netip.Addr { return other.Addr(f) })
		a.waitLog(ctx, 0, 2, "a process of the node listens on a host port", "hostPort=\"9080/tcp\"")
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			another := lab.Probe{From: l.Client, Network: network, To: netip.AddrPortFrom(node.Addr(f), hostPort+1)}
			if r := another.Once(ctx); r.Outcome != lab.Refused {
				t.Errorf("another port: %s, want it refused", r)
			}
			if r := ask(l.Client, network, other.Addr(f)).Once(ctx); r.Server != other.Label {
				t.Errorf("the same port of another, through the node: %s, want an answer of %s", r, other.Label)
			}
			loopback := netip.MustParseAddr("127.0.0.1")
			if f == model.IPv6 {
				loopback = netip.IPv6Loopback()
			}
			if r := ask(node.NS, network, loopback).Once(ctx); r.Outcome != lab.Refused {
				t.Errorf("at %s: %s, want it refused", loopback, r)
			}
		})
		forwardDrop(ctx, t, node, v)
		for _, f := range families() {
			if r := ask(l.Client, "tcp", node.Addr(f)).Once(ctx); r.Server != pod.Label || r.Source.Addr() != l.Client.Addr(f) {
				t.Errorf("where the rest is dropped: %s, want an answer of %s", r, pod.Label)
			}
			if r := ask(l.Client, "tcp", other.Addr(f)).Once(ctx); r.Outcome != lab.TimedOut {
				t.Errorf("the rest: %s, want no answer", r)
			}
			if err := node.Iptables(ctx, v, f, "-I", "FORWARD", "-p", "udp", "-j", "DROP"); err != nil {
				t.Fatal(err)
			}
			if r := ask(l.Client, "udp", node.Addr(f)).Once(ctx); r.Outcome != lab.TimedOut {
				t.Errorf("what a policy drops: %s, want no answer", r)
			}
		}
		want := save(ctx, t, node, v)
		a.stop()
		a = startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir())
		a.waitLog(ctx, 0, 2, "Synced", "written=0")
		if diff := cmp.Diff(want, save(ctx, t, node, v)); diff != "" {
			t.Errorf("after a restart (-before +after):\n%s", diff)
		}
		from := len(a.log())
		dir.remove("pod.yaml")
		a.waitSynced(ctx, from)
		if hasHostPorts(ctx, t, node, v) {
			t.Errorf("after the pod has gone:\n%s", save(ctx, t, node, v))
		}
	})
}

// TestKernelHostPortNoBridgeNetfilter: where packets between pods on one bridge do not
// pass the rules, a pod's neighbours reach its host port with the node's address.
func TestKernelHostPortNoBridgeNetfilter(t *testing.T) {
	forVariants(t, func(t *testing.T, _ *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		l, dir := bridgeLab(t)
		node := l.Nodes[0]
		dir.write("pod.yaml", podObject("web", node.Pods[0], publish(hostPort)))
		startHidden(ctx, t, node, v, dir, "--cni-conf-dir", t.TempDir()).waitSynced(ctx, 0)
		checkHostPort(ctx, t, l, node.Pods[0], func(f model.Family) netip.Addr { return node.PodCIDR(f).Addr().Next() })
	})
}

// TestKernelHostPortAddresses: a host port answers on the address that it is for, and
// on no other; one of 127.0.0.1 only to the node itself, and only if asked to.
func TestKernelHostPortAddresses(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, dir := l.Nodes[0], l.Nodes[0].Pods[0], newDirectory(t)
		lan4, lan6 := node.Addr(model.IPv4).String(), node.Addr(model.IPv6).String()
		bridge4, bridge6 := node.PodCIDR(model.IPv4).Addr().Next().String(), node.PodCIDR(model.IPv6).Addr().Next().String()
		all := []string{lan4, bridge4, lan6, bridge6}
		check := func(when string, localhost bool, want ...string) {
			t.Helper()
			expected := map[string]bool{}
			for _, at := range want {
				expected[at] = true
			}
			for _, at := range append([]string{"127.0.0.1"}, all...) {
				addr := netip.MustParseAddr(at)
				if got := ask(node.NS, "tcp", addr).Once(ctx).Outcome == lab.Answered; got != expected[at] {
					t.Errorf("%s: at %s: answered %v, want %v", when, at, got, expected[at])
				}
			}
			if !localhost {
				return
			}
			for at, from := range map[string]*lab.NS{lan4: l.Client, lan6: l.Client} {
				if got := ask(from, "udp", netip.MustParseAddr(at)).Once(ctx).Outcome == lab.Answered; got != expected[at] {
					t.Errorf("%s: at %s, from outside: answered %v, want %v", when, at, got, expected[at])
				}
			}
		}
		for _, tt := range []struct {
			hostIP string
			want   []string // without localhost
			local  []string // and what more with it
		}{
			{"", all, []string{"127.0.0.1"}},
			{"0.0.0.0", []string{lan4, bridge4}, []string{"127.0.0.1"}},
			{"::", []string{lan6, bridge6}, nil},
			{lan4, []string{lan4}, nil},
			{bridge6, []string{bridge6}, nil},
			{"127.0.0.1", nil, []string{"127.0.0.1"}},
			{"192.0.2.99", nil, nil},
		} {
			port := publish(hostPort)
			port.HostIP = tt.hostIP
			dir.write("pod.yaml", podObject("web", pod, port))
			for _, localhost := range []bool{false, true} {
				a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir(),
					"--iptables-localhost-nodeports=false", fmt.Sprintf("--host-ports-localhost=%v", localhost))
				a.waitSynced(ctx, 0)
				want := tt.want
				if localhost {
					want = append(want, tt.local...)
				}
				check(fmt.Sprintf("host IP %q, localhost %v", tt.hostIP, localhost), localhost, want...)
				if tt.hostIP == "192.0.2.99" {
					a.waitLog(ctx, 0, 1, "Refused a host port", "which the node does not have")
				}
				a.stop()
			}
			cleanUp(ctx, t, node)
			if got := routeLocalnet(t, node); got != "0" {
				t.Errorf("after cleanup: route_localnet is %s", got)
			}
		}
	})
}

// TestKernelHostPortLoopbackOutOfReach: a neighbour that sends packets for 127.0.0.1 to
// the node does not reach a host port on it.
func TestKernelHostPortLoopbackOutOfReach(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, dir := l.Nodes[0], newDirectory(t)
		local, everywhere := publish(hostPort), publish(hostPort+1)
		local.HostIP = "127.0.0.1"
		dir.write("pod.yaml", podObject("web", node.Pods[0], local, everywhere))
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir(), "--iptables-localhost-nodeports=false", "--host-ports-localhost")
		a.waitSynced(ctx, 0)
		if got := routeLocalnet(t, node); got != "1" {
			t.Fatalf("route_localnet is %s, want 1", got)
		}
		if _, err := node.Echo(ctx, "private", netip.MustParseAddrPort("127.0.0.1:4000")); err != nil {
			t.Fatal(err)
		}
		sendLoopbackTo(ctx, t, l.Client, node)
		for _, port := range []uint16{hostPort, hostPort + 1, 4000} {
			for _, network := range []string{"tcp", "udp"} {
				p := lab.Probe{
					From: l.Client, Network: network, Source: l.Client.Addr(model.IPv4),
					To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
				}
				if r := p.Once(ctx); r.Outcome != lab.TimedOut {
					t.Errorf("%s: %s, want no answer", p, r)
				}
			}
		}
	})
}

// TestKernelHostPortAfterServices: what is a Service's stays a Service's: a cluster IP,
// a node port and a load balancer's address that is the node's, whatever the order in
// which they came.
func TestKernelHostPortAfterServices(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, dir := l.Nodes[0], newDirectory(t)
		pod, endpoint := node.Pods[0], l.Nodes[1].Pods[0]
		dir.write("pod.yaml", podObject("web", pod, publish(httpPort), publish(30080), publish(hostPort)))
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir())
		a.waitSynced(ctx, 0)
		objs := exposed(l, endpoint)
		svc := objs[0].(*corev1.Service)
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: node.Addr(model.IPv4).String()}, {IP: node.Addr(model.IPv6).String()}}
		from := len(a.log())
		dir.write("web.yaml", objs...)
		a.waitSynced(ctx, from)
		check := func(when string) {
			t.Helper()
			for _, f := range families() {
				for _, c := range []struct {
					name string
					from *lab.NS
					to   netip.AddrPort
					want *lab.NS
				}{
					{"cluster IP", node.Pods[1], netip.AddrPortFrom(vip(f, 10), httpPort), endpoint},
					{"cluster IP, from the node", node.NS, netip.AddrPortFrom(vip(f, 10), httpPort), endpoint},
					{"node port", l.Client, netip.AddrPortFrom(node.Addr(f), 30080), endpoint},
					{"node port, from the node", node.NS, netip.AddrPortFrom(node.Addr(f), 30080), endpoint},
					{"load balancer", l.Client, netip.AddrPortFrom(node.Addr(f), httpPort), endpoint},
					{"host port", l.Client, netip.AddrPortFrom(node.Addr(f), hostPort), pod},
				} {
					p := lab.Probe{From: c.from, Network: "tcp", To: c.to}
					if r := p.Once(ctx); r.Server != c.want.Label {
						t.Errorf("%s: %s: %s: %s, want an answer of %s", when, c.name, p, r, c.want.Label)
					}
				}
			}
		}
		check("the Service came later")
		if *proxyMode == "nftables" { // where base chains have the order, not jumps
			return
		}
		from = len(a.log())
		for _, f := range families() {
			for _, chain := range []string{"PREROUTING", "OUTPUT"} {
				if err := node.Iptables(ctx, v, f, "-t", "nat", "-F", chain); err != nil {
					t.Fatal(err)
				}
			}
		}
		a.waitLog(ctx, from, 2, "Repaired", "nat/OUTPUT")
		check("the jumps were made again")
	})
}

// TestKernelHostPortMoves: a host port follows the pod that has it now: another of the
// same name, another altogether, another address of the same one; and so does a client
// that keeps its UDP socket.
func TestKernelHostPortMoves(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		first, second := node.Pods[0], node.Pods[1]
		dir := newDirectory(t)
		args := []string{"--manifests", dir.path, "--cni-conf-dir", t.TempDir()}
		a := startAgent(ctx, t, node, v, args...)
		a.waitSynced(ctx, 0)
		var clients []*udpClient
		for _, f := range families() {
			for _, from := range []*lab.NS{l.Client, l.Nodes[1].Pods[0], node.NS} {
				at := netip.AddrPortFrom(node.Addr(f), hostPort)
				conn, err := from.Dial(ctx, "udp", at.String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				clients = append(clients, &udpClient{t, from.Label + " to " + at.String(), conn})
			}
		}
		write := func(objs ...runtime.Object) {
			t.Helper()
			from := len(a.log())
			dir.write("pods.yaml", objs...)
			a.waitSynced(ctx, from)
		}
		check := func(when, want string) {
			t.Helper()
			checkAsk(t, clients, when, want)
			for _, f := range families() {
				if r := ask(l.Client, "tcp", node.Addr(f)).Once(ctx); r.Server != want {
					t.Errorf("%s, TCP: %s, want an answer of %q", when, r, want)
				}
			}
		}
		pod := func(name, uid string, at *lab.NS, minute int) *corev1.Pod {
			p := podObject(name, at, publish(hostPort))
			p.UID = types.UID(uid)
			started := metav1.NewTime(time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC))
			p.Status.StartTime = &started
			return p
		}
		check("before there is a pod", "")
		write(pod("web", "1", first, 1))
		check("a pod", first.Label)
		write(pod("web", "2", second, 2))
		check("replaced under its name", second.Label)
		write(pod("web", "2", first, 2))
		check("the same pod, with another address", first.Label)
		write(pod("web", "2", first, 2), pod("other", "3", second, 3))
		check("another that came later", first.Label)
		a.waitLog(ctx, 0, 2, "Refused a host port", "has been that of pod default/web for longer")
		write(pod("other", "3", second, 3))
		check("the first one gone", second.Label)
		write(pod("other", "3", second, 3), pod("web", "4", second, 4))
		write(pod("web", "4", first, 4))
		check("moved", first.Label)
		ended := pod("web", "4", first, 4)
		ended.Status.Phase = corev1.PodSucceeded
		write(ended)
		check("ended", "")
		write(pod("web", "5", first, 5))
		check("again", first.Label)

		a.stop()
		dir.write("pods.yaml", pod("web", "6", second, 6))
		a = startAgent(ctx, t, node, v, args...)
		a.waitSynced(ctx, 0)
		check("replaced while the agent was down", second.Label)
		a.stop()
		dir.write("pods.yaml", nodeObject(node))
		a = startAgent(ctx, t, node, v, args...)
		a.waitSynced(ctx, 0)
		check("gone while the agent was down", "")
	})
}

// TestKernelHostPortsOfOthers: where somebody else does host ports, the agent leaves
// them alone, rules and all, unless told not to; and takes over when they are gone.
func TestKernelHostPortsOfOthers(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, dir, cni := l.Nodes[0], l.Nodes[0].Pods[0], newDirectory(t), newDirectory(t)
		dir.write("pod.yaml", podObject("web", pod, publish(hostPort)))
		cni.writeText("10-flannel.conflist", `{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"},
			{"type": "portmap", "capabilities": {"portMappings": true}}]}`)
		args := []string{"--manifests", dir.path, "--cni-conf-dir", cni.path, "--iptables-sync-period", "1s", "--ipvs-sync-period", "1s"}
		check := func(when string, want bool) {
			t.Helper()
			for _, f := range families() {
				if got := ask(l.Client, "tcp", node.Addr(f)).Once(ctx).Outcome == lab.Answered; got != want {
					t.Errorf("%s, %s: answered %v, want %v", when, f, got, want)
				}
			}
		}
		a := startAgent(ctx, t, node, v, args...)
		a.waitLog(ctx, 0, 2, `part="hostPorts"`, "does=false", "portmap (10-flannel.conflist)")
		a.waitSynced(ctx, 0)
		check("portmap is configured", false)
		from := len(a.log())
		cni.writeText("10-flannel.conflist", `{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}]}`)
		a.waitLog(ctx, from, 2, `part="hostPorts"`, "does=true")
		a.waitSynced(ctx, len(a.log()))
		check("portmap is not", true)
		from = len(a.log())
		addForeign(t, node, v, foreignRule{"nat", "CNI-HOSTPORT-DNAT", "-p tcp -m tcp --dport 1 -j RETURN"})
		a.waitLog(ctx, from, 2, `part="hostPorts"`, "does=false", "chain CNI-HOSTPORT-DNAT")
		a.waitSynced(ctx, len(a.log()))
		check("portmap has rules", false)
		a.stop()
		a = startAgent(ctx, t, node, v, append(args, "--host-ports", "on")...)
		a.waitSynced(ctx, 0)
		check("told to by all means", true)
		a.stop()
		cleanUp(ctx, t, node)

		other := l.Nodes[1]
		addForeign(t, other, v,
			foreignRule{"nat", "KUBE-HP-AAAAAAAAAAAAAAAA", "-m comment --comment web_shop -j RETURN"},
			foreignRule{"nat", "KUBE-HOSTPORTS", "-p tcp -m tcp --dport 1 -j KUBE-HP-AAAAAAAAAAAAAAAA"},
			foreignRule{"nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS"})
		want := save(ctx, t, other, v)
		a = startAgent(ctx, t, other, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir(), "--hostname-override", "node-1")
		a.waitSynced(ctx, 0)
		a.waitLog(ctx, 0, 2, `part="hostPorts"`, "does=false", "chain KUBE-HOSTPORTS")
		a.stop()
		cleanUp(ctx, t, other)
		if diff := cmp.Diff(lines(want), lines(save(ctx, t, other, v))); diff != "" {
			t.Errorf("rules of others, after cleanup (-before +after):\n%s", diff)
		}
	})
}

// lines returns the lines with rules and chains that are not built in.
func lines(save string) []string {
	var out []string
	for line := range strings.Lines(save) {
		if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":") && strings.HasSuffix(line, " -\n") {
			out = append(out, line)
		}
	}
	return out
}

// createPod makes a Pod in an API server, with its status, as kubelet would.
func createPod(ctx context.Context, t *testing.T, c kubernetes.Interface, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	pods := c.CoreV1().Pods(pod.Namespace)
	made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Status = pod.Status
	if made, err = pods.UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return made
}

// TestKernelHostPortFromAPIServer: Pods of this node in an API server have their host
// ports, with the permissions of deploy/base/rbac.yaml. One that does not get its port has an
// Event, and gets it when the Pod goes that has it.
func TestKernelHostPortFromAPIServer(t *testing.T) {
	ctx, l, c, kubeconfig := clusterLab(t)
	node := l.Nodes[0]
	client := c.Clientset()
	create(ctx, t, client, nodeObject(node))
	createPermissions(ctx, t, client, filepath.Join("..", "deploy", "base", "rbac.yaml"))
	first := createPod(ctx, t, client, podObject("first", node.Pods[0], publish(hostPort)))
	elsewhere := podObject("elsewhere", node.Pods[1], publish(hostPort+1))
	elsewhere.Spec.NodeName = "node-2"
	createPod(ctx, t, client, elsewhere)
	args := []string{"--kubeconfig", impersonating(t, kubeconfig, "system:serviceaccount:kube-system:fairlead"), "--cni-conf-dir", t.TempDir()}
	a := startAgent(ctx, t, node, oneVariant(), args...)
	a.waitSynced(ctx, 0)
	check := func(when, want string) {
		t.Helper()
		for _, f := range families() {
			if r := ask(l.Client, "tcp", node.Addr(f)).Once(ctx); r.Server != want {
				t.Errorf("%s: %s, want an answer of %q", when, r, want)
			}
			other := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), hostPort+1)}
			if r := other.Once(ctx); r.Outcome != lab.Refused {
				t.Errorf("%s: host port of a Pod elsewhere: %s, want it refused", when, r)
			}
		}
	}
	check("a Pod that was there", node.Pods[0].Label)
	events := watchEvents(ctx, t, client, "FairleadRefused")
	second := podObject("second", node.Pods[1], publish(hostPort))
	later := metav1.NewTime(first.CreationTimestamp.Add(time.Minute)) // times there have seconds
	second.Status.StartTime = &later
	second = createPod(ctx, t, client, second)
	if e := nextEvent(ctx, t, events); e.Regarding.UID != second.UID || !strings.Contains(e.Note, "has been that of pod default/first for longer") {
		t.Errorf("got the Event %+v", e)
	}
	check("a second one that wants the port", node.Pods[0].Label)
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	a.waitLog(ctx, 0, 1, "Cannot read from the API server")
	check("with the API server away", node.Pods[0].Label)
	rules := save(ctx, t, node, oneVariant())
	a.stop()
	a = startAgent(ctx, t, node, oneVariant(), args...)
	a.waitLog(ctx, 0, 1, "Cannot read from the API server")
	check("after a restart with the API server away", node.Pods[0].Label)
	if diff := cmp.Diff(rules, save(ctx, t, node, oneVariant())); diff != "" {
		t.Errorf("a restart with the API server away (-before +after):\n%s", diff)
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	a.waitLog(ctx, 0, 2, "Synced", "written=0")
	check("with the API server back", node.Pods[0].Label)
	now := int64(0)
	from := len(a.log())
	if err := client.CoreV1().Pods("default").Delete(ctx, "first", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	a.waitSynced(ctx, from)
	check("the first one deleted by force", node.Pods[1].Label)
}

// TestKernelHostPortDelay: a host port works soon after the API server has the Pod's
// address, which a CNI plugin would have programmed by then. The log says how soon.
func TestKernelHostPortDelay(t *testing.T) {
	ctx, l, c, kubeconfig := clusterLab(t)
	node := l.Nodes[0]
	client := c.Clientset()
	create(ctx, t, client, nodeObject(node))
	startAgent(ctx, t, node, oneVariant(), "--kubeconfig", kubeconfig, "--cni-conf-dir", t.TempDir()).waitSynced(ctx, 0)
	const pods = 20
	var delays []time.Duration
	for i := range pods {
		port := int32(hostPort + i)
		to := netip.AddrPortFrom(node.Addr(model.IPv4), uint16(port))
		name := fmt.Sprintf("web-%d", i)
		createPod(ctx, t, client, podObject(name, node.Pods[0], publish(port)))
		known := time.Now() // the last request of createPod writes the status
		p := lab.Probe{From: l.Client, Network: "tcp", To: to}
		for r := p.Once(ctx); r.Outcome != lab.Answered; r = p.Once(ctx) {
			if time.Since(known) > 5*time.Second {
				t.Fatalf("5 s after the Pod has got its address: %s", r)
			}
		}
		delays = append(delays, time.Since(known))
		now := int64(0) // before another pod has its address
		if err := client.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(delays)
	t.Logf("from the Pod's address in the API server to an answer at its host port: p50 %s, most %s", delays[pods/2], delays[pods-1])
}
