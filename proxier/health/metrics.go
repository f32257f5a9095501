// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"io"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// MetricsConfig is what the metrics server answers from.
type MetricsConfig struct {
	Gatherer prometheus.Gatherer
	// ProxyMode is the answer to /proxyMode.
	ProxyMode string
	// Profiling adds /debug/pprof/.
	Profiling bool
}

// MetricsHandler returns the handler of the metrics server: /metrics,
// /proxyMode, /healthz, which answers "ok" as long as the process does, and
// with Profiling /debug/pprof/. A collector that fails is logged to the logger
// in ctx and does not keep the others' metrics from being read.
func MetricsHandler(ctx context.Context, cfg MetricsConfig) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      gatherLog{klog.FromContext(ctx)},
	}))
	mux.Handle("/proxyMode", text(cfg.ProxyMode))
	mux.Handle("/healthz", text("ok"))
	if cfg.Profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
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
