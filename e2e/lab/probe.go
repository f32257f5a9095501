// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is what became of a request.
type Outcome int

// The outcomes.
const (
	// Answered: an echo server sent its line.
	Answered Outcome = iota + 1
	// Refused: a TCP reset, or an ICMP error that says port unreachable, as the
	// REJECT target sends it.
	Refused
	// TimedOut: nothing came back, as after a DROP.
	TimedOut
	// Failed: anything else; Result.Err tells.
	Failed
)

// String names the outcome.
func (o Outcome) String() string {
	switch o {
	case Answered:
		return "answered"
	case Refused:
		return "refused"
	case TimedOut:
		return "timed out"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("outcome %d", int(o))
}

// Result is what a client saw of one request.
type Result struct {
	Outcome Outcome
	// Server and Source are set if answered: the name of the server, and the
	// address and port that it saw the request come from.
	Server string
	Source netip.AddrPort
	// Local is the client's own address and port, if it came to have one.
	Local netip.AddrPort
	// Started and Took tell when the request was made and how long it took.
	Started time.Time
	Took    time.Duration
	// Err is the cause if not answered.
	Err error
}

// String is a short form for failure messages.
func (r Result) String() string {
	switch r.Outcome {
	case 0:
		return "no result yet"
	case Answered:
		return fmt.Sprintf("answered by %s, which saw %s", r.Server, r.Source)
	}
	return fmt.Sprintf("%s: %v", r.Outcome, r.Err)
}

// defaultTimeout is below the second after which TCP repeats a lost SYN, so
// that a request shows the fate of one packet.
const defaultTimeout = 900 * time.Millisecond

// Probe is a client in a namespace and the server that it asks.
type Probe struct {
	// From is where the client is.
	From *NS
	// Network is "tcp" or "udp".
	Network string
	// To is whom it asks.
	To netip.AddrPort
	// Source is the client's address where it has several; else the kernel
	// chooses. The source port is a new one for each request, of Ports if those are
	// given.
	Source netip.Addr
	Ports  *Ports
	// Timeout bounds one request. The default is 900 ms.
	Timeout time.Duration
}

// String names the probe for messages: "client → 10.96.0.10:80/tcp".
func (p Probe) String() string {
	return fmt.Sprintf("%s → %s/%s", p.From.Label, p.To, p.Network)
}

// Once makes one request with a socket of its own.
func (p Probe) Once(ctx context.Context) Result {
	var r Result
	if err := p.From.Do(func() error { r = p.request(ctx); return nil }); err != nil {
		return Result{Outcome: Failed, Err: err}
	}
	return r
}

// request makes one request; the thread is in the namespace.
func (p Probe) request(ctx context.Context) Result {
	started := time.Now()
	limited, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	var r Result
	if conn, err := p.dial(limited); err != nil {
		r = finish(Result{Started: started}, err)
	} else {
		defer conn.Close()
		r = ask(limited, conn, started)
	}
	if r.Outcome == TimedOut && ctx.Err() != nil { // the caller gave up, not the request
		r.Outcome, r.Err = Failed, ctx.Err()
	}
	return r
}

func (p Probe) timeout() time.Duration {
	if p.Timeout > 0 {
		return p.Timeout
	}
	return defaultTimeout
}

// ask gets the server's line on a connection, for UDP by sending something.
func ask(ctx context.Context, conn net.Conn, started time.Time) Result {
	r := Result{Started: started, Local: peerOf(conn.LocalAddr())}
	stop := bound(ctx, conn)
	defer stop()
	if _, udp := conn.(*net.UDPConn); udp {
		if err := sendDatagram(conn); err != nil {
			return finish(r, err)
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil {
		r.Server, r.Source, err = parseGreeting(line)
	}
	return finish(r, err)
}

// bound makes reads and writes on conn end with ctx.
func bound(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

// sendDatagram sends a request. Rules in OUTPUT that discard it make that fail
// with EPERM, with REJECT and DROP alike; only a read tells them apart.
func sendDatagram(conn net.Conn) error {
	if _, err := conn.Write([]byte("hello\n")); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

func parseGreeting(line string) (server string, source netip.AddrPort, err error) {
	server, peer, _ := strings.Cut(strings.TrimSpace(line), " ")
	if source, err = netip.ParseAddrPort(peer); err != nil {
		return "", source, fmt.Errorf("parse answer %q: %w", line, err)
	}
	return server, source, nil
}

// finish classifies a request that ended with err.
func finish(r Result, err error) Result {
	r.Took, r.Err = time.Since(r.Started), err
	var timeout net.Error
	switch {
	case err == nil:
		r.Outcome = Answered
	case errors.Is(err, unix.ECONNREFUSED):
		r.Outcome = Refused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		r.Outcome = TimedOut
	default:
		r.Outcome = Failed
	}
	return r
}
