// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Batch makes n requests at the same time, each with a socket of its own, and
// returns their results, in no order, when all have one. It is for many requests:
// by bare system calls, and with one goroutine for all, they cost a fraction of
// what they cost by Once.
func (p Probe) Batch(ctx context.Context, n int) []Result {
	b := batch{probe: p}
	err := p.From.Do(func() error {
		for range n {
			b.start()
		}
		return nil
	})
	if err != nil {
		return append(b.done, Result{Outcome: Failed, Err: err})
	}
	b.wait(ctx) // a socket stays in its namespace
	return b.done
}

// batch are requests under way.
type batch struct {
	probe   Probe
	pending []*attempt
	done    []Result
}

// attempt is one request under way.
type attempt struct {
	fd      int
	started time.Time
	got     []byte // of the answer
}

// errTimeout ends attempts that got no answer. Like what package net returns, it
// is a timeout.
var errTimeout = fmt.Errorf("no answer: %w", context.DeadlineExceeded)

// start begins a request; the thread is in the namespace.
func (b *batch) start() {
	a := &attempt{fd: -1, started: time.Now()}
	if err := b.open(a); err != nil {
		b.finish(a, err)
		return
	}
	b.pending = append(b.pending, a)
}

func (b *batch) open(a *attempt) (err error) {
	udp := b.probe.Network == "udp"
	domain, kind := unix.AF_INET6, unix.SOCK_STREAM
	if b.probe.To.Addr().Is4() {
		domain = unix.AF_INET
	}
	if udp {
		kind = unix.SOCK_DGRAM
	}
	if a.fd, err = unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if !udp { // for the reason that hearICMP has
		level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		if domain == unix.AF_INET {
			level, option = unix.IPPROTO_IP, unix.IP_RECVERR
		}
		if err := unix.SetsockoptInt(a.fd, level, option, 1); err != nil {
			return err
		}
		// Reset in the end, a connection is remembered nowhere for minutes.
		if err := unix.SetsockoptLinger(a.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	if err := b.bind(a.fd, domain); err != nil {
		return err
	}
	if err := unix.Connect(a.fd, sockaddr(b.probe.To)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if udp {
		if _, err := unix.Write(a.fd, []byte("hello\n")); err != nil && !errors.Is(err, unix.EPERM) { // as sendDatagram
			return err
		}
	}
	return nil
}

// bind binds a socket to where the probe comes from, if it says so. Of its ports it
// leaves out those that earlier requests have still.
func (b *batch) bind(fd, domain int) error {
	from, bound := b.probe.local()
	if !bound {
		return nil
	}
	if domain == unix.AF_INET6 { // else it would have the port of IPv4, too
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	err := unix.Bind(fd, sockaddr(from))
	for tries := b.probe.Ports.len(); errors.Is(err, unix.EADDRINUSE) && tries > 1; tries-- {
		from, _ = b.probe.local()
		err = unix.Bind(fd, sockaddr(from))
	}
	return err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// The pauses between two looks at a batch. To sleep in poll(2) instead would keep
// a CPU from other goroutines, among them servers, until the runtime notices.
const (
	minPause = time.Millisecond
	maxPause = 40 * time.Millisecond
)

// wait waits until every request has a result.
func (b *batch) wait(ctx context.Context) {
	for pause := minPause; ; pause = min(pause*3/2, maxPause) {
		b.look()
		for len(b.pending) > 0 {
			a := b.pending[0] // the oldest
			if ctx.Err() != nil {
				b.end(a, fmt.Errorf("given up: %w", ctx.Err()))
				b.done[len(b.done)-1].Outcome = Failed // it did not time out by itself
			} else if time.Since(a.started) >= b.probe.timeout() {
				b.end(a, errTimeout)
			} else {
				break
			}
		}
		if len(b.pending) == 0 {
			return
		}
		time.Sleep(pause)
	}
}

// look reads what has arrived.
func (b *batch) look() {
	fds := make([]unix.PollFd, len(b.pending))
	for i, a := range b.pending {
		fds[i] = unix.PollFd{Fd: int32(a.fd), Events: unix.POLLIN}
	}
	if _, err := unix.Poll(fds, 0); err != nil {
		return // interrupted: there is a next look
	}
	for i, a := range slices.Clone(b.pending) {
		if fds[i].Revents != 0 {
			b.read(a)
		}
	}
}

// read takes in what an attempt has got, and ends it with the whole answer or
// with an error.
func (b *batch) read(a *attempt) {
	if errno, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
		b.end(a, errors.Join(err, errnoOf(errno)))
		return
	}
	var buf [256]byte
	n, err := unix.Read(a.fd, buf[:])
	switch a.got = append(a.got, buf[:max(n, 0)]...); {
	case errors.Is(err, unix.EAGAIN):
	case err != nil:
		b.end(a, err)
	case bytes.HasSuffix(a.got, []byte("\n")):
		b.end(a, nil)
	case n == 0:
		b.end(a, fmt.Errorf("answer ends after %q", a.got))
	}
}

func errnoOf(n int) error {
	if n == 0 {
		return nil
	}
	return unix.Errno(n)
}

// end ends a pending attempt.
func (b *batch) end(a *attempt, err error) {
	b.pending = slices.DeleteFunc(b.pending, func(other *attempt) bool { return other == a })
	b.finish(a, err)
}

// finish notes the result of an attempt.
func (b *batch) finish(a *attempt, err error) {
	r := Result{Started: a.started, Local: localAddr(a.fd)}
	if err == nil {
		r.Server, r.Source, err = parseGreeting(string(a.got))
	}
	b.done = append(b.done, finish(r, err))
	if a.fd >= 0 {
		_ = unix.Close(a.fd) // nothing unsent is lost
	}
}

// localAddr is the address of a socket, none if it does not have one yet.
func localAddr(fd int) netip.AddrPort {
	if fd < 0 {
		return netip.AddrPort{}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
