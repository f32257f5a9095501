// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
)

// Kernel is the kernel's table of flows.
type Kernel interface {
	// Flows calls yield with the UDP flows of a family until it returns false.
	// The error wraps ErrInterrupted if flows may have been missed, and
	// ErrNotSupported if there is no way to see any.
	Flows(ctx context.Context, f model.Family, yield func(Flow) bool) error
	// Delete deletes flows, those and no others, and returns how many. That a
	// flow is gone already is not an error. It goes on after errors.
	Delete(ctx context.Context, f model.Family, flows []Flow) (int, error)
}

var (
	// ErrInterrupted is wrapped by the errors that say that flows may have been
	// missed because the table changed at the wrong moment.
	ErrInterrupted = errors.New("interrupted by changes")
	// ErrNotSupported is wrapped by the errors that say that this kernel cannot
	// show its flows.
	ErrNotSupported = errors.New("kernel does not have conntrack netlink")
)

// Config is what a Reconciler needs.
type Config struct {
	Family  model.Family
	Kernel  Kernel
	Metrics *Metrics
}

// Reconciler cuts the stale flows of one family.
type Reconciler struct {
	Config
	// unsupported is set once it has been said that there is no support.
	unsupported bool
}

// New returns a Reconciler.
func New(cfg Config) *Reconciler { return &Reconciler{Config: cfg} }

// maxReads is how often the flows are read anew in one Reconcile.
const maxReads = 5

// Reconcile cuts the flows that are stale by t and returns how many. It is
// called once the rules are as t says. Where t has no changes that matter to
// flows it does nothing. After an error what is left is due with the next call;
// an error that wraps ErrNotSupported is returned once and not again before
// there was support.
func (r *Reconciler) Reconcile(ctx context.Context, t *Table) (cut int, err error) {
	if !t.Due() {
		t.settled()
		return 0, nil
	}
	start := time.Now()
	cut, err = r.cut(ctx, t)
	r.Metrics.duration.WithLabelValues(r.Family.String()).Observe(time.Since(start).Seconds())
	r.Metrics.deleted.WithLabelValues(r.Family.String()).Add(float64(cut))
	if cut > 0 {
		klog.FromContext(ctx).V(2).Info("Cut stale UDP flows", "ipFamily", r.Family, "flows", cut, "took", time.Since(start))
	}
	if errors.Is(err, ErrNotSupported) {
		clear(t.gone) // or it would grow for as long as the agent runs
		if r.unsupported {
			return cut, nil
		}
		r.unsupported = true
		return cut, fmt.Errorf("UDP clients stay with endpoints that are gone: %w (try modprobe nf_conntrack_netlink)", err)
	}
	r.unsupported = false
	if err == nil {
		t.settled()
	}
	return cut, err
}

// cut reads the flows, again if some may have been missed, and deletes what is
// stale of those seen.
func (r *Reconciler) cut(ctx context.Context, t *Table) (cut int, err error) {
	for range maxReads {
		var readErr error
		stale := Stale(func(yield func(Flow) bool) { readErr = r.Kernel.Flows(ctx, r.Family, yield) }, t)
		n := 0
		var deleteErr error
		if len(stale) > 0 {
			n, deleteErr = r.Kernel.Delete(ctx, r.Family, stale)
			cut += n
		}
		if err = wrap(readErr, deleteErr); !errors.Is(readErr, ErrInterrupted) || ctx.Err() != nil {
			break
		}
	}
	return cut, err
}

func wrap(readErr, deleteErr error) error {
	if readErr != nil {
		readErr = fmt.Errorf("read UDP flows: %w", readErr)
	}
	if deleteErr != nil {
		deleteErr = fmt.Errorf("delete stale UDP flows: %w", deleteErr)
	}
	return errors.Join(readErr, deleteErr)
}

// Metrics are this package's metrics, under kube-proxy's names.
type Metrics struct {
	duration *prometheus.HistogramVec // ip_family
	deleted  *prometheus.CounterVec   // ip_family
}

// NewMetrics registers the metrics on reg, with series for the families in use.
func NewMetrics(reg prometheus.Registerer, families []model.Family) *Metrics {
	m := &Metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
			Help:    "How long it took to find and cut stale UDP flows.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"ip_family"}),
		deleted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubeproxy_conntrack_reconciler_deleted_entries_total",
			Help: "Stale UDP flows that were cut.",
		}, []string{"ip_family"}),
	}
	for _, f := range families {
		m.duration.WithLabelValues(f.String())
		m.deleted.WithLabelValues(f.String())
	}
	reg.MustRegister(m.duration, m.deleted)
	return m
}
