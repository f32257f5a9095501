// SPDX-License-Identifier: Apache-2.0

package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// report is the body of an answer to a probe.
type report struct {
	// LastUpdated is the latest of the families', or the current time if the
	// answer is 200: what reads it takes an old time for a stuck agent, also
	// when there was nothing to update for long.
	LastUpdated time.Time `json:"lastUpdated"`
	CurrentTime time.Time `json:"currentTime"`
	// NodeEligible is nil in answers to /livez.
	NodeEligible *bool `json:"nodeEligible,omitempty"`
	// Healthy is about the rules alone, whether the node is eligible or not.
	Healthy bool `json:"healthy"`
	// Status has the families that anything was queued or synced for.
	Status map[string]familyReport `json:"status,omitempty"`
	// Stale is what cannot be read of the source, and since when.
	Stale map[string]time.Time `json:"stale,omitempty"`
}

type familyReport struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Handler returns the handler of /healthz, /livez and /readyz. The first two answer 200
// or, if a family has an update queued for longer than the timeout, 503; /healthz also
// answers 503 while the node is not eligible. /readyz answers 503 until every family has
// been synced once, and 200 from then on. All tell what is stale.
func (s *State) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		r, eligible := s.report(time.Now())
		r.NodeEligible = &eligible
		r.write(w, r.Healthy && eligible, s.counters.healthz)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		r, _ := s.report(time.Now())
		r.write(w, r.Healthy, s.counters.livez)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if waiting := s.notReady(); len(waiting) > 0 {
			http.Error(w, fmt.Sprintf("waiting for the first sync of %v", waiting)+remark(s.stale()), http.StatusServiceUnavailable)
			return
		}
		text("ok"+remark(s.stale())).ServeHTTP(w, r)
	})
	return mux
}

// write answers a probe with r and counts the answer.
func (r report) write(w http.ResponseWriter, ok bool, answers *prometheus.CounterVec) {
	code := http.StatusServiceUnavailable
	if ok {
		code = http.StatusOK
		r.LastUpdated = r.CurrentTime
	}
	body, err := json.Marshal(r)
	if err != nil { // a clock outside the years 0 to 9999
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answers.WithLabelValues(strconv.Itoa(code)).Inc()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // the prober has gone: nobody is left to tell
}
