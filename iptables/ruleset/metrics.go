// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of the engines of all families, whatever the mode. Every series
// exists from the start. A nil *Metrics discards.
type Metrics struct {
	failures *prometheus.CounterVec   // ip_family
	commits  *prometheus.HistogramVec // ip_family
}

// NewMetrics registers the metrics on reg, with series for families by the names that
// Config.Family has:
//
//   - kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family}
//   - fairlead_restore_duration_seconds{ip_family}: the time that each restore command
//     took to commit; a large change takes several.
func NewMetrics(reg prometheus.Registerer, families ...string) *Metrics {
	m := &Metrics{
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
			Help: "Restore commands that failed.",
		}, []string{"ip_family"}),
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "fairlead_restore_duration_seconds",
			Help: "Time that a restore command took to commit; a large change takes several.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"ip_family"}),
	}
	reg.MustRegister(m.failures, m.commits)
	for _, f := range families {
		m.failures.WithLabelValues(f)
		m.commits.WithLabelValues(f)
	}
	return m
}

func (m *Metrics) committed(family string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.commits.WithLabelValues(family).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(family).Inc()
	}
}
