// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// Metrics are the metrics of iptables mode, under kube-proxy's names. Every
// series exists from the start. A nil *Metrics discards.
type Metrics struct {
	total, last     *prometheus.GaugeVec     // table, ip_family
	full, partial   *prometheus.HistogramVec // ip_family
	partialFailures *prometheus.CounterVec   // ip_family
}

// NewMetrics registers the metrics on reg, with series for the families in use.
func NewMetrics(reg prometheus.Registerer, families []model.Family) *Metrics {
	const ns = "kubeproxy"
	duration := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"ip_family"})
	}
	m := &Metrics{
		full:    duration("sync_full_proxy_rules_duration_seconds", "Time that a sync took that compared all rules with the kernel's."),
		partial: duration("sync_partial_proxy_rules_duration_seconds", "Time that a sync took that looked at what changed alone."),
		total: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_total", Help: "Rules that are wanted.",
		}, []string{"table", "ip_family"}),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_last", Help: "Rules written by the last sync.",
		}, []string{"table", "ip_family"}),
		partialFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_partial_restore_failures_total",
			Help: "Restore commands for a part of the rules that failed.",
		}, []string{"ip_family"}),
	}
	reg.MustRegister(m.total, m.last, m.full, m.partial, m.partialFailures)
	for _, f := range families {
		for _, t := range []ruleset.Table{ruleset.NAT, ruleset.Filter} {
			m.total.WithLabelValues(string(t), f.String())
			m.last.WithLabelValues(string(t), f.String())
		}
		m.full.WithLabelValues(f.String())
		m.partial.WithLabelValues(f.String())
		m.partialFailures.WithLabelValues(f.String())
	}
	return m
}

func (m *Metrics) applied(f model.Family, e *ruleset.Engine, res ruleset.Result, took time.Duration) {
	if m == nil {
		return
	}
	kind := m.partial
	if res.Full {
		kind = m.full
	}
	kind.WithLabelValues(f.String()).Observe(took.Seconds())
	for _, t := range []ruleset.Table{ruleset.NAT, ruleset.Filter} {
		m.total.WithLabelValues(string(t), f.String()).Set(float64(e.Rules(t)))
		m.last.WithLabelValues(string(t), f.String()).Set(float64(res.Written[t]))
	}
	if !res.Full {
		m.partialFailures.WithLabelValues(f.String()).Add(float64(res.Failures))
	}
}
