// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// virtualServers returns the virtual servers and their destinations, with how many
// connections each has had, and which weight destinations have.
func virtualServers(ctx context.Context, t *testing.T, n *lab.Node) string {
	t.Helper()
	out, err := n.Run(ctx, "ipvsadm", "-Ln", "--stats")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 3 && (strings.HasPrefix(f[0], "->") || strings.Contains("TCP UDP", f[0])) {
			fmt.Fprintln(&b, strings.Join(f[:3], " "))
		}
	}
	if !strings.Contains(b.String(), " 1\n") {
		t.Fatalf("no virtual server has counted anything:\n%s", out)
	}
	weights, err := n.Run(ctx, "ipvsadm", "-Sn")
	if err != nil {
		t.Fatal(err)
	}
	return b.String() + weights
}

// patience is how long clients wait here: the kernel that has IPVS may itself have to
// wait for a CPU for a second. What is gone refuses, or answers never.
const patience = 5 * time.Second

// talks are connections that exchange data all the time, until they are stopped.
type talks struct {
	held []*lab.Held
	wg   sync.WaitGroup
	stop context.CancelFunc

	mu     sync.Mutex
	turns  []int
	failed map[int]lab.Result // the first failure of each
}

// talk opens connections to the Service "web" from each of the clients, in both
// families, and has them exchange a line every 20 ms.
func talk(ctx context.Context, t *testing.T, each int, clients ...*lab.NS) *talks {
	t.Helper()
	c := &talks{failed: map[int]lab.Result{}}
	for _, from := range clients {
		for _, f := range families() {
			for range each {
				p := webProbe(from, f, "tcp")
				p.Timeout = patience
				h, err := p.Hold(ctx)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(h.Close)
				c.held = append(c.held, h)
			}
		}
	}
	c.turns = make([]int, len(c.held))
	ctx, c.stop = context.WithCancel(ctx)
	for i, h := range c.held {
		c.wg.Go(func() {
			for tick := time.Tick(20 * time.Millisecond); ctx.Err() == nil; <-tick {
				r := h.Ping(context.WithoutCancel(ctx))
				c.mu.Lock()
				c.turns[i]++
				if _, before := c.failed[i]; r.Outcome != lab.Answered && !before {
					c.failed[i] = r
				}
				c.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { c.stop(); c.wg.Wait() })
	return c
}

// with returns how many of the connections are with a server.
func (c *talks) with(pod *lab.NS) (n int) {
	for _, h := range c.held {
		if h.First.Server == pod.Label {
			n++
		}
	}
	return n
}

// check fails the test if a connection has failed, and forgets that.
func (c *talks) check(t *testing.T, when string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.failed {
		t.Errorf("%s: connection with %s failed after %d lines: %s", when, c.held[i].First.Server, c.turns[i], r)
	}
	clear(c.failed)
}

// failures returns how many requests of a crowd have failed, and what went wrong
// first.
func (c *crowd) failures() (made, failed int, first string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.failed, c.first
}

// check lets every client make another request, and fails the test if one has failed.
func (c *crowd) check(t *testing.T, when string) {
	t.Helper()
	c.settle()
	made, failed, first := c.failures()
	t.Logf("%s: %d requests", when, made)
	if failed > 0 {
		t.Errorf("%s: %d of %d requests failed, first %s", when, failed, made, first)
		c.mu.Lock()
		c.failed = 0
		c.mu.Unlock()
	}
}

// scheduled is the Service "web" with a scheduler.
func scheduled(scheduler string, l *lab.Lab, pods ...*lab.NS) []runtime.Object {
	objs := web(l, pods...)
	objs[0].(*corev1.Service).Annotations = map[string]string{source.AnnotationScheduler: scheduler}
	return objs
}

// TestKernelIPVSConnections: whatever becomes of the agent, of an endpoint or of the
// scheduler, connections go on, and not one request of clients that do not retry
// fails. The control is that both fail when virtual servers are gone for a moment.
func TestKernelIPVSConnections(t *testing.T) {
	l, v := ipvsLab(t)
	ctx := testContext(t)
	node, first, second := l.Nodes[0], l.Nodes[0].Pods[0], l.Nodes[1].Pods[0]
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, first, second)...)
	start := func(args ...string) *agent {
		a := startAgent(ctx, t, node, v, append([]string{"--proxy-mode", "ipvs", "--manifests", dir.path}, args...)...)
		a.waitSynced(ctx, 0)
		return a
	}
	a := start()
	clients := []*lab.NS{node.Pods[1], node.NS, l.Client}
	lines, requests := talk(ctx, t, 2, clients...), startCrowd(ctx, clients, 6, patience)
	defer requests.stop()
	if lines.with(first) == 0 || lines.with(second) == 0 {
		t.Fatalf("%d connections with one endpoint, %d with the other, want some with each", lines.with(first), lines.with(second))
	}
	write := func(objs ...runtime.Object) {
		t.Helper()
		from := len(a.log())
		dir.write("web.yaml", objs...)
		a.waitSynced(ctx, from)
	}
	check := func(when string) {
		t.Helper()
		requests.check(t, when)
		lines.check(t, when)
	}
	weight := func(pod *lab.NS, want string) {
		t.Helper()
		out, err := node.Run(ctx, "ipvsadm", "-Sn")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families() {
			if ep := netip.AddrPortFrom(pod.Addr(f), httpTarget); !strings.Contains(out, fmt.Sprintf("-r %s -m -w %s\n", ep, want)) {
				t.Errorf("%s has not weight %s:\n%s", ep, want, out)
			}
		}
	}

	a.stop()
	a = start()
	check("restart")
	a.kill()
	a = start()
	check("kill -9 and start")

	write(web(l, second)...)
	weight(first, "0")
	for _, f := range families() {
		if n := webProbe(node.Pods[1], f, "tcp").Spread(ctx, 20); n.Servers[second.Label] != 20 {
			t.Errorf("drain: new connections went to %v, want all to %s", n.Servers, second.Label)
		}
	}
	check("drain")
	a.stop()
	a = start()
	weight(first, "0")
	check("restart while draining")
	write(web(l, first, second)...)
	weight(first, "1")
	check("endpoint is back")

	write(scheduled("wlc", l, first, second)...)
	check("scheduler by annotation")
	write(web(l, first, second)...)
	check("annotation away")
	a.stop()
	a = start("--ipvs-scheduler", "mh,mh-port")
	if got, err := node.Run(ctx, "ipvsadm", "-Sn"); err != nil || !strings.Contains(got, "-s mh") {
		t.Errorf("virtual servers have not the scheduler mh: %v\n%s", err, got)
	}
	check("scheduler by flag")

	if _, err := node.Run(ctx, "ipvsadm", "-C"); err != nil {
		t.Fatal(err)
	}
	requests.settle()
	if made, failed, _ := requests.failures(); failed == 0 {
		t.Errorf("none of %d requests failed although there was no virtual server", made)
	}
	lines.mu.Lock()
	defer lines.mu.Unlock()
	if len(lines.failed) == 0 {
		t.Error("no connection failed although there was no virtual server")
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
