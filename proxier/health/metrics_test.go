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

// TestPagesForDebugging: flags, what runs, and indicators are there as Kubernetes'
// components have them, in text or as objects.
func TestPagesForDebugging(t *testing.T) {
	h := health.MetricsHandler(t.Context(), health.MetricsConfig{
		Gatherer: prometheus.NewRegistry(), Config: 1, Version: "v1.2.3", Flags: map[string]string{"v": "2", "config": "/x"},
	})
	for _, tt := range []struct {
		path, accept string
		code         int
		parts        []string
	}{
		{"/flagz", "", 200, []string{"\nfairlead flagz\nWarning: This endpoint is not meant to be machine parseable", "\n\nconfig=/x\nv=2\n"}},
		{"/flagz", "text/html, */*;q=0.8", 200, []string{"fairlead flagz"}},
		{"/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz", 200, []string{
			`{"apiVersion":"config.k8s.io/v1beta1","flags":{"config":"/x","v":"2"},"kind":"Flagz","metadata":{"name":"fairlead"}}`,
		}},
		{"/flagz", "application/json", 406, []string{"application/json;v=v1beta1;g=config.k8s.io;as=Flagz"}},
		{"/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz", 406, nil},
		{"/statusz", "", 200, []string{"\nfairlead statusz\nWarning: ", "\nStarted: ", "\nUp: 0 hr 00 min ", "\nGo version: go1", "\nBinary version: v1.2.3\n", "\nPaths: /configz /flagz /healthz /metrics /proxyMode /statusz\n"}},
		{"/statusz", "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz, text/plain", 200, []string{
			`"apiVersion":"config.k8s.io/v1alpha1","binaryVersion":"v1.2.3","goVersion":"go1`, `"paths":["/configz","/flagz","/healthz"`, `"uptimeSeconds":`, `"startTime":"2`,
		}},
		{"/statusz", "image/png", 406, nil},
	} {
		r := httptest.NewRequest(http.MethodGet, tt.path, nil)
		r.Header.Set("Accept", tt.accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tt.code {
			t.Errorf("%s, %q: got %d, want %d", tt.path, tt.accept, w.Code, tt.code)
		}
		for _, part := range tt.parts {
			if !strings.Contains(w.Body.String(), part) {
				t.Errorf("%s, %q: got %q, want %q in it", tt.path, tt.accept, w.Body, part)
			}
		}
	}
}

// TestIndicators: health checks are counted, and DELETE forgets them.
func TestIndicators(t *testing.T) {
	h := health.MetricsHandler(t.Context(), health.MetricsConfig{Gatherer: prometheus.NewRegistry()})
	get(h, "/healthz")
	get(h, "/healthz")
	body := get(h, "/metrics/slis").Body.String()
	for _, want := range []string{
		"\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
		"\nkubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("got %q, want %q in it", body, want)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodDelete, "/metrics/slis", nil))
	if body := get(h, "/metrics/slis").Body.String(); w.Code != 200 || strings.Contains(body, "ping") {
		t.Errorf("after DELETE, %d: got %q", w.Code, body)
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
