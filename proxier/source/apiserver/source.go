// SPDX-License-Identifier: Apache-2.0

// Package apiserver is the source that reads from the Kubernetes API server,
// with client-go's informers.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// Config says what to read, and from where.
type Config struct {
	// Client talks to the API server; see NewClient.
	Client *Client
	// NodeName is the name of the Node that the agent runs on.
	NodeName string
	// Pods is set where host ports of the node's Pods are wanted.
	Pods bool
	// Policy says which external addresses Services may have.
	Policy source.Policy
	// Metrics may be nil.
	Metrics *source.Metrics
}

// Source reads Services, EndpointSlices, ServiceCIDRs, the agent's own Node and the
// Pods on it from the API server, and writes Events on those of which it refuses something.
// It uses little memory: the objects are stored as the model has them, and once.
type Source struct {
	config   Config
	reporter *source.Reporter
	link     *link
	// events is set while Run runs.
	events atomic.Pointer[eventWriter]
}

var _ source.Source = (*Source)(nil)

// New returns a Source. It connects to nothing before Run.
func New(config Config) (*Source, error) {
	switch {
	case config.Client == nil:
		return nil, errors.New("make API server source: no client")
	case config.NodeName == "":
		return nil, errors.New("make API server source: no node name")
	}
	return &Source{
		config:   config,
		reporter: source.NewReporter(config.Metrics),
		link:     newLink(config.Client.server, time.Now),
	}, nil
}

// Run delivers objects to sink until ctx is done and returns nil. While the
// API server cannot be read it retries, and what was delivered stays.
//
// The status turns to listed and complete once every Service and EndpointSlice
// of the first list has been delivered, and the ServiceCIDRs and the Node, unless
// that takes long, or the API server has no ServiceCIDRs or does not show them. If
// the Pods take long, the status is listed, and complete only once they are
// delivered, too, or the API server has said that it does not show them.
// That there is no Node is delivered once the Node has been asked for and was
// not there.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, klog.FromContext(ctx).WithName("apiserver")))
	defer cancel()
	events := startEvents(ctx, s.config.Client, s.config.NodeName)
	s.events.Store(events)
	defer s.events.Store(nil)
	defer events.stop()
	own := &ownNode{sink: sink}
	services, err := s.services(ctx, events, sink)
	if err != nil {
		return fmt.Errorf("make informer for services: %w", err)
	}
	slices, err := s.endpointSlices(ctx, events, sink)
	if err != nil {
		return fmt.Errorf("make informer for endpointslices: %w", err)
	}
	ranges := newOptional(s.link, "Cannot read ServiceCIDRs, external addresses are kept out of --service-cidrs and of those known so far alone; "+
		"let the agent list and watch servicecidrs of networking.k8s.io")
	ranges.grant() // nothing is removed for want of them
	cidrs, err := s.serviceCIDRs(ctx, events, ranges, sink)
	if err != nil {
		return fmt.Errorf("make informer for servicecidrs: %w", err)
	}
	node, err := s.node(ctx, events, own)
	if err != nil {
		return fmt.Errorf("make informer for nodes: %w", err)
	}

	shown := newOptional(s.link, "Cannot read this node's Pods, they have no host ports; let the agent list and watch pods, or start it with --host-ports=off")
	pods, err := s.pods(ctx, events, shown, sink)
	if err != nil {
		return fmt.Errorf("make informer for pods: %w", err)
	}
	informers := []informer{services, slices, cidrs, node}
	if s.config.Pods {
		informers = append(informers, pods)
	}

	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range informers {
		g.Go(func() error { i.RunWithContext(ctx); return nil })
	}
	g.Go(func() error {
		if cache.WaitFor(ctx, "", services.delivered, slices.delivered) {
			shown.grant()
			limited, cancel := context.WithTimeout(ctx, restPatience)
			defer cancel()
			awaitRest(limited, ctx, node, cidrs, ranges)
			complete := !s.config.Pods || delivered(limited, pods, shown)
			sink.Update(model.Changes{Status: &model.SourceStatus{Listed: true, Complete: complete}})
			klog.FromContext(ctx).Info("Listed Services and EndpointSlices")
			if !complete && delivered(ctx, pods, shown) {
				sink.Update(model.Changes{Status: &model.SourceStatus{Listed: true, Complete: true}})
			}
		}
		return nil
	})
	g.Go(func() error {
		if cache.WaitFor(ctx, "", node.delivered) {
			own.listed()
		}
		return nil
	})
	return waitAtMost(parent, stopPatience, g.Wait)
}

// Stale returns the resources that cannot be read from the API server at the moment, and
// since when. What was delivered of them stays.
func (s *Source) Stale() map[string]time.Time { return s.link.stale() }

// stopPatience is how long Run waits for the informers to end. One whose first
// list has failed is in client-go's backoff, and hears of the end only after it.
const stopPatience = 200 * time.Millisecond

// waitAtMost returns what wait does, or nil if that takes longer than d after
// ctx is done.
func waitAtMost(ctx context.Context, d time.Duration, wait func() error) error {
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(d):
		return nil
	}
}

