// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"io"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// MetricsConfig is what the metrics server answers from.
type MetricsConfig struct {
	Gatherer prometheus.Gatherer
	// ProxyMode is the answer to /proxyMode.
	ProxyMode string
	// Config is the answer to /configz, as JSON; nil for no such page.
	Config any
	// Profiling adds /debug/pprof/, and SetVerbosity as /debug/flags/v.
	Profiling bool
	// SetVerbosity makes the log have more or less; nil for no such page.
	SetVerbosity func(level string) error
	// Flags are what /flagz shows, and Version is a part of /statusz.
	Flags   map[string]string
	Version string
}

// MetricsHandler returns the handler of the metrics server: /metrics, /metrics/slis,
// /proxyMode, /configz, /flagz, /statusz, /healthz, which answers "ok" as long as the process does, and
// with Profiling /debug/pprof/, and /debug/flags/v, which takes PUT. A collector that fails is logged to the logger
// in ctx and does not keep the others' metrics from being read.
func MetricsHandler(ctx context.Context, cfg MetricsConfig) http.Handler {
	mux := http.NewServeMux()
	log := gatherLog{klog.FromContext(ctx)}
	mux.Handle("/metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      log,
	}))
	indicators := newSLIs(log)
	mux.Handle("/metrics/slis", indicators)
	mux.Handle("/proxyMode", text(cfg.ProxyMode))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		indicators.ping()
		text("ok").ServeHTTP(w, r)
	})
	mux.Handle("/flagz", flagz(cfg.Flags))
	paths := []string{"/flagz", "/healthz", "/metrics", "/proxyMode", "/statusz"}
	if cfg.Config != nil {
		mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) { serveJSON(w, cfg.Config) })
		paths = append(paths, "/configz")
	}
	if cfg.Profiling {
		paths = append(paths, "/debug")
	}
	mux.Handle("/statusz", statusz(cfg.Version, time.Now(), paths))
	if cfg.Profiling {
		if cfg.SetVerbosity != nil {
			mux.Handle("PUT /debug/flags/v", verbosity(cfg.SetVerbosity))
		}
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// verbosity returns a handler that hands the body of a request to set.
func verbosity(set func(level string) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		level, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16))
		if err == nil {
			err = set(strings.TrimSpace(string(level)))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		text("the log has verbosity "+strings.TrimSpace(string(level))+"\n").ServeHTTP(w, r)
	})
}

// text returns a handler that always answers with body.
func text(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, body) // the reader has gone: nobody is left to tell
	})
}

// gatherLog is a promhttp.Logger.
type gatherLog struct{ logger klog.Logger }

// Println logs an error of the Gatherer, which promhttp passes as the last
// value.
func (l gatherLog) Println(v ...any) {
	err, _ := v[len(v)-1].(error)
	l.logger.Error(err, "Metrics are incomplete")
}
