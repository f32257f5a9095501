// SPDX-License-Identifier: Apache-2.0

package health

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// newStaleSince returns the metric
//
//   - fairlead_source_stale_since_timestamp_seconds: since when something cannot be read
//     of the source, 0 while everything can.
func newStaleSince(stale func() map[string]time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fairlead_source_stale_since_timestamp_seconds",
		Help: "Since when something cannot be read from the API server, so that rules follow no change of it; 0 while everything can.",
	}, func() float64 {
		since, any := first(stale())
		if !any {
			return 0
		}
		return float64(since.UnixNano()) / 1e9
	})
}

// first returns the first of the times.
func first(stale map[string]time.Time) (t time.Time, any bool) {
	if len(stale) == 0 {
		return time.Time{}, false
	}
	return slices.MinFunc(slices.Collect(maps.Values(stale)), time.Time.Compare), true
}

// remark says what is stale, after what else there is to say.
func remark(stale map[string]time.Time) string {
	since, any := first(stale)
	if !any {
		return ""
	}
	return "; cannot read " + strings.Join(slices.Sorted(maps.Keys(stale)), ", ") + " since " + since.UTC().Format(time.RFC3339)
}
