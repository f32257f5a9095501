// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// TestGate: of many requests one is tried while there is no answer, and all are made once
// there is.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5
		g := newGate()
		var down atomic.Bool
		var tries, failures atomic.Int32
		down.Store(true)
		var done sync.WaitGroup
		for range n {
			done.Go(func() {
				err := g.pass(t.Context(), func() error {
					tries.Add(1)
					if down.Load() {
						return refusedConnection("/", 1)
					}
					return nil
				}, func(error) { failures.Add(1) })
				if err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Hour)
		if got := tries.Load(); got < 1800 || got > 3600+n {
			t.Errorf("%d requests in an hour, want one in a second or two", got)
		}
		if got := failures.Load(); got < tries.Load() {
			t.Errorf("of %d failures %d are told", tries.Load(), got)
		}
		down.Store(false)
		tries.Store(0)
		back := time.Now()
		done.Wait()
		if took := time.Since(back); took > 2*time.Second {
			t.Errorf("all were through after %v, want two seconds at most", took)
		}
		if got := tries.Load(); got != n {
			t.Errorf("%d requests once there are answers, want %d", got, n)
		}
	})
}

// TestGateSpreads: many agents do not come back all at once.
func TestGateSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const agents = 1000
		var down atomic.Bool
		down.Store(true)
		var mu sync.Mutex
		var back []time.Time
		var done sync.WaitGroup
		for range agents {
			g := newGate()
			done.Go(func() {
				_ = g.pass(t.Context(), func() error {
					if down.Load() {
						return refusedConnection("/", 1)
					}
					mu.Lock()
					defer mu.Unlock()
					back = append(back, time.Now())
					return nil
				}, func(error) {})
			})
		}
		time.Sleep(2 * time.Minute)
		down.Store(false)
		done.Wait()
		slices.SortFunc(back, time.Time.Compare)
		for i := range back {
			j := i
			for j < len(back) && back[j].Sub(back[i]) < 100*time.Millisecond {
				j++
			}
			if j-i > agents/5 {
				t.Fatalf("%d of %d come back within a tenth of a second", j-i, agents)
			}
		}
	})
}

// TestGateLetsAnswersThrough: what the API server has said is for client-go to deal with,
// and so is the end.
func TestGateLetsAnswersThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		certificate := &url.Error{Op: "Get", Err: &tls.CertificateVerificationError{Err: errors.New("unknown authority")}}
		for _, want := range []error{nil, errors.New("forbidden"), certificate} {
			if got := g.pass(t.Context(), func() error { return want }, func(error) {}); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		refuse := func() error { return refusedConnection("/", 1) }
		var done sync.WaitGroup
		for range 3 {
			done.Go(func() { _ = g.pass(ctx, refuse, func(error) {}) })
		}
		done.Wait()
		if err := g.pass(t.Context(), func() error { return nil }, func(error) {}); err != nil {
			t.Errorf("after others gave up: %v", err)
		}
	})
}

// TestWatchOfNothing: client-go makes an empty watch of a connection that breaks. It is
// told, and tried again.
func TestWatchOfNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(c))
			c.Close()
		}
	}()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client, err := newClient(&rest.Config{Host: "http://" + l.Addr().String(), Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan error, 100)
	w, err := pass(ctx, client.gate, tell(func(err error) {
		if told <- err; len(told) == 2 {
			cancel()
		}
	}), "nodes", func() (any, error) { return orBroken(client.nodes.Watch(ctx, metav1.ListOptions{})) })
	if err == nil {
		t.Errorf("got the watch %v, want an error", w)
	}
	if got := <-told; got != error(errBroken) {
		t.Errorf("told %v, want %v", got, errBroken)
	}
}

// tell is an outcomes.
type tell func(error)

func (t tell) failed(_ context.Context, _ string, err error) { t(err) }
func (t tell) watching(context.Context, string)              {}
