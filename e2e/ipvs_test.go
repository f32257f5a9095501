// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/source"
)

// ipvsLab is a lab in a kernel that has IPVS. It skips where there is none.
func ipvsLab(t *testing.T) (*lab.Lab, lab.Variant) {
	t.Helper()
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		t.Skipf("no IPVS in this kernel: %v", err)
	}
	return newLab(t), lab.Legacy // which that kernel has NAT for
}

// virtualServers returns the virtual servers and their destinations, with weights and
// with the connections that each has: one that is made anew has none.
func virtualServers(ctx context.Context, t *testing.T, n *lab.Node) string {
	t.Helper()
	out, err := n.Run(ctx, "ipvsadm", "-Ln")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 6 && f[0] == "->" && f[4] == "1" {
			return out
		}
	}
	t.Fatalf("no destination has a connection:\n%s", out)
	return ""
}

// scheduled is the Service "web" with a scheduler.
func scheduled(scheduler string, l *lab.Lab, pods ...*lab.NS) []runtime.Object {
	objs := web(l, pods...)
	objs[0].(*corev1.Service).Annotations = map[string]string{source.AnnotationScheduler: scheduler}
	return objs
}

// used is a Service with two endpoints, by IPVS, that clients use all the time.
type used struct {
	ctx           context.Context
	t             *testing.T
	l             *lab.Lab
	v             lab.Variant
	node          *lab.Node
	first, second *lab.NS
	dir           *directory
	a             *agent
	lines         *talks
	requests      *crowd
}

// restart starts the agent, after it was stopped or killed.
func (u *used) restart(args ...string) {
	u.t.Helper()
	u.a = startAgent(u.ctx, u.t, u.node, u.v, append([]string{"--proxy-mode", "ipvs", "--manifests", u.dir.path}, args...)...)
	u.a.waitSynced(u.ctx, 0)
}

// write changes the Service.
func (u *used) write(objs ...runtime.Object) {
	u.t.Helper()
	from := len(u.a.log())
	u.dir.write("web.yaml", objs...)
	u.a.waitSynced(u.ctx, from)
}

// check fails the test if a request or a connection has failed.
func (u *used) check(when string) {
	u.t.Helper()
	u.requests.check(u.t, when)
	u.lines.check(u.t, when)
}

// weight checks the weight of an endpoint.
func (u *used) weight(pod *lab.NS, want string) {
	u.t.Helper()
	out := u.run("ipvsadm", "-Sn")
	for _, f := range families() {
		if ep := netip.AddrPortFrom(pod.Addr(f), httpTarget); !strings.Contains(out, fmt.Sprintf("-r %s -m -w %s\n", ep, want)) {
			u.t.Errorf("%s has not weight %s:\n%s", ep, want, out)
		}
	}
}

func (u *used) run(cmd ...string) string {
	u.t.Helper()
	out, err := u.node.Run(u.ctx, cmd[0], cmd[1:]...)
	if err != nil {
		u.t.Fatal(err)
	}
	return out
}

// TestKernelIPVSConnections: whatever becomes of the agent, of an endpoint or of the
// scheduler, connections go on, and not one request of clients that do not retry
// fails. The control is that both fail when virtual servers are gone for a moment.
func TestKernelIPVSConnections(t *testing.T) {
	l, v := ipvsLab(t)
	u := &used{
		ctx: testContext(t), t: t, l: l, v: v, node: l.Nodes[0],
		first: l.Nodes[0].Pods[0], second: l.Nodes[1].Pods[0], dir: newDirectory(t),
	}
	u.dir.write("web.yaml", web(l, u.first, u.second)...)
	u.restart()
	clients := []*lab.NS{u.node.Pods[1], u.node.NS, l.Client}
	u.lines, u.requests = talk(u.ctx, t, 2, clients...), startCrowd(u.ctx, clients, 6, patience)
	defer u.requests.stop()
	if a, b := u.lines.with(u.first), u.lines.with(u.second); a == 0 || b == 0 {
		t.Fatalf("%d connections with one endpoint, %d with the other, want some with each", a, b)
	}
	u.a.stop()
	u.restart()
	u.check("restart")
	u.a.kill()
	u.restart()
	u.check("kill -9 and start")
	u.drain()
	u.schedule()

	u.run("ipvsadm", "-C")
	u.requests.settle()
	if made, failed, _ := u.requests.failures(); failed == 0 {
		t.Errorf("none of %d requests failed although there was no virtual server", made)
	}
	u.lines.mu.Lock()
	defer u.lines.mu.Unlock()
	if len(u.lines.failed) == 0 {
		t.Error("no connection failed although there was no virtual server")
	}
}

