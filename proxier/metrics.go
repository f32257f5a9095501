// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
)

// Metrics are the brain's metrics, under kube-proxy's names. Every series
// exists from the start.
type Metrics struct {
	syncDuration       *prometheus.HistogramVec // ip_family
	lastSync           *prometheus.GaugeVec     // ip_family
	lastQueued         *prometheus.GaugeVec     // ip_family
	programming        *prometheus.HistogramVec // ip_family
	noLocalEndpoints   *prometheus.GaugeVec     // ip_family, traffic_policy
	endpointChanges    prometheus.Counter
	endpointPending    prometheus.Gauge
	serviceChanges     prometheus.Counter
	servicePending     prometheus.Gauge
	syncFailures       *prometheus.CounterVec // ip_family
	checkFailures      *prometheus.CounterVec // ip_family
	refusedExternal    *prometheus.CounterVec // ip_family
	repaired           *prometheus.CounterVec // ip_family
	refused            *prometheus.GaugeVec   // ip_family
	consecutiveFailure *prometheus.GaugeVec   // ip_family
	backoff            *prometheus.GaugeVec   // ip_family
}

// NewMetrics registers the metrics on reg, with series for the families in use.
func NewMetrics(reg prometheus.Registerer, families []model.Family) *Metrics {
	const ns = "kubeproxy"
	gauge := func(ns, name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: name, Help: help}, labels)
	}
	counter := func(ns, name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: name, Help: help}, labels)
	}
	m := &Metrics{
		syncDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Name: "sync_proxy_rules_duration_seconds",
			Help: "Time that a sync of the rules took.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"ip_family"}),
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Name: "network_programming_duration_seconds",
			Help: "Time from the change of an endpoint to its effect on this node.", Buckets: programmingBuckets(),
		}, []string{"ip_family"}),
		lastSync:         gauge(ns, "sync_proxy_rules_last_timestamp_seconds", "When the rules were last synced.", "ip_family"),
		lastQueued:       gauge(ns, "sync_proxy_rules_last_queued_timestamp_seconds", "When a sync of the rules was last asked for.", "ip_family"),
		noLocalEndpoints: gauge(ns, "sync_proxy_rules_no_local_endpoints_total", "Services with a Local traffic policy and no local endpoint.", "ip_family", "traffic_policy"),
		endpointChanges:  prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "sync_proxy_rules_endpoint_changes_total", Help: "Changes of EndpointSlices."}),
		endpointPending:  prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Name: "sync_proxy_rules_endpoint_changes_pending", Help: "Changes of EndpointSlices that await a sync."}),
		serviceChanges:   prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "sync_proxy_rules_service_changes_total", Help: "Changes of Services."}),
		servicePending:   prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Name: "sync_proxy_rules_service_changes_pending", Help: "Changes of Services that await a sync."}),

		syncFailures:       counter("fairlead", "sync_failures_total", "Syncs that failed and are retried.", "ip_family"),
		checkFailures:      counter("fairlead", "check_failures_total", "Checks of the kernel for what others changed that could not be done.", "ip_family"),
		refusedExternal:    counter("fairlead", "external_addresses_refused_total", "External addresses of Services that were left out because they are cluster IPs or inside a ServiceCIDR.", "ip_family"),
		repaired:           counter("fairlead", "drift_repaired_total", "Kernel objects of ours that others changed, and that were repaired.", "ip_family"),
		refused:            gauge("fairlead", "kernel_refused", "Kernel objects that the kernel does not accept and that are left out.", "ip_family"),
		backoff:            gauge("fairlead", "sync_backoff_seconds", "Pause before the sync that failed is tried again; 0 after one that succeeded.", "ip_family"),
		consecutiveFailure: gauge("fairlead", "sync_consecutive_failures", "Failed syncs since the last one that succeeded.", "ip_family"),
	}
	reg.MustRegister(m.syncDuration, m.programming, m.lastSync, m.lastQueued, m.noLocalEndpoints,
		m.endpointChanges, m.endpointPending, m.serviceChanges, m.servicePending,
		m.syncFailures, m.checkFailures, m.refusedExternal, m.repaired, m.refused, m.consecutiveFailure, m.backoff)
	for _, f := range families {
		m.initialise(f.String())
	}
	return m
}

// initialise makes the series of a family.
func (m *Metrics) initialise(f string) {
	m.syncDuration.WithLabelValues(f)
	m.programming.WithLabelValues(f)
	for _, policy := range []string{"internal", "external"} {
		m.noLocalEndpoints.WithLabelValues(f, policy)
	}
	for _, g := range []*prometheus.GaugeVec{m.lastSync, m.lastQueued, m.refused, m.consecutiveFailure, m.backoff} {
		g.WithLabelValues(f)
	}
	for _, c := range []*prometheus.CounterVec{m.syncFailures, m.checkFailures, m.refusedExternal, m.repaired} {
		c.WithLabelValues(f)
	}
}

// programmingBuckets are kube-proxy's: 0.25 and 0.5 s, every second to a
// minute, every 5 s to two, every 30 s to five.
func programmingBuckets() []float64 {
	b := []float64{0.25, 0.5}
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

func (m *Metrics) changed(services, slices int) {
	m.serviceChanges.Add(float64(services))
	m.endpointChanges.Add(float64(slices))
}

func (m *Metrics) pending(services, slices int) {
	m.servicePending.Set(float64(services))
	m.endpointPending.Set(float64(slices))
}

// dropped counts ports whose traffic is dropped for want of a local endpoint.
type dropped struct{ internal, external int }

// add counts a port up or down; nil counts for nothing.
func (d *dropped) add(p *model.ServicePort, n int) {
	if p == nil {
		return
	}
	if p.DropsInternal() {
		d.internal += n
	}
	if p.DropsExternal() {
		d.external += n
	}
}

func (m *Metrics) drops(f model.Family, d dropped) {
	m.noLocalEndpoints.WithLabelValues(f.String(), "internal").Set(float64(d.internal))
	m.noLocalEndpoints.WithLabelValues(f.String(), "external").Set(float64(d.external))
}

func (m *Metrics) queued(f model.Family, t time.Time) {
	m.lastQueued.WithLabelValues(f.String()).Set(seconds(t))
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
