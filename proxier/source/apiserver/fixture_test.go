// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

const nodeName = "node-1"

var (
	webKey   = model.ObjectKey{Namespace: "shop", Name: "web"}
	sliceKey = model.ObjectKey{Namespace: "shop", Name: "web-1"}
)

// run is a source at work on a fake API server, inside a synctest bubble.
type run struct {
	*sourcetest.Recorder
	source *Source
	client *fake.Clientset
	logs   *sourcetest.Log
	stop   func()
}

// startSource runs a source on the client. It returns once the source is idle. The
// source is stopped at the end of the test, at the latest.
func startSource(t *testing.T, client *fake.Clientset, metrics *source.Metrics) *run {
	t.Helper()
	return start(t, client, Config{Metrics: metrics})
}

// start is startSource, with a configuration that lacks the client and the
// node's name.
func start(t *testing.T, client *fake.Clientset, config Config) *run {
	t.Helper()
	config.Client, config.NodeName = clientOf(client), nodeName
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	logs := sourcetest.NewLog(t)
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logs.Logger()))
	r := &run{
		Recorder: sourcetest.NewRecorder(t),
		source:   s,
		client:   client,
		logs:     logs,
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r) }()
	var stopped bool
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
	t.Cleanup(r.stop)
	synctest.Wait()
	return r
}

// since returns the steps after the first n.
func (r *run) since(n int) []model.Changes { return r.Steps()[n:] }

// must fails the test where a request to the fake fails, and lets the source
// take what it did.
func must[T any](t *testing.T) func(T, error) {
	t.Helper()
	return func(_ T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
	}
}

func web(changes ...func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, change := range changes {
		change(svc)
	}
	return svc
}

func version(v string) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.ResourceVersion = v }
}

func webSlice(version string, ips ...string) *discoveryv1.EndpointSlice {
	port, name := int32(8080), "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-1", ResourceVersion: version,
			Labels: map[string]string{source.LabelServiceName: "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return s
}

func ownNodeObject(version string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, ResourceVersion: version},
		Spec:       corev1.NodeSpec{Taints: taints},
	}
}

func newFake(objects ...runtime.Object) *fake.Clientset { return fake.NewClientset(objects...) }

// clientOf returns a Client of a fake API server.
func clientOf(f *fake.Clientset) *Client {
	return &Client{
		gate:           newGate(),
		services:       func(namespace string) lister[*corev1.ServiceList] { return f.CoreV1().Services(namespace) },
		endpointSlices: f.DiscoveryV1().EndpointSlices(""),
		serviceCIDRs:   f.NetworkingV1().ServiceCIDRs(),
		pods:           f.CoreV1().Pods(""),
		nodes:          f.CoreV1().Nodes(),
		events:         func(namespace string) eventClient { return f.CoreV1().Events(namespace) },
		semantics:      f,
	}
}
