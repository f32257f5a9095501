// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
)

// Metrics are the metrics of nftables mode, under kube-proxy's names. Every series exists
// from the start. A nil *Metrics discards.
type Metrics struct {
	full, partial             *prometheus.HistogramVec // ip_family
	failures, cleanupFailures *prometheus.CounterVec   // ip_family
}

// NewMetrics registers the metrics on reg, with series for the families in use.
func NewMetrics(reg prometheus.Registerer, families []model.Family) *Metrics {
	const ns = "kubeproxy"
	duration := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"ip_family"})
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: name, Help: help}, []string{"ip_family"})
	}
	m := &Metrics{
		full:            duration("sync_full_proxy_rules_duration_seconds", "Time that a sync took that read the table."),
		partial:         duration("sync_partial_proxy_rules_duration_seconds", "Time that a sync took that wrote what changed alone."),
		failures:        counter("sync_proxy_rules_nftables_sync_failures_total", "Syncs of the table that failed."),
		cleanupFailures: counter("sync_proxy_rules_nftables_cleanup_failures_total", "Syncs after which sets and chains could not be removed that nothing uses any more."),
	}
	reg.MustRegister(m.full, m.partial, m.failures, m.cleanupFailures)
	for _, f := range families {
		m.full.WithLabelValues(f.String())
		m.partial.WithLabelValues(f.String())
		m.failures.WithLabelValues(f.String())
		m.cleanupFailures.WithLabelValues(f.String())
	}
	return m
}

func (m *Metrics) synced(f model.Family, full bool, err error, took time.Duration) {
	if m == nil {
		return
	}
	kind := m.partial
	if full {
		kind = m.full
	}
	kind.WithLabelValues(f.String()).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(f.String()).Inc()
	}
}

func (m *Metrics) untidy(f model.Family) {
	if m != nil {
		m.cleanupFailures.WithLabelValues(f.String()).Inc()
	}
}
