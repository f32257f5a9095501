// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// load asks addresses all the time, from one client, and takes down what fails. It
// repeats nothing.
type load struct {
	from *lab.NS
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	asked  int
	failed []string
}

// patience is how long an answer may take.
const patience = 5 * time.Second

// startLoad asks each address so many times in a second: half of that by one connection
// that is kept, half by a new connection each.
func startLoad(ctx context.Context, from *lab.NS, perSecond int, addrs ...string) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{from: from, stop: cancel}
	every := 2 * time.Second / time.Duration(perSecond)
	for _, addr := range addrs {
		l.done.Go(func() { l.keep(ctx, addr, every) })
		l.done.Go(func() { l.anew(ctx, addr, every) })
	}
	return l
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
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		if conn == nil {
			if conn, err = l.dial(addr); err == nil {
				in = bufio.NewReader(conn)
			}
		}
		if err == nil {
			err = ask(conn, in)
		}
		if l.note("kept", addr, err); err != nil && conn != nil {
			conn.Close()
			conn = nil
		}
	}
}

// anew asks by a new connection each time.
func (l *load) anew(ctx context.Context, addr string, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.done.Go(func() {
			conn, err := l.dial(addr)
			if err == nil {
				err = ask(conn, bufio.NewReader(conn))
				conn.Close()
			}
			l.note("new", addr, err)
		})
	}
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

func (l *load) note(kind, addr string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if err != nil {
		l.failed = append(l.failed, fmt.Sprintf("%s: %s connection to %s: %v", time.Now().Format("15:04:05.000"), kind, addr, err))
	}
}

// take returns what has been asked, and what has failed, since the last call.
func (l *load) take() (asked int, failed []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	asked, failed = l.asked, l.failed
	l.asked, l.failed = 0, nil
	return asked, failed
}

// check waits for a time, and checks that nothing has failed since the last call, and
// that enough has been asked.
func (l *load) check(ctx context.Context, t *testing.T, what string, since time.Time, atLeast time.Duration, perSecond int) {
	t.Helper()
	select {
	case <-time.After(time.Until(since.Add(atLeast))):
	case <-ctx.Done():
		t.Fatalf("%s: %v", what, ctx.Err())
	}
	took := time.Since(since)
	asked, failed := l.take()
	t.Logf("%s: %d requests in %s, %d failed", what, asked, took.Round(time.Second), len(failed))
	if want := int(took.Seconds()) * perSecond * 8 / 10; asked < want {
		t.Errorf("%s: %d requests in %s, want %d", what, asked, took, want)
	}
	for i, f := range failed {
		if i == 10 {
			t.Errorf("%s: and %d more", what, len(failed)-10)
			break
		}
		t.Errorf("%s: %s", what, f)
	}
}
