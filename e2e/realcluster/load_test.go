// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// load asks addresses all the time, from one client, and takes down what fails. It
// repeats nothing.
type load struct {
	from *lab.NS
	done sync.WaitGroup

	mu sync.Mutex
	tally
}

// tally is what became of requests.
type tally struct {
	asked int
	// reset is how many failed because the connection was cut.
	reset   int
	failed  []string
	slowest time.Duration
}

// patience is how long an answer may take: long enough for a machine that has much else to
// do. Where a node port or a host port leads nowhere, a client hears of it at once.
const patience = 30 * time.Second

// perSecond is how many requests there are in a second at least, to all addresses together.
const perSecond = 200

// startAll asks addresses until ctx is done, a tenth more often than perSecond.
func (l *load) startAll(ctx context.Context, addrs []string) {
	for _, addr := range addrs {
		l.start(ctx, addr, perSecond*11/10/len(addrs))
	}
}

// start asks an address so many times in a second until stop is called: half of that by
// one connection that is kept, half by a new connection each.
func (l *load) start(ctx context.Context, addr string, perSecond int) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	every := 2 * time.Second / time.Duration(perSecond)
	l.done.Go(func() { l.keep(ctx, addr, every) })
	l.done.Go(func() { l.anew(ctx, addr, every) })
	return cancel
}

// regularly does something every so often until ctx is done. What comes late because the
// machine is busy is made up for.
func regularly(ctx context.Context, every time.Duration, do func()) {
	for next := time.Now(); ; next = next.Add(every) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
			do()
		}
	}
}

// keep asks by one connection. Where that breaks, it takes another one, so that the
// failure is one.
func (l *load) keep(ctx context.Context, addr string, every time.Duration) {
	var conn net.Conn
	var in *bufio.Reader
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	regularly(ctx, every, func() {
		var err error
		began := time.Now()
		if conn == nil {
			if conn, err = l.dial(addr); err == nil {
				in = bufio.NewReader(conn)
			}
		}
		if err == nil {
			err = ask(conn, in)
		}
		if l.note("kept", addr, began, err); err != nil && conn != nil {
			conn.Close()
			conn = nil
		}
	})
}

// anew asks by a new connection each time.
func (l *load) anew(ctx context.Context, addr string, every time.Duration) {
	regularly(ctx, every, func() {
		l.done.Go(func() {
			began := time.Now()
			conn, err := l.dial(addr)
			if err == nil {
				err = ask(conn, bufio.NewReader(conn))
				conn.Close()
			}
			l.note("new", addr, began, err)
		})
	})
}

func (l *load) dial(addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return l.from.Dial(ctx, "tcp", addr)
}

// ask asks by a connection.
func ask(conn net.Conn, in *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (l *load) note(kind, addr string, began time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	l.slowest = max(l.slowest, time.Since(began))
	if err != nil {
		l.failed = append(l.failed, fmt.Sprintf("%s: %s connection to %s: %v", began.Format("15:04:05.000"), kind, addr, err))
	}
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) {
		l.reset++
	}
}

// take returns what became of requests since the last call.
func (l *load) take() (t tally) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, l.tally = l.tally, t
	return t
}

// String tells it in a line.
func (t tally) String() string {
	return fmt.Sprintf("%d requests, %d failed, %d of them reset, the slowest took %s", t.asked, len(t.failed), t.reset, t.slowest.Round(time.Millisecond))
}

// check waits until a time is over, and checks that nothing has failed since the last
// call, and that perSecond has been asked at least.
func (l *load) check(ctx context.Context, t *testing.T, what string, since time.Time, atLeast time.Duration) {
	t.Helper()
	select {
	case <-time.After(time.Until(since.Add(atLeast))):
	case <-ctx.Done():
		t.Fatalf("%s: %v", what, ctx.Err())
	}
	took := time.Since(since)
	made := l.take()
	t.Logf("%s: %.1f s, %s", what, took.Seconds(), made)
	if want := int(took.Seconds() * perSecond); made.asked < want {
		t.Errorf("%s: %d requests in %s, want %d", what, made.asked, took, want)
	}
	for i, f := range made.failed {
		if i == 10 {
			t.Errorf("%s: and %d more", what, len(made.failed)-10)
			break
		}
		t.Errorf("%s: %s", what, f)
	}
}