// restPatience is how long the first list waits for the Node and ServiceCIDRs.
const restPatience = 10 * time.Second

// awaitRest waits for the Node, or for the news that there is none, and for the
// ServiceCIDRs, since rules depend on both: written without, they would be
// written again with them. What cannot be read must not keep the rest from being
// programmed.
func awaitRest(limited, ctx context.Context, node, cidrs informer, ranges *optional) {
	if !cache.WaitFor(limited, "", node.delivered) && ctx.Err() == nil {
		klog.FromContext(ctx).Error(nil, "Cannot read the Node, going on without its zone, addresses and pod CIDRs", "after", restPatience)
	}
	delivered(limited, cidrs, ranges) // the link tells if not
}

// delivered waits until the first list of what is optional has been delivered, or
// the API server has said that there is none to read. It returns false if ctx ends
// before.
func delivered(ctx context.Context, i informer, link *optional) bool {
	select {
	case <-i.delivered.Done():
	case <-link.absent:
	case <-ctx.Done():
		return false
	}
	return true
}

func (s *Source) services(ctx context.Context, events *eventWriter, sink source.Sink) (informer, error) {
	deliver := func(key model.ObjectKey, v *model.Service) {
		sink.Update(model.Changes{Services: map[model.ObjectKey]*model.Service{key: v}})
	}
	return newInformer(&corev1.Service{}, services(s.config.Client, s.link),
		transform(func(svc *corev1.Service) (*model.Service, bool, []source.Refusal) {
			return source.TranslateService(svc, s.config.Policy)
		}),
		handler(ctx, s.teller(events, source.KindService, "v1"), source.SameService, deliver))
}

func (s *Source) endpointSlices(ctx context.Context, events *eventWriter, sink source.Sink) (informer, error) {
	deliver := func(key model.ObjectKey, v *model.EndpointSlice) {
		sink.Update(model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{key: v}})
	}
	return newInformer(&discoveryv1.EndpointSlice{}, endpointSlices(s.config.Client, s.link),
		transform(source.TranslateEndpointSlice),
		handler(ctx, s.teller(events, source.KindEndpointSlice, "discovery.k8s.io/v1"), source.SameEndpointSlice, deliver))
}

func (s *Source) serviceCIDRs(ctx context.Context, events *eventWriter, link *optional, sink source.Sink) (informer, error) {
	deliver := func(key model.ObjectKey, v *model.ServiceCIDR) {
		sink.Update(model.Changes{ServiceCIDRs: map[model.ObjectKey]*model.ServiceCIDR{key: v}})
	}
	return newInformer(&networkingv1.ServiceCIDR{}, serviceCIDRs(s.config.Client, link),
		transform(source.TranslateServiceCIDR),
		handler(ctx, s.teller(events, source.KindServiceCIDR, "networking.k8s.io/v1"), source.SameServiceCIDR, deliver))
}

func (s *Source) pods(ctx context.Context, events *eventWriter, link *optional, sink source.Sink) (informer, error) {
	deliver := func(key model.ObjectKey, v *model.Pod) {
		sink.Update(model.Changes{Pods: map[model.ObjectKey]*model.Pod{key: v}})
	}
	return newInformer(&corev1.Pod{}, pods(s.config.Client, link, s.config.NodeName),
		transform(func(pod *corev1.Pod) (*model.Pod, bool, []source.Refusal) {
			return source.TranslatePod(pod, s.config.NodeName)
		}),
		handler(ctx, s.teller(events, source.KindPod, "v1"), source.SamePod, deliver))
}

func (s *Source) node(ctx context.Context, events *eventWriter, own *ownNode) (informer, error) {
	deliver := func(_ model.ObjectKey, v *model.Node) { own.deliver(v) }
	return newInformer(&corev1.Node{}, node(s.config.Client, s.link, s.config.NodeName),
		transform(source.TranslateNode),
		handler(ctx, s.teller(events, source.KindNode, "v1"), source.SameNode, deliver))
}

// Warn writes an Event about a Service, for what is found out only after the
// source. It does not wait for the API server, does nothing while Run does not
// run, and is bounded as all Events are.
func (s *Source) Warn(service model.ObjectKey, warning model.Warning) {
	if w := s.events.Load(); w != nil && w.limit.TryAccept() {
		go w.warn(service, warning)
	}
}

// WarnPod writes an Event about a Pod in the same way.
func (s *Source) WarnPod(pod *model.Pod, warning model.Warning) {
	if w := s.events.Load(); w != nil && w.limit.TryAccept() {
		w.recorder.Event(&corev1.ObjectReference{
			Kind: source.KindPod, APIVersion: "v1", Namespace: pod.Key.Namespace, Name: pod.Key.Name,
			UID: types.UID(pod.UID), FieldPath: warning.Field,
		}, corev1.EventTypeWarning, warning.Reason, note(warning.Message, ""))
	}
}

func (s *Source) teller(events *eventWriter, kind, apiVersion string) *teller {
	return &teller{reporter: s.reporter, events: events, kind: kind, apiVersion: apiVersion}
}
