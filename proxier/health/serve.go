// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

const (
	// shutdownTimeout is what running requests get to finish.
	shutdownTimeout = time.Second
	// firstRetry and lastRetry bound the pause before the next attempt to bind.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// ServeConfig says what Serve serves and where.
type ServeConfig struct {
	// Name names the server in log lines and errors.
	Name string
	// Addr is the host:port to listen on.
	Addr string
	// Flag is the command-line flag that Addr came from, for the log line about
	// an address that cannot be bound.
	Flag string
	// HardFail makes Serve return when Addr cannot be bound. Otherwise it tries
	// on: a port that someone else holds must not keep rules from being written.
	HardFail bool
	Handler  http.Handler
	// Ready, if not nil, is called once with the address that is listened on.
	Ready func(net.Addr)
}

// Serve listens and serves until ctx is done, then gives running requests a
// second to finish and returns nil.
func Serve(ctx context.Context, cfg ServeConfig) error {
	logger := klog.FromContext(ctx).WithValues("server", cfg.Name)
	l, err := listen(klog.NewContext(ctx, logger), cfg)
	if err != nil || l == nil {
		return err
	}
	logger.V(2).Info("Serving HTTP", "address", l.Addr())
	if cfg.Ready != nil {
		cfg.Ready(l.Addr())
	}
	srv := newServer(logger, cfg.Handler)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	if err := serveUntil(ctx, srv, l); err != nil {
		return fmt.Errorf("serve %s on %s: %w", cfg.Name, l.Addr(), err)
	}
	return nil
}

// newServer returns a server that no client can hold up for long.
func newServer(logger klog.Logger, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		// Also the longest profile that /debug/pprof/profile agrees to take.
		WriteTimeout:   2 * time.Minute,
		IdleTimeout:    90 * time.Second,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       log.New(lineLog{logger}, "", 0),
	}
}

// serveUntil serves on l until ctx is done or accepting connections fails.
// Nothing of srv runs any more when it returns, but handlers that ignore their
// request's context.
func serveUntil(ctx context.Context, srv *http.Server, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-failed
	return err
}

// listen binds cfg.Addr, however long that takes unless cfg.HardFail is set. It
// returns nil and no error once ctx is done.
func listen(ctx context.Context, cfg ServeConfig) (net.Listener, error) {
	if cfg.Addr == "" { // to net.Listen, any port of any address
		return nil, fmt.Errorf("listen for %s: %s is empty", cfg.Name, cfg.Flag)
	}
	logger := klog.FromContext(ctx)
	var lc net.ListenConfig
	for pause, first := firstRetry, true; ; pause, first = min(2*pause, lastRetry), false {
		l, err := lc.Listen(ctx, "tcp", cfg.Addr)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, nil
		case cfg.HardFail:
			return nil, fmt.Errorf("listen for %s, see %s: %w", cfg.Name, cfg.Flag, err)
		case first:
			logger.Error(err, "Address is not available, trying until it is", "address", cfg.Addr, "flag", cfg.Flag)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(pause + rand.N(pause/2)):
		}
	}
}

// lineLog is a writer that logs each line that http.Server has to say, such as
// the panic of a handler.
type lineLog struct{ logger klog.Logger }

// Write logs p as one line.
func (l lineLog) Write(p []byte) (int, error) {
	l.logger.Info("HTTP server", "error", strings.TrimSpace(string(p)))
	return len(p), nil
}
