// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// feed is where a proxy gets its objects.
type feed interface {
	// set replaces all objects. Of each kind, they arrive in that order.
	set(ctx context.Context, objs []runtime.Object) error
	// close ends it. Nothing uses it any more.
	close() error
}

// directory feeds by a directory of manifests; its value is the name.
type directory string

func newDirectory() (directory, error) {
	dir, err := os.MkdirTemp("", "fairlead-suite-")
	return directory(dir), err
}

func (d directory) set(_ context.Context, objs []runtime.Object) error {
	var text []byte
	for _, o := range objs {
		doc, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		text = append(append(text, "---\n"...), doc...)
	}
	tmp := filepath.Join(string(d), ".all.tmp")
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(string(d), "all.yaml"))
}

func (d directory) close() error { return os.RemoveAll(string(d)) }

// apiServer feeds by a real API server, which also checks the objects.
type apiServer struct {
	*cluster.Cluster
	// has are the objects that it was given, as text, by kind and name.
	has map[string]stored
}

// stored is an object in the API server, and its text.
type stored struct {
	object runtime.Object
	text   []byte
}

// newAPIServer runs an API server on the lab's client, which the nodes reach.
func newAPIServer(ctx context.Context, l *lab.Lab) (*apiServer, error) {
	c, err := cluster.Start(ctx, cluster.Config{
		Address:      l.Client.Addr(model.IPv4),
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		Prefix:       []string{"nsenter", "--net=" + l.Client.Path()},
		Dial:         l.Client.Dial,
	})
	if err != nil {
		return nil, err
	}
	return &apiServer{Cluster: c, has: map[string]stored{}}, nil
}

func (a *apiServer) close() error { return a.Stop() }

// set deletes what is gone or has changed, and then creates what is new or has
// changed: some changes an API server does not accept of an existing object.
func (a *apiServer) set(ctx context.Context, objs []runtime.Object) error {
	want := map[string]stored{}
	for _, o := range objs {
		text, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		want[nameOf(o)] = stored{o, text}
	}
	for name, old := range a.has {
		if bytes.Equal(old.text, want[name].text) {
			continue
		}
		if err := a.remove(ctx, old.object); err != nil {
			return fmt.Errorf("delete %s: %w", name, err)
		}
		delete(a.has, name)
	}
	for _, o := range objs {
		name := nameOf(o)
		if _, ok := a.has[name]; ok {
			continue
		}
		if err := create(ctx, a.Clientset(), o); err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
		a.has[name] = want[name]
	}
	return nil
}

func nameOf(o runtime.Object) string {
	return o.GetObjectKind().GroupVersionKind().Kind + " " + o.(metav1.Object).GetName()
}

func (a *apiServer) remove(ctx context.Context, o runtime.Object) error {
	name, opts := o.(metav1.Object).GetName(), metav1.DeleteOptions{}
	switch o.(type) {
	case *corev1.Service:
		return a.Clientset().CoreV1().Services(namespace).Delete(ctx, name, opts)
	case *discoveryv1.EndpointSlice:
		return a.Clientset().DiscoveryV1().EndpointSlices(namespace).Delete(ctx, name, opts)
	default:
		return a.Clientset().CoreV1().Nodes().Delete(ctx, name, opts)
	}
}

func create(ctx context.Context, c kubernetes.Interface, o runtime.Object) error {
	var err error
	switch o := o.(type) {
	case *corev1.Service:
		return createService(ctx, c, o)
	case *discoveryv1.EndpointSlice:
		_, err = c.DiscoveryV1().EndpointSlices(namespace).Create(ctx, o, metav1.CreateOptions{})
	case *corev1.Node:
		_, err = c.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
	}
	return err
}

// createService also gives the Service its status, which a create leaves out.
func createService(ctx context.Context, c kubernetes.Interface, o *corev1.Service) error {
	made, err := c.CoreV1().Services(namespace).Create(ctx, o, metav1.CreateOptions{})
	if err != nil || len(o.Status.LoadBalancer.Ingress) == 0 {
		return err
	}
	made.Status = o.Status
	_, err = c.CoreV1().Services(namespace).UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}
