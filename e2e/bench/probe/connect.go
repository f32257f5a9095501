// SPDX-License-Identifier: Apache-2.0

// Package probe measures a node from outside of what programs it: how long
// connect(2) takes, and from when on it works or is refused. It makes the system
// calls itself, as what it measures takes tens of microseconds.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
)

// Client makes TCP connections over IPv4 from a namespace.
type Client struct {
	NS *lab.NS
}

// Target is what a client connects to.
type Target struct {
	From Client
	To   netip.AddrPort
}

const (
	// patience bounds a connect whose duration is measured.
	patience = time.Second
	// round is how many connects go to one target before the next one's turn.
	round = 50
)

// Latencies measures how long connect takes, n times for each target. The
// targets take turns, on each processor in turn, so that what else the machine does
// meets all of them alike: where processors are shared, one may be slower by half.
// It is an error if one fails.
func Latencies(ctx context.Context, targets []Target, n int) ([][]time.Duration, error) {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &cpus); err != nil {
		return nil, fmt.Errorf("ask for processors: %w", err)
	}
	out := make([][]time.Duration, len(targets))
	warm := true // the first round does not count
	for turn := 0; len(out[len(out)-1]) < n; turn++ {
		cpu := nth(&cpus, turn)
		for i, t := range targets {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			got, err := t.From.latencies(t.To, min(round, n), cpu)
			if err != nil {
				return nil, fmt.Errorf("connect to %s from %s: %w", t.To, t.From.NS.Label, err)
			}
			if !warm {
				out[i] = append(out[i], got...)
			}
		}
		warm = false
	}
	return out, nil
}

// nth returns the n-th processor of a set, again from the first after the last.
func nth(cpus *unix.CPUSet, n int) int {
	n %= cpus.Count()
	for cpu := 0; ; cpu++ {
		if !cpus.IsSet(cpu) {
			continue
		}
		if n == 0 {
			return cpu
		}
		n--
	}
}

// onCPU runs f, in the calling goroutine's thread, on one processor.
func onCPU(cpu int, f func() error) (err error) {
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("ask for processors: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("stay on processor %d: %w", cpu, err)
	}
	defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &before)) }()
	return f()
}

func (c Client) latencies(to netip.AddrPort, n, cpu int) ([]time.Duration, error) {
	out := make([]time.Duration, 0, n)
	addr := sockaddr(to)
	connects := func() error {
		for len(out) < n {
			took, err := timed(&addr)
			if errors.Is(err, unix.EINTR) { // a signal of Go's scheduler
				continue
			}
			if err != nil {
				return err
			}
			out = append(out, took)
		}
		return nil
	}
	err := c.NS.Do(func() error { return onCPU(cpu, connects) })
	return out, err
}

// timed connects once. The system call is a raw one: the scheduler, told of it,
// would add more than the call takes.
func timed(addr *unix.RawSockaddrInet4) (time.Duration, error) {
	fd, err := socket(0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return 0, err
	}
	start := time.Now()
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(addr)), unix.SizeofSockaddrInet4)
	took := time.Since(start)
	runtime.KeepAlive(addr)
	if errno != 0 {
		return 0, errno
	}
	return took, nil
}

// socket makes a socket that hears ICMP errors at once, and that leaves nothing
// behind when it is closed: it resets its connection.
func socket(flags int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

func sockaddr(to netip.AddrPort) unix.RawSockaddrInet4 {
	port := to.Port()
	return unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4(), Port: port<<8 | port>>8}
}
