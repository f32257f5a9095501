// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"github.com/prometheus/client_golang/prometheus"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// Metrics are the metrics of iptables mode, under kube-proxy's names. Every
// series exists from the start. A nil *Metrics discards.
type Metrics struct {
	total, last     *prometheus.GaugeVec   // table, ip_family
	restoreFailures *prometheus.CounterVec // ip_family
	partialFailures *prometheus.CounterVec // ip_family
}

// NewMetrics registers the metrics on reg, with series for the families in use.
func NewMetrics(reg prometheus.Registerer, families []model.Family) *Metrics {
	const ns = "kubeproxy"
	m := &Metrics{
		total: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_total", Help: "Rules that are wanted.",
		}, []string{"table", "ip_family"}),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_last", Help: "Rules written by the last sync.",
		}, []string{"table", "ip_family"}),
		restoreFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_restore_failures_total", Help: "Restore commands that failed.",
		}, []string{"ip_family"}),
		partialFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "sync_proxy_rules_iptables_partial_restore_failures_total",
			Help: "Restore commands for a part of the rules that failed.",
		}, []string{"ip_family"}),
	}
	reg.MustRegister(m.total, m.last, m.restoreFailures, m.partialFailures)
	for _, f := range families {
		for _, t := range []ruleset.Table{ruleset.NAT, ruleset.Filter} {
			m.total.WithLabelValues(string(t), f.String())
			m.last.WithLabelValues(string(t), f.String())
		}
		m.restoreFailures.WithLabelValues(f.String())
		m.partialFailures.WithLabelValues(f.String())
	}
	return m
}

func (m *Metrics) applied(f model.Family, e *ruleset.Engine, res ruleset.Result) {
	if m == nil {
		return
	}
	for _, t := range []ruleset.Table{ruleset.NAT, ruleset.Filter} {
		m.total.WithLabelValues(string(t), f.String()).Set(float64(e.Rules(t)))
		m.last.WithLabelValues(string(t), f.String()).Set(float64(res.Written[t]))
	}
	m.restoreFailures.WithLabelValues(f.String()).Add(float64(res.Failures))
}
