// SPDX-License-Identifier: Apache-2.0

package manifests

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the metrics of a directory of manifests. A nil *Metrics discards.
type Metrics struct {
	broken     prometheus.Gauge
	duplicates prometheus.Gauge
}

// NewMetrics registers the metrics with reg:
//
//   - fairlead_manifest_files_broken: files that cannot be read or parsed as
//     they are now.
//   - fairlead_manifest_duplicate_objects: objects that are ignored because an
//     earlier file, or an earlier place in the same file, has them too.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		broken: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairlead_manifest_files_broken",
			Help: "Manifest files that cannot be read or parsed as they are now.",
		}),
		duplicates: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairlead_manifest_duplicate_objects",
			Help: "Objects in manifest files that are ignored because an earlier place has them too.",
		}),
	}
	reg.MustRegister(m.broken, m.duplicates)
	return m
}

func (m *Metrics) set(broken, duplicates int) {
	if m != nil {
		m.broken.Set(float64(broken))
		m.duplicates.Set(float64(duplicates))
	}
}
