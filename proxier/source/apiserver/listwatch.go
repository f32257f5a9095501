// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"

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
			list, err := from.List(ctx, selected(opts))
			if err != nil {
				link.failed(ctx, resource, err)
				return nil, err
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			w, err := from.Watch(ctx, selected(opts))
			if err != nil {
				link.failed(ctx, resource, err)
				return nil, err
			}
			link.watching(ctx, resource)
			return w, nil
		},
	}
	return cache.ToListWatcherWithWatchListSemantics(lw, client.semantics)
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
