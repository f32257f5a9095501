// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"net/url"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"fairlead/proxier/source"
)

// What the API server is asked for. It is what kube-proxy v1.36 asks for, so
// the server's watch caches serve both alike. An EndpointSlice carries its
// Service's labels, but one of a Service for another proxy is not left out
// here: its Service is, and nothing refers to it then.
const (
	serviceLabels  = "!" + source.LabelServiceProxyName
	serviceFields  = "spec.clusterIP!=None"
	endpointLabels = "!" + source.LabelHeadless
)

// lister lists and watches one kind of object.
type lister[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// outcomes is told how the requests for a resource go.
type outcomes interface {
	// failed takes the error of a request.
	failed(ctx context.Context, resource string, err error)
	// watching takes note that a watch stands.
	watching(ctx context.Context, resource string)
}

// listWatch returns the requests of an informer for the selected objects of
// one resource. The outcome of each goes to the link.
func listWatch[L runtime.Object](client *Client, link outcomes, resource string, from lister[L], selector metav1.ListOptions) cache.ListerWatcher {
	selected := func(opts metav1.ListOptions) metav1.ListOptions {
		opts.LabelSelector = selector.LabelSelector
		opts.FieldSelector = selector.FieldSelector
		return opts
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			return pass(ctx, client.gate, link, resource, func() (L, error) { return from.List(ctx, selected(opts)) })
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			w, err := pass(ctx, client.gate, link, resource, func() (watch.Interface, error) { return orBroken(from.Watch(ctx, selected(opts))) })
			if err == nil {
				link.watching(ctx, resource)
			}
			return w, err
		},
	}
	return cache.ToListWatcherWithWatchListSemantics(lw, client.semantics)
}

// errBroken is what client-go makes a watch of that says nothing.
var errBroken = &url.Error{Op: "Watch", Err: errors.New("the connection broke, or there was no answer in time")}

// orBroken returns the result of a request to watch, and errBroken for a watch of
// client-go's that stands for a failure.
func orBroken(w watch.Interface, err error) (watch.Interface, error) {
	if err == nil && reflect.TypeOf(w) == reflect.TypeOf(watch.NewEmptyWatch()) {
		return nil, errBroken
	}
	return w, err
}

// pass makes a request through the gate and tells the link of failures.
func pass[T any](ctx context.Context, gate *gate, link outcomes, resource string, request func() (T, error)) (result T, _ error) {
	err := gate.pass(ctx, func() (err error) {
		result, err = request()
		return err
	}, func(err error) { link.failed(ctx, resource, err) })
	if err != nil {
		var none T
		return none, err
	}
	return result, nil
}

func services(client *Client, link *link) cache.ListerWatcher {
	return listWatch(client, link, "services", client.services(metav1.NamespaceAll),
		metav1.ListOptions{LabelSelector: serviceLabels, FieldSelector: serviceFields})
}

func endpointSlices(client *Client, link *link) cache.ListerWatcher {
	return listWatch(client, link, "endpointslices", client.endpointSlices,
		metav1.ListOptions{LabelSelector: endpointLabels})
}

func serviceCIDRs(client *Client, link *optional) cache.ListerWatcher {
	return listWatch(client, link, "servicecidrs", client.serviceCIDRs, metav1.ListOptions{})
}

// pods are those of one node.
func pods(client *Client, link *optional, nodeName string) cache.ListerWatcher {
	return listWatch(client, link, "pods", client.pods,
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", nodeName).String()})
}

func node(client *Client, link *link, name string) cache.ListerWatcher {
	return listWatch(client, link, "nodes", client.nodes,
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()})
}
