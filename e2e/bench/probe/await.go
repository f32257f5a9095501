// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is how a connect ended.
type Outcome int

// The outcomes.
const (
	// NoAnswer is what a virtual address without rules gives.
	NoAnswer Outcome = iota
	Connected
	Refused
)

// String returns the outcome in words.
func (o Outcome) String() string {
	return [...]string{"no answer", "connected", "refused"}[o]
}

const (
	// answerTime is how long an answer may take: a hundred times what it takes.
	answerTime = 5 * time.Millisecond
)

// pause is the time between two connects of Await. Half of it is how much too late
// Await sees a change, on average. A single processor is left to what it waits for.
func pause() time.Duration {
	if runtime.NumCPU() == 1 {
		return 2 * time.Millisecond
	}
	return 250 * time.Microsecond
}

// Await connects again and again until streak connects in a row have ended as
// wanted. It returns when the first of these had ended.
func (c Client) Await(ctx context.Context, to netip.AddrPort, want Outcome, streak int) (time.Time, error) {
	var first time.Time
	addr := &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	err := c.NS.Do(func() error {
		var last Outcome
		for n := 0; n < streak; {
			if ctx.Err() != nil {
				return fmt.Errorf("wait until connect to %s from %s is %s: %w; last it was %s", to, c.NS.Label, want, ctx.Err(), last)
			}
			var err error
			if last, err = try(addr); err != nil {
				return fmt.Errorf("connect to %s from %s: %w", to, c.NS.Label, err)
			}
			switch {
			case last != want:
				n = 0
			case n == 0:
				first = time.Now()
				n++
			default:
				n++
			}
			if n < streak {
				time.Sleep(pause())
			}
		}
		return nil
	})
	return first, err
}

// try connects once.
func try(addr *unix.SockaddrInet4) (Outcome, error) {
	fd, err := socket(unix.SOCK_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, addr)
	if errors.Is(err, unix.EINPROGRESS) {
		answered, perr := poll(fd)
		if perr != nil || !answered {
			return NoAnswer, perr
		}
		var n int
		if n, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && n != 0 {
			err = unix.Errno(n)
		}
	}
	switch {
	case err == nil:
		return Connected, nil
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused, nil
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EPERM):
		return NoAnswer, nil // from who routes, or from a rule that drops
	}
	return 0, err
}

// poll waits for the end of a connect, and reports whether there is one.
func poll(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for deadline := time.Now().Add(answerTime); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return false, nil
		}
		n, err := unix.Poll(fds, int((left+time.Millisecond-1)/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			return n == 1, err
		}
	}
}
