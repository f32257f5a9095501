// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// NewClient returns a client for a load: it speaks protobuf and does not wait
// between requests.
func NewClient(cfg *rest.Config) (*kubernetes.Clientset, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

// Writer writes Services and endpoints to an API server.
type Writer struct {
	Client kubernetes.Interface
	Plan   Plan
	// Workers is how many requests are under way at a time.
	Workers int
}

// Namespace makes the plan's namespace unless it is there.
func (w *Writer) Namespace(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.Plan.Namespace}}
	_, err := w.Client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", ns.Name, err)
	}
	return nil
}

// Create makes the planned Services with numbers from first up to, and without,
// end, and overwrites what is there. After each Service, progress, unless nil, is
// told how many are done. It may be called from several goroutines.
func (w *Writer) Create(ctx context.Context, first, end int, progress func(done int)) error {
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(w.Workers)
	for number := first; number < end && ctx.Err() == nil; number++ {
		g.Go(func() error {
			s := w.Plan.Service(number)
			if err := w.Apply(ctx, Change{Kind: Add, After: &s}); err != nil {
				return err
			}
			if n := int(done.Add(1)); progress != nil {
				progress(n)
			}
			return nil
		})
	}
	return g.Wait()
}

// Apply writes one change: the endpoint slices that differ, and the Service if
// it comes or goes. A Service comes before its endpoints and goes before them.
func (w *Writer) Apply(ctx context.Context, c Change) error {
	services := w.Client.CoreV1().Services(w.Plan.Namespace)
	var err error
	switch {
	case c.Before == nil:
		_, err = services.Create(ctx, w.Plan.Object(*c.After), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = services.Update(ctx, w.Plan.Object(*c.After), metav1.UpdateOptions{})
		}
	case c.After == nil:
		err = services.Delete(ctx, serviceName(c.Before.Number), metav1.DeleteOptions{})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	if err := w.applySlices(ctx, w.slices(c.Before), w.slices(c.After)); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

func (w *Writer) slices(s *Service) []*discoveryv1.EndpointSlice {
	if s == nil {
		return nil
	}
	return w.Plan.Slices(*s)
}

// applySlices writes a Service's slices that differ; those in the same place
// have the same name.
func (w *Writer) applySlices(ctx context.Context, before, after []*discoveryv1.EndpointSlice) error {
	client := w.Client.DiscoveryV1().EndpointSlices(w.Plan.Namespace)
	for i := range max(len(before), len(after)) {
		var err error
		switch {
		case i >= len(after):
			err = client.Delete(ctx, before[i].Name, metav1.DeleteOptions{})
		case i >= len(before):
			_, err = client.Create(ctx, after[i], metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				_, err = client.Update(ctx, after[i], metav1.UpdateOptions{})
			}
		case !equality.Semantic.DeepEqual(before[i], after[i]):
			_, err = client.Update(ctx, after[i], metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Run writes changes, so many in a second; 0 is as fast as it goes. Changes of
// one Service keep their order. A change that cannot be written in time is
// written late, and none is left out. It returns how long all took.
func (w *Writer) Run(ctx context.Context, rate float64, changes iter.Seq[Change]) (time.Duration, error) {
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	queues := make([]chan Change, w.Workers)
	for i := range queues {
		queue := make(chan Change, 16)
		queues[i] = queue
		g.Go(func() error { return w.drain(gctx, queue) })
	}
	feed(gctx, queues, rate, changes)
	for _, queue := range queues {
		close(queue)
	}
	err := g.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return time.Since(start), err
}

// feed hands out changes in time until there are no more or ctx ends.
func feed(ctx context.Context, queues []chan Change, rate float64, changes iter.Seq[Change]) {
	start, n := time.Now(), 0
	for c := range changes {
		if rate > 0 && !sleepUntil(ctx, start.Add(time.Duration(float64(n)/rate*float64(time.Second)))) {
			return
		}
		n++
		select {
		case queues[c.Number()%len(queues)] <- c:
		case <-ctx.Done():
			return
		}
	}
}

func (w *Writer) drain(ctx context.Context, queue <-chan Change) error {
	for c := range queue {
		if err := w.Apply(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// sleepUntil returns false if ctx ends first.
func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// DeleteAll deletes everything that a Writer has written to the namespace, by
// whatever plan, and returns how many objects that were.
func (w *Writer) DeleteAll(ctx context.Context) (int, error) {
	services, slices := w.Client.CoreV1().Services(w.Plan.Namespace), w.Client.DiscoveryV1().EndpointSlices(w.Plan.Namespace)
	n := 0
	sl, err := services.List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=" + managedBy})
	if err != nil {
		return n, fmt.Errorf("list Services: %w", err)
	}
	el, err := slices.List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelManagedBy + "=" + managedBy})
	if err != nil {
		return n, fmt.Errorf("list EndpointSlices: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(w.Workers)
	remove := func(name string, del func(context.Context, string, metav1.DeleteOptions) error) {
		n++
		g.Go(func() error {
			if err := del(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s: %w", name, err)
			}
			return nil
		})
	}
	for _, s := range sl.Items {
		remove(s.Name, services.Delete)
	}
	for _, s := range el.Items {
		remove(s.Name, slices.Delete)
	}
	return n, g.Wait()
}
