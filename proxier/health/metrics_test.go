// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/health"
)

func TestMetricsHandler(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	answer := prometheus.NewGauge(prometheus.GaugeOpts{Name: "answer", Help: "h"})
	answer.Set(42)
	reg.MustRegister(answer)
	cfg := health.MetricsConfig{Gatherer: reg, ProxyMode: "iptables", Config: map[string]any{"a": 1}}
	for _, tt := range []struct {
		path      string
		profiling bool
		code      int
		body      string // a part of it
	}{
		{path: "/metrics", code: 200, body: "\nanswer 42\n"},
		{path: "/proxyMode", code: 200, body: "iptables"},
		{path: "/healthz", code: 200, body: "ok"},
		{path: "/configz", code: 200, body: `{"a":1}`},
		{path: "/", code: 404},
		{path: "/debug/flags/v", code: 404},
		{path: "/debug/pprof/", code: 404},
		{path: "/debug/pprof/cmdline", code: 404},
		{path: "/debug/pprof/", profiling: true, code: 200, body: "goroutine"},
		{path: "/debug/pprof/goroutine?debug=1", profiling: true, code: 200, body: "goroutine profile"},
		{path: "/debug/pprof/cmdline", profiling: true, code: 200, body: ".test"},
		{path: "/debug/pprof/symbol", profiling: true, code: 200, body: "num_symbols"},
		{path: "/metrics", profiling: true, code: 200, body: "\nanswer 42\n"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			cfg := cfg
			cfg.Profiling = tt.profiling
			w := get(health.MetricsHandler(t.Context(), cfg), tt.path)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.body) {
				t.Errorf("got %d %q, want %d with %q in it", w.Code, w.Body, tt.code, tt.body)
			}
		})
	}
}

// TestVerbosity: with profiling, PUT sets what the log has, if it makes sense.
func TestVerbosity(t *testing.T) {
	var set []string
	h := health.MetricsHandler(t.Context(), health.MetricsConfig{
		Gatherer: prometheus.NewRegistry(), Profiling: true,
		SetVerbosity: func(level string) error {
			if level == "x" {
				return errors.New("no number")
			}
			set = append(set, level)
			return nil
		},
	})
	for body, want := range map[string]int{"4\n": 200, "x": 400, strings.Repeat("1", 17): 400} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/debug/flags/v", strings.NewReader(body)))
		if w.Code != want {
			t.Errorf("%q: got %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
	if len(set) != 1 || set[0] != "4" {
		t.Errorf("got %q, want 4", set)
	}
	if w := get(h, "/debug/flags/v"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: got %d", w.Code)
	}
}

func TestProxyModeIsNothingElse(t *testing.T) {
	w := get(health.MetricsHandler(t.Context(), health.MetricsConfig{
		Gatherer: prometheus.NewRegistry(), ProxyMode: "ipvs",
	}), "/proxyMode")
	if got := w.Body.String(); got != "ipvs" {
		t.Errorf("got %q, want %q", got, "ipvs")
	}
	if got, want := w.Header().Get("Content-Type"), "text/plain; charset=utf-8"; got != want {
		t.Errorf("got Content-Type %q, want %q", got, want)
	}
}

// broken is a collector that fails.
type broken struct{}

func (broken) Describe(ch chan<- *prometheus.Desc) { ch <- prometheus.NewDesc("broken", "h", nil, nil) }
func (broken) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "h", nil, nil), errors.New("netlink is away"))
}

func TestMetricsOfOthersSurviveFailure(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(broken{}, prometheus.NewGauge(prometheus.GaugeOpts{Name: "whole", Help: "h"}))
	ctx, logged := logTo(t)
	w := get(health.MetricsHandler(ctx, health.MetricsConfig{Gatherer: reg}), "/metrics")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "\nwhole 0\n") {
		t.Errorf("got %d %q, want 200 with the other metric", w.Code, w.Body)
	}
	if got := logged(); !strings.Contains(got, "Metrics are incomplete") || !strings.Contains(got, "netlink is away") {
		t.Errorf("got log %q, want the failure in it", got)
	}
}
