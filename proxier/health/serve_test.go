// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"fairlead/proxier/health"
)

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// logTo returns a context with a logger, and a function that returns what was
// logged so far.
func logTo(t *testing.T) (context.Context, func() string) {
	var buf syncBuffer
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&buf), textlogger.Verbosity(2)))
	return klog.NewContext(t.Context(), logger), buf.String
}

// serve runs Serve until stop is called, which returns Serve's error.
func serve(ctx context.Context, t *testing.T, cfg health.ServeConfig) (url func() string, stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ready, failed := make(chan net.Addr, 1), make(chan error, 1)
	cfg.Ready = func(a net.Addr) { ready <- a }
	go func() { failed <- health.Serve(ctx, cfg) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-failed:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("Serve does not return")
		}
	})
	t.Cleanup(func() { _ = stop() })
	return func() string {
		select {
		case a := <-ready:
			return "http://" + a.String()
		case <-time.After(10 * time.Second):
			t.Fatal("server does not become ready")
			return ""
		}
	}, stop
}

func respond(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestServe(t *testing.T) {
	url, stop := serve(t.Context(), t, health.ServeConfig{Name: "test", Addr: "127.0.0.1:0", Handler: respond("hello")})
	at := url()
	if got := fetch(t, at); got != "hello" {
		t.Errorf("got %q, want %q", got, "hello")
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(at, "http://")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect after stop: got error %v, want %v", err, syscall.ECONNREFUSED)
	}
}

func TestServeStopsDespiteHangingRequest(t *testing.T) {
	running, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	url, stop := serve(t.Context(), t, health.ServeConfig{
		Name: "test", Addr: "127.0.0.1:0",
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(running)
			<-release
		}),
	})
	at := url()
	go func() {
		if resp, err := http.Get(at); err == nil {
			resp.Body.Close()
		}
	}()
	<-running
	began := time.Now()
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("stop took %v, want about a second", took)
	}
}

// occupy listens on a free port of loopback.
func occupy(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestServeWaitsForAddress(t *testing.T) {
	other := occupy(t)
	addr := other.Addr().String()
	ctx, logged := logTo(t)
	url, stop := serve(ctx, t, health.ServeConfig{
		Name: "healthz", Addr: addr, Flag: "--healthz-bind-address", Handler: respond("mine"),
	})
	for !strings.Contains(logged(), "Address is not available") {
		time.Sleep(time.Millisecond)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, url()); got != "mine" {
		t.Errorf("got %q, want %q", got, "mine")
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if !strings.Contains(logged(), "Serving HTTP") {
		t.Errorf("want the address in the log:\n%s", logged())
	}
}

func TestServeComplainsOnce(t *testing.T) {
	addr := occupy(t).Addr().String()
	synctest.Test(t, func(t *testing.T) {
		ctx, logged := logTo(t)
		ctx, cancel := context.WithCancel(ctx)
		failed := make(chan error)
		go func() {
			failed <- health.Serve(ctx, health.ServeConfig{Name: "healthz", Addr: addr, Flag: "--healthz-bind-address"})
		}()
		time.Sleep(time.Minute) // of the bubble: many attempts
		cancel()
		if err := <-failed; err != nil {
			t.Errorf("got error %v, want none", err)
		}
		if n := strings.Count(logged(), "\n"); n != 1 {
			t.Errorf("got %d lines in the log, want 1:\n%s", n, logged())
		}
		for _, want := range []string{addr, "--healthz-bind-address", "address already in use"} {
			if !strings.Contains(logged(), want) {
				t.Errorf("want %q in the log:\n%s", want, logged())
			}
		}
	})
}

func TestServeHardFail(t *testing.T) {
	err := health.Serve(t.Context(), health.ServeConfig{
		Name: "metrics", Addr: occupy(t).Addr().String(), Flag: "--metrics-bind-address", HardFail: true,
	})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "--metrics-bind-address") {
		t.Errorf("got error %v, want %v that names the flag", err, syscall.EADDRINUSE)
	}
}

func TestServeRefusesEmptyAddress(t *testing.T) {
	if err := health.Serve(t.Context(), health.ServeConfig{Name: "test", Flag: "--f"}); err == nil {
		t.Error("Serve listens on an empty address")
	}
}

func TestServeLogsPanics(t *testing.T) {
	ctx, logged := logTo(t)
	url, stop := serve(ctx, t, health.ServeConfig{
		Name: "test", Addr: "127.0.0.1:0",
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("out of rope") }),
	})
	if resp, err := http.Get(url()); err == nil {
		resp.Body.Close()
		t.Errorf("got %s from a handler that panics", resp.Status)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if !strings.Contains(logged(), "out of rope") {
		t.Errorf("want the panic in the log:\n%s", logged())
	}
}
