// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Tally counts the results of several requests.
type Tally struct {
	// Servers counts the answers by server.
	Servers map[string]int
	// Sources counts the answers by the address the server saw.
	Sources map[netip.Addr]int
	// Refused, TimedOut and Failed count the requests without an answer.
	Refused, TimedOut, Failed int
	// Err is the cause of the first request that failed.
	Err error
}

// Spread makes n requests one after the other.
func (p Probe) Spread(ctx context.Context, n int) Tally {
	t := Tally{Servers: map[string]int{}, Sources: map[netip.Addr]int{}}
	err := p.From.Do(func() error {
		for range n {
			t.add(p.request(ctx))
		}
		return ctx.Err()
	})
	if t.Err == nil {
		t.Err = err
	}
	return t
}

func (t *Tally) add(r Result) {
	switch r.Outcome {
	case Answered:
		t.Servers[r.Server]++
		t.Sources[r.Source.Addr()]++
	case Refused:
		t.Refused++
	case TimedOut:
		t.TimedOut++
	default:
		t.Failed++
		if t.Err == nil {
			t.Err = r.Err
		}
	}
}

const (
	// gap is the time between two requests of a wait.
	gap = time.Millisecond
	// maxInFlight bounds the requests of a wait that have no result yet.
	maxInFlight = 64
	// waitTimeout is the default timeout of each: below gap × maxInFlight, so
	// that unanswered requests never hold up the next.
	waitTimeout = 50 * time.Millisecond
	// waitLimit bounds a wait whose context has no deadline.
	waitLimit = 30 * time.Second
)

// WaitFor makes a request every millisecond until one satisfies want, and
// returns that result and the time from the call to its end. A request that
// hangs does not delay the next. It ends with an error with ctx, or after 30 s
// if that has no deadline. Unless Timeout says otherwise a request has 50 ms.
func (p Probe) WaitFor(ctx context.Context, want func(Result) bool) (Result, time.Duration, error) {
	start := time.Now()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, waitLimit)
		defer cancel()
	}
	if p.Timeout == 0 {
		p.Timeout = waitTimeout
	}
	return p.poll(ctx, start, want)
}

func (p Probe) poll(ctx context.Context, start time.Time, want func(Result) bool) (last Result, _ time.Duration, _ error) {
	requests, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	results := make(chan Result, maxInFlight)
	inFlight := 0
	launch := func() {
		inFlight++
		wg.Go(func() { results <- p.Once(requests) })
	}
	tick := time.NewTicker(gap)
	defer tick.Stop()
	for launch(); ; {
		select {
		case <-ctx.Done():
			return last, time.Since(start), fmt.Errorf("wait on %s: %w; last request %s", p, ctx.Err(), last)
		case last = <-results:
			inFlight--
			if want(last) {
				return last, last.Started.Add(last.Took).Sub(start), nil
			}
		case <-tick.C:
			if inFlight < maxInFlight {
				launch()
			}
		}
	}
}

// WaitUntil waits as WaitFor does until a request has the outcome. For TimedOut
// it returns the time to the start of the request that got no answer, and gives
// each request the timeout of Once.
func (p Probe) WaitUntil(ctx context.Context, want Outcome) (time.Duration, error) {
	if want == TimedOut && p.Timeout == 0 {
		p.Timeout = defaultTimeout
	}
	r, elapsed, err := p.WaitFor(ctx, func(r Result) bool { return r.Outcome == want })
	if want == TimedOut && err == nil {
		elapsed -= r.Took
	}
	return elapsed, err
}

// Held is a connection that stays open, for UDP a socket that is kept: packets
// on it keep their source port, and so their conntrack entry.
type Held struct {
	// First is what the server said at the beginning.
	First Result

	conn    net.Conn
	timeout time.Duration
	n       int
}

// Hold opens a connection and keeps it. It is an error if no server answers.
func (p Probe) Hold(ctx context.Context) (*Held, error) {
	h := &Held{timeout: p.timeout()}
	err := p.From.Do(func() error {
		ctx, cancel := context.WithTimeout(ctx, h.timeout)
		defer cancel()
		started := time.Now()
		conn, err := p.dial(ctx)
		if err != nil {
			return err
		}
		h.conn, h.First = conn, ask(ctx, conn, started)
		return h.First.Err
	})
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("hold %s: %w", p, err)
	}
	return h, nil
}

// Ping sends on the connection and waits for the answer. For TCP the server
// cannot change; for UDP the result tells who answers now.
func (h *Held) Ping(ctx context.Context) Result {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	if _, udp := h.conn.(*net.UDPConn); udp {
		return ask(ctx, h.conn, started)
	}
	stop := bound(ctx, h.conn)
	defer stop()
	h.n++
	r := h.First
	r.Started = started
	sent := fmt.Sprintf("ping %d\n", h.n)
	if _, err := h.conn.Write([]byte(sent)); err != nil {
		return finish(r, err)
	}
	got, err := bufio.NewReader(h.conn).ReadString('\n')
	if err == nil && got != sent {
		err = fmt.Errorf("echo on %s: got %q, want %q", h.conn.RemoteAddr(), got, sent)
	}
	return finish(r, err)
}

// Close closes the connection. It may be called again.
func (h *Held) Close() {
	if h.conn != nil {
		_ = h.conn.Close() // nothing unsent is lost
	}
}
