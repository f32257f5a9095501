// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// stream is what an API server has of one kind, which it sends as it is made.
type stream[L kruntime.Object] struct {
	n   int
	at  func(i int) kruntime.Object
	end kruntime.Object
}

func (s stream[L]) List(context.Context, metav1.ListOptions) (l L, err error) {
	return l, fmt.Errorf("a list of %T is asked for, where it could be streamed", s.end)
}

// Watch sends all objects, and the bookmark that says that these were all.
func (s stream[L]) Watch(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
	events := make(chan watch.Event)
	w := watch.NewProxyWatcher(events)
	go func() {
		send := func(e watch.Event) {
			select {
			case events <- e:
			case <-w.StopChan():
			case <-ctx.Done():
			}
		}
		for i := range s.n {
			send(watch.Event{Type: watch.Added, Object: s.at(i)})
		}
		send(watch.Event{Type: watch.Bookmark, Object: s.end})
	}()
	return w, nil
}

// cluster is a Client of an API server with n Services that have ten endpoints
// each, and none of a zone's hints, so that this node goes to all of them.
func cluster(n int) *Client {
	end := metav1.ObjectMeta{ResourceVersion: "9", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}
	return &Client{
		gate: newGate(),
		services: func(string) lister[*corev1.ServiceList] {
			return stream[*corev1.ServiceList]{n, clusterService, &corev1.Service{ObjectMeta: end}}
		},
		endpointSlices: stream[*discoveryv1.EndpointSliceList]{n, clusterSlice, &discoveryv1.EndpointSlice{ObjectMeta: end}},
		serviceCIDRs:   stream[*networkingv1.ServiceCIDRList]{end: &networkingv1.ServiceCIDR{ObjectMeta: end}},
		nodes:          stream[*corev1.NodeList]{end: &corev1.Node{ObjectMeta: end}},
	}
}

// clusterMeta is made anew for each object, as decoding does.
func clusterMeta(i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: fmt.Sprint("team-", i%100), Name: fmt.Sprint("backend-", i), ResourceVersion: fmt.Sprint(100_000 + i),
		Labels: map[string]string{source.LabelServiceName: fmt.Sprint("backend-", i), "app.kubernetes.io/managed-by": "Helm"},
		UID:    types.UID(fmt.Sprintf("%036d", i)),
	}
}

func clusterService(i int) kruntime.Object {
	return &corev1.Service{ObjectMeta: clusterMeta(i), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: fmt.Sprintf("10.96.%d.%d", i>>8, i&255),
		Ports: []corev1.ServicePort{{Name: fmt.Sprint("http"), Protocol: corev1.ProtocolTCP, Port: 80}},
	}}
}

func clusterSlice(i int) kruntime.Object {
	name, port := fmt.Sprint("http"), int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: clusterMeta(i), AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for e := range 10 {
		node := fmt.Sprint("node-", (i+e)%500)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 100+e, i>>8, i&255)}, NodeName: &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprint("backend-", i, "-", e)},
		})
	}
	return s
}

// layers are how far objects are taken.
type layers int

const (
	sourceOnly layers = iota
	withTracker
	withSnapshot
)

func (l layers) String() string { return [...]string{"source", "tracker", "snapshot"}[l] }

// listedSink hands on to a sink, if there is one, until all is listed.
type listedSink struct {
	source.Sink
	listed chan struct{}
}

func (s *listedSink) Update(c model.Changes) {
	if s.Sink != nil {
		s.Sink.Update(c)
	}
	if c.Status != nil {
		close(s.listed)
	}
}

// quiet is a Mode and a Health that do nothing but tell of the first sync.
type quiet struct{ synced chan struct{} }

func (q quiet) Sync(context.Context, proxier.Desired) (proxier.Report, error) {
	close(q.synced)
	return proxier.Report{}, nil
}
func (quiet) Queued(model.Family, time.Time) {}
func (quiet) Synced(model.Family, time.Time) {}
func (quiet) SetNodeEligible(bool)           {}

// footprint returns how much heap a cluster of n Services takes once it is
// listed, in bytes.
func footprint(t testing.TB, n int, l layers) uint64 {
	t.Helper()
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), klog.Logger{}))
	defer cancel()
	src, err := New(Config{Client: cluster(n), NodeName: nodeName})
	if err != nil {
		t.Fatal(err)
	}
	before := inUse()
	sink := &listedSink{listed: make(chan struct{})}
	q := quiet{make(chan struct{})}
	metrics := proxier.NewMetrics(prometheus.NewRegistry(), model.Families())
	tracker := proxier.NewTracker(proxier.TrackerConfig{Families: []model.Family{model.IPv4}, Health: q, Metrics: metrics})
	if l >= withTracker {
		sink.Sink = tracker
	}
	loop := proxier.NewLoop(proxier.LoopConfig{
		Family: model.IPv4, Mode: q, Tracker: tracker, Health: q, Metrics: metrics, NodeName: nodeName, SyncPeriod: time.Hour,
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return src.Run(ctx, sink) })
	<-sink.listed
	if l >= withSnapshot {
		g.Go(func() error { return loop.Run(ctx) })
		<-q.synced
	}
	used := inUse() - before
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(tracker)
	return used
}

// inUse returns how much of the heap is in use.
func inUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first has found out to be dead in caches
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestFootprint: what is kept of a Service and its ten endpoints has bounds. A
// change that needs more must be worth it: there are clusters of 10,000 Services.
func TestFootprint(t *testing.T) {
	const services = 2000
	for l, most := range map[layers]uint64{sourceOnly: 1700, withTracker: 2200, withSnapshot: 3300} {
		t.Run(l.String(), func(t *testing.T) {
			if got := footprint(t, services, l) / services; got > most || got < most/2 {
				t.Errorf("got %d bytes for a Service and its endpoints, want at most %d, and not less than half of that", got, most)
			}
		})
	}
}

// BenchmarkFirstList lists 10,000 Services of ten endpoints, and tells what stays
// in use.
func BenchmarkFirstList(b *testing.B) {
	for l := range withSnapshot + 1 {
		b.Run(l.String(), func(b *testing.B) {
			b.ReportAllocs()
			var used uint64
			for b.Loop() {
				used = footprint(b, 10_000, l)
			}
			b.ReportMetric(float64(used)/(1<<20), "MB-in-use")
		})
	}
}
