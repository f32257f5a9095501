// SPDX-License-Identifier: Apache-2.0

package health

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// slis are the indicators of service levels that Kubernetes' components have: how often a
// health check was asked for, and what its last answer was (KEP-3466). DELETE forgets them.
type slis struct {
	check *prometheus.GaugeVec   // name, type
	total *prometheus.CounterVec // name, type, status
	serve http.Handler
}

func newSLIs(log promhttp.Logger) *slis {
	s := &slis{
		check: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kubernetes_healthcheck", Help: "Result of a health check: 1 for success.",
		}, []string{"name", "type"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubernetes_healthchecks_total", Help: "Results of health checks.",
		}, []string{"name", "type", "status"}),
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(s.check, s.total)
	s.serve = promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, ErrorLog: log})
	return s
}

// ping notes that /healthz was answered.
func (s *slis) ping() {
	s.check.WithLabelValues("ping", "healthz").Set(1)
	s.total.WithLabelValues("ping", "healthz", "success").Inc()
}

// ServeHTTP implements http.Handler.
func (s *slis) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		s.check.Reset()
		s.total.Reset()
		text("metrics reset\n").ServeHTTP(w, r)
		return
	}
	s.serve.ServeHTTP(w, r)
}
