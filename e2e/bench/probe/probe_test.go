// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// newNode makes a node with a pod that serves port 80. On port 81 nobody serves.
func newNode(t *testing.T) (from Client, pod *lab.NS) {
	t.Helper()
	if err := lab.Supported(t.Context()); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Config{Pods: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	pod = l.Nodes[0].Pods[0]
	server, err := Serve(pod, netip.AddrPortFrom(netip.IPv4Unspecified(), 80))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return Client{NS: l.Nodes[0].NS}, pod
}

func TestKernelLatencies(t *testing.T) {
	from, pod := newNode(t)
	to := pod.Addr(model.IPv4)
	got, err := Latencies(t.Context(), []Target{
		{from, netip.AddrPortFrom(to, 80)}, {from, netip.AddrPortFrom(to, 80)},
	}, 120)
	if err != nil {
		t.Fatal(err)
	}
	for i, samples := range got {
		if len(samples) < 120 {
			t.Errorf("target %d: got %d samples, want at least 120", i, len(samples))
		}
		for _, d := range samples {
			if d <= 0 || d >= patience {
				t.Errorf("target %d: a connect took %s", i, d)
			}
		}
	}
	_, err = Latencies(t.Context(), []Target{{from, netip.AddrPortFrom(to, 81)}}, 10)
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("to a port without a server: got error %v, want that it is refused", err)
	}
}

// TestKernelAwait: each outcome is seen, whether it is there or comes.
func TestKernelAwait(t *testing.T) {
	from, pod := newNode(t)
	to := pod.Addr(model.IPv4)
	for _, c := range []struct {
		name string
		to   netip.AddrPort
		want Outcome
	}{
		{"connected", netip.AddrPortFrom(to, 80), Connected},
		{"refused", netip.AddrPortFrom(to, 81), Refused},
		{"no answer", netip.MustParseAddrPort("10.96.0.1:80"), NoAnswer}, // the gateway drops it
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			at, err := from.Await(t.Context(), c.to, c.want, 3)
			if err != nil {
				t.Fatal(err)
			}
			if at.Before(begin) || at.After(time.Now()) {
				t.Errorf("it was seen at %s, and waited for from %s to %s", at, begin, time.Now())
			}
		})
	}

	t.Run("comes", func(t *testing.T) {
		type result struct {
			at  time.Time
			err error
		}
		seen := make(chan result)
		go func() {
			at, err := from.Await(t.Context(), netip.AddrPortFrom(to, 81), Connected, 2)
			seen <- result{at, err}
		}()
		// It is being waited for when a client is refused by the same port.
		if _, err := from.Await(t.Context(), netip.AddrPortFrom(to, 81), Refused, 20); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		server, err := Serve(pod, netip.AddrPortFrom(to, 81))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if got := <-seen; got.err != nil || got.at.Before(begin) {
			t.Errorf("it was seen at %s, error %v; the server came after %s", got.at, got.err, begin)
		}
	})

	t.Run("never comes", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := from.Await(ctx, netip.AddrPortFrom(to, 82), Connected, 1)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got error %v, want that time is up, and that it was refused last", err)
		}
	})
}

// TestTurns: processors take turns, however they are numbered, and a thread may run
// everywhere after it has been on one.
func TestTurns(t *testing.T) {
	var cpus unix.CPUSet
	for _, cpu := range []int{1, 4, 70} {
		cpus.Set(cpu)
	}
	for turn, want := range []int{1, 4, 70, 1, 4, 70} {
		if got := nth(&cpus, turn); got != want {
			t.Errorf("turn %d is on processor %d, want %d", turn, got, want)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, during, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	cpu := nth(&before, before.Count()-1)
	if err := onCPU(cpu, func() error { return unix.SchedGetaffinity(0, &during) }); err != nil {
		t.Fatal(err)
	}
	if during.Count() != 1 || !during.IsSet(cpu) {
		t.Errorf("ran on %d processors, want on %d alone", during.Count(), cpu)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Errorf("may run on %d processors afterwards (%v), want %d", after.Count(), err, before.Count())
	}
}
