// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/e2e/lab"
)

var away = flag.Duration("away", 2*time.Minute, "how long the API server is away")

// watched are the resources that an agent watches.
var watched = []string{"endpointslices", "nodes", "pods", "servicecidrs", "services"}

// TestKernelAPIServerAway: while the API server is away for minutes, traffic goes on and
// health says what is stale, but not that the agent is ill. Once it is back, a change takes
// effect on all nodes within seconds, and agents ask for no more than what they need.
func TestKernelAPIServerAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute+*away)
	defer cancel()
	f := newFixture(ctx, t)
	f.startAll(ctx)
	f.deploy(ctx, "")
	svc := f.web(ctx)
	pods := f.webPods(ctx)
	f.awaitAll(ctx, svc)
	f.awaitStale(ctx, nil)

	clients := load{from: f.lab.Client}
	asking, end := context.WithCancel(ctx)
	defer clients.done.Wait()
	defer end()
	clients.startAll(asking, addresses(f.lab.Nodes[0], svc))
	gone := time.Now()
	if err := f.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	f.awaitStale(ctx, watched)
	t.Logf("health says what is stale after %s", since(gone))
	clients.check(ctx, t, "with the API server away", gone, *away)
	f.awaitStale(ctx, watched)

	restarted := time.Now()
	if err := f.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	late := f.createLate(ctx, pods[0])
	for _, n := range f.lab.Nodes {
		awaitPods(ctx, t, n, late, 1)
	}
	took := time.Since(back)
	t.Logf("the API server was ready after %s, and a change took effect on all nodes %s later", back.Sub(restarted).Round(time.Millisecond), took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("it took %s, want 5 s at most", took)
	}
	f.awaitStale(ctx, nil)
	clients.check(ctx, t, "with the API server back", restarted, 30*time.Second)
	f.checkReturn(restarted)
}

// awaitStale waits until all agents say that just these resources are stale, and that they
// are healthy.
func (f *fixture) awaitStale(ctx context.Context, want []string) {
	f.t.Helper()
	for _, n := range f.lab.Nodes {
		await(ctx, f.t, fmt.Sprintf("health of %s that tells %q", n.Label, want), func() error {
			got, err := stale(ctx, n)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("it tells %q", got)
			}
			return err
		})
	}
}

// stale returns what a healthy agent says that it cannot read.
func stale(ctx context.Context, n *lab.Node) ([]string, error) {
	body, err := get(ctx, n, "http://127.0.0.1:10256/healthz")
	if err != nil {
		return nil, err
	}
	var health struct{ Stale map[string]time.Time }
	if err := json.Unmarshal([]byte(body), &health); err != nil {
		return nil, err
	}
	ready, err := get(ctx, n, "http://127.0.0.1:10256/readyz")
	if got := strings.Contains(ready, "cannot read"); err == nil && got != (len(health.Stale) > 0) {
		err = errors.New("readyz says " + ready)
	}
	return slices.Sorted(maps.Keys(health.Stale)), err
}

// createLate creates a Service of one pod, with endpoints that need no controller.
func (f *fixture) createLate(ctx context.Context, pod string) *corev1.Service {
	f.t.Helper()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	svc, err := f.Clientset().CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	name, port := "", int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "late", Labels: map[string]string{discoveryv1.LabelServiceName: "late"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{pod}}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	if _, err := f.Clientset().DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		f.t.Fatal(err)
	}
	return svc
}

// checkReturn checks what agents have asked the API server since it started: of each
// resource all objects once at most, and little more.
func (f *fixture) checkReturn(started time.Time) {
	f.t.Helper()
	requests, err := f.audit.Requests()
	if err != nil {
		f.t.Fatal(err)
	}
	lists, all := map[string]int{}, map[string]int{}
	for _, r := range requests {
		if r.User != agentUser || r.Received.Before(started) {
			continue
		}
		f.t.Logf("%s after %s", r, r.Received.Sub(started).Round(time.Millisecond))
		key := r.Source + " " + r.Resource
		if all[key]++; r.Verb == "list" || strings.Contains(r.URI, "sendInitialEvents=true") {
			lists[key]++
		}
	}
	if want := len(watched) * len(f.lab.Nodes); len(all) < want {
		f.t.Errorf("agents have asked for %v, want %d", all, want)
	}
	for key, n := range all {
		if n > 4 || lists[key] > 1 {
			f.t.Errorf("%s: %d requests, %d of them for all objects, want 4 and 1 at most", key, n, lists[key])
		}
	}
}
