// SPDX-License-Identifier: Apache-2.0

package source

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the metrics that every source keeps. A nil *Metrics discards.
type Metrics struct {
	refused *prometheus.CounterVec
}

// NewMetrics registers the metrics with reg:
//
//   - fairlead_objects_refused_total{kind}: versions of objects of which the
//     whole or a part was refused. Every kind is present from the start.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{refused: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairlead_objects_refused_total",
		Help: "Versions of objects that were refused, as a whole or in part, because they hold values that cannot be programmed safely.",
	}, []string{"kind"})}
	for _, kind := range []string{KindService, KindEndpointSlice, KindServiceCIDR, KindPod, KindNode} {
		m.refused.WithLabelValues(kind)
	}
	reg.MustRegister(m.refused)
	return m
}

func (m *Metrics) countRefused(kind string) {
	if m != nil {
		m.refused.WithLabelValues(kind).Inc()
	}
}
