// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// rollout is a Service whose pods are replaced one by one while clients use it.
type rollout struct {
	t       *testing.T
	l       *lab.Lab
	a       *agent
	dir     *directory
	servers map[*lab.NS][]*lab.Echo
	pods    []*lab.NS
	// draining is the pod that terminates, nil while there is none.
	draining *lab.NS
	crowd    *crowd // who uses it
}

// write writes the Service's objects, and waits until they are in effect.
func (r *rollout) write(ctx context.Context) {
	r.t.Helper()
	pods := r.pods
	if r.draining != nil {
		pods = append([]*lab.NS{r.draining}, pods...)
	}
	objs := []runtime.Object{service("web", 10)}
	for _, s := range endpointSlices("web", r.l, pods...) {
		if r.draining != nil {
			no, yes := false, true
			s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		}
		objs = append(objs, s)
	}
	from := len(r.a.log())
	r.dir.write("web.yaml", objs...)
	r.a.waitSynced(ctx, from)
}

// replace replaces the oldest pod as a rolling update does: a new one becomes
// ready, the old one terminates while it serves on, it leaves the slices, and
// then, when it has served the connections that it has, it ends.
func (r *rollout) replace(ctx context.Context) {
	r.t.Helper()
	fresh, err := r.l.Nodes[0].AddPod(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.serve(ctx, fresh)
	old := r.pods[0]
	r.pods = append(r.pods, fresh)
	r.write(ctx)
	r.pods, r.draining = r.pods[1:], old
	r.write(ctx)
	r.draining = nil
	r.write(ctx)
	r.crowd.settle()
	for _, s := range r.servers[old] {
		if err := s.Close(); err != nil {
			r.t.Error(err)
		}
	}
}

// serve starts a pod's servers.
func (r *rollout) serve(ctx context.Context, pod *lab.NS) {
	r.t.Helper()
	for _, port := range []uint16{httpTarget, dnsTarget} {
		s, err := pod.EchoPort(ctx, port)
		if err != nil {
			r.t.Fatal(err)
		}
		r.servers[pod] = append(r.servers[pod], s)
	}
}

// crowd is clients that send requests all the time.
type crowd struct {
	made, failed int
	first        string // what went wrong first

	mu   sync.Mutex
	wg   sync.WaitGroup
	done bool
	// turns are how many requests each has made, and turned tells of every one.
	turns  []int
	turned *sync.Cond
}

// startCrowd starts clients that send requests from a pod and from the node, in
// both families. Each waits for an answer for so long, 0 for the time that a Probe waits.
func startCrowd(ctx context.Context, from []*lab.NS, clients int, patience time.Duration) *crowd {
	var probes []lab.Probe
	for i := range clients {
		p := webProbe(from[i%len(from)], families()[i/len(from)%2], "tcp")
		p.Timeout = patience
		probes = append(probes, p)
	}
	return startRequests(ctx, probes...)
}

// startRequests starts a client for each probe, which sends one request after the other.
func startRequests(ctx context.Context, probes ...lab.Probe) *crowd {
	c := &crowd{turns: make([]int, len(probes))}
	c.turned = sync.NewCond(&c.mu)
	context.AfterFunc(ctx, c.end) // of a test that has failed
	for i, p := range probes {
		c.wg.Go(func() {
			for c.count(i, p, p.Once(ctx)) {
			}
		})
	}
	return c
}

// count counts a client's request, and tells whether it is to make another.
func (c *crowd) count(i int, p lab.Probe, r lab.Result) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	c.turns[i]++
	c.turned.Broadcast()
	if r.Outcome != lab.Answered {
		if c.failed++; c.failed == 1 {
			c.first = fmt.Sprintf("%s: %s", p, r)
		}
	}
	return !c.done
}

// settle waits until every request that is under way has come to its end.
func (c *crowd) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, before := range slices.Clone(c.turns) {
		for c.turns[i] == before && !c.done {
			c.turned.Wait()
		}
	}
}

// end has all clients end after the request that is under way.
func (c *crowd) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	c.turned.Broadcast()
}

// stop ends all clients.
func (c *crowd) stop() {
	c.end()
	c.wg.Wait()
}

// startRollout brings up a Service with three pods of its own.
func startRollout(ctx context.Context, t *testing.T, l *lab.Lab, v lab.Variant) *rollout {
	t.Helper()
	r := &rollout{t: t, l: l, dir: newDirectory(t), servers: map[*lab.NS][]*lab.Echo{}}
	for range 3 {
		pod, err := l.Nodes[0].AddPod(ctx)
		if err != nil {
			t.Fatal(err)
		}
		r.serve(ctx, pod)
		r.pods = append(r.pods, pod)
	}
	r.dir.write("web.yaml", web(l)...)
	r.a = startAgent(ctx, t, l.Nodes[0], v, "--manifests", r.dir.path)
	r.a.waitSynced(ctx, 0)
	r.write(ctx)
	return r
}

// load returns how many clients there are and how long each waits, 0 for the time that
// a Probe waits: the kernel that has IPVS has one CPU, and is slow.
func load() (clients int, wait time.Duration) {
	if *proxyMode == "ipvs" {
		return 10, patience
	}
	return 50, 0
}

// TestKernelRollingUpdate: while every endpoint is replaced twice, not one of
// the requests of many clients that do not retry fails.
func TestKernelRollingUpdate(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		r := startRollout(ctx, t, l, v)
		clients, wait := load()
		r.crowd = startCrowd(ctx, []*lab.NS{l.Nodes[0].Pods[1], l.Nodes[0].NS}, clients, wait)
		for range 6 {
			r.replace(ctx)
		}
		r.crowd.stop()
		t.Logf("%d requests", r.crowd.made)
		if c := r.crowd; c.failed > 0 || c.made < 100 {
			t.Errorf("%d of %d requests failed, first %s", c.failed, c.made, c.first)
		}
	})
}

// TestKernelRollingUpdateControl: the same load sees it when the rules are
// gone for a moment.
func TestKernelRollingUpdateControl(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		r := startRollout(ctx, t, l, v)
		clients, wait := load()
		r.crowd = startCrowd(ctx, []*lab.NS{l.Nodes[0].Pods[1], l.Nodes[0].NS}, clients, wait)
		r.replace(ctx)
		for _, f := range families() {
			var err error
			switch *proxyMode {
			case "ipvs":
				_, err = l.Nodes[0].Run(ctx, "ipvsadm", "-C")
			case "nftables":
				_, err = l.Nodes[0].Run(ctx, "nft", "flush", "chain", map[model.Family]string{model.IPv4: "ip", model.IPv6: "ip6"}[f], "fairlead", "translate")
			default:
				err = l.Nodes[0].Iptables(ctx, v, f, "-t", "nat", "-F", "KUBE-SERVICES")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		r.replace(ctx)
		r.crowd.stop()
		if r.crowd.failed == 0 {
			t.Errorf("none of %d requests failed although what serves them was removed", r.crowd.made)
		}
	})
}