// drain takes an endpoint away, and gives it back after a restart.
func (u *used) drain() {
	u.write(web(u.l, u.second)...)
	u.weight(u.first, "0")
	for _, f := range families() {
		if n := webProbe(u.node.Pods[1], f, "tcp").Spread(u.ctx, 20); n.Servers[u.second.Label] != 20 {
			u.t.Errorf("drain: new connections went to %v, want all to %s", n.Servers, u.second.Label)
		}
	}
	u.check("drain")
	u.a.stop()
	u.restart()
	u.weight(u.first, "0")
	u.check("restart while draining")
	u.write(web(u.l, u.first, u.second)...)
	u.weight(u.first, "1")
	u.check("endpoint is back")
}

// schedule changes the scheduler, of the Service and of all, and the other settings of
// IPVS.
func (u *used) schedule() {
	u.write(scheduled("wlc", u.l, u.first, u.second)...)
	u.check("scheduler by annotation")
	u.write(web(u.l, u.first, u.second)...)
	u.check("annotation away")
	u.a.stop()
	u.restart("--ipvs-scheduler", "mh,mh-port", "--ipvs-tcp-timeout", "11m", "--ipvs-tcpfin-timeout", "50s", "--ipvs-udp-timeout", "70s", "--ipvs-strict-arp")
	u.check("scheduler by flag")
	for _, is := range []struct {
		want string
		cmd  []string
	}{
		{"-s mh -b mh-port", []string{"ipvsadm", "-Sn"}},
		{"660 50 70", []string{"ipvsadm", "-L", "--timeout"}},
		{"1\n", []string{"cat", "/proc/sys/net/ipv4/conf/all/arp_ignore"}},
	} {
		if got := u.run(is.cmd...); !strings.Contains(got, is.want) {
			u.t.Errorf("%q prints no %q:\n%s", is.cmd, is.want, got)
		}
	}
}

// TestKernelIPVSModeSwitch: from one mode to the other and back, not one request of
// clients that do not retry fails, and connections that the first mode has begun go
// on in the other.
func TestKernelIPVSModeSwitch(t *testing.T) {
	l, v := ipvsLab(t)
	ctx := testContext(t)
	node := l.Nodes[0]
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, node.Pods[0], l.Nodes[1].Pods[0])...)
	clients := []*lab.NS{node.Pods[1], node.NS, l.Client}
	var a *agent
	var requests *crowd
	var lines []*talks
	type flow struct {
		held *lab.Held
		to   lab.Probe
	}
	var flows []flow
	for _, mode := range []string{"iptables", "ipvs", "iptables", "ipvs"} {
		if a != nil {
			a.stop()
		}
		a = startAgent(ctx, t, node, v, "--proxy-mode", mode, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		if requests == nil {
			requests = startCrowd(ctx, clients, 6, patience)
			defer requests.stop()
		}
		requests.check(t, "to "+mode)
		for i, c := range lines {
			c.check(t, fmt.Sprintf("connections of turn %d, to %s", i+1, mode))
		}
		for i, u := range flows {
			if r := u.held.Ping(ctx); r.Outcome != lab.Answered {
				t.Errorf("UDP flow %d to %s, to %s: %s", i+1, u.to, mode, r)
			}
		}
		lines = append(lines, talk(ctx, t, 1, clients...))
		for _, from := range clients {
			for _, f := range families() {
				p := webProbe(from, f, "udp")
				p.Timeout = patience
				h, err := p.Hold(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer h.Close()
				flows = append(flows, flow{h, p})
			}
		}
	}
	if !slices.ContainsFunc(a.log(), func(line string) bool { return strings.Contains(line, `proxyMode="ipvs"`) }) {
		t.Error("the last mode is not IPVS")
	}
}
