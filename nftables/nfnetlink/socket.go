// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a netlink socket to the kernel.
type socket struct {
	fd     int
	portID uint32
	// sndbuf is how long a datagram may be.
	sndbuf int
	buf    []byte
}

const (
	// patience is how long the kernel is waited for: it answers once it has done what
	// was asked, of which other transactions may be in the way.
	patience = time.Minute
	// receiveBuffer holds what of a dump comes at once, and the answers to a transaction.
	receiveBuffer = 1 << 20
)

func open() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &socket{fd: fd, buf: make([]byte, 1<<16)}
	fail := func(err error) (*socket, error) {
		return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), unix.Close(fd))
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fail(err)
	}
	s.portID = name.(*unix.SockaddrNetlink).Pid
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return fail(err)
	}
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fail(err)
	}
	return s, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// send sends a datagram, however long it is.
func (s *socket) send(b []byte) error {
	if need := len(b) + 4096; need > s.sndbuf {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, need); err != nil {
			return fmt.Errorf("make room for a netlink message of %d bytes: %w", len(b), err)
		}
		s.sndbuf = need
	}
	return retried(func() error {
		return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

// receive returns a datagram, which is good until the next call.
func (s *socket) receive() ([]byte, error) {
	var n int
	err := retried(func() (err error) {
		n, _, err = unix.Recvfrom(s.fd, s.buf, 0)
		return err
	})
	if errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("no answer within %s: %w", patience, os.ErrDeadlineExceeded)
	}
	return s.buf[:max(n, 0)], err
}

func retried(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// dump sends a request and hands over the messages of the answer. An error of
// unix.EINTR says that what was listed changed meanwhile.
func (s *socket) dump(req []byte, seq uint32, yield func(message) error) error {
	if err := s.send(req); err != nil {
		return err
	}
	var first error
	for done := false; !done; {
		b, err := s.receive()
		if err != nil {
			return err
		}
		whole := messages(b, func(m message) bool {
			if m.seq != seq || m.sender != s.portID { // an answer that nobody waited for
				return true
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 && first == nil {
				first = unix.EINTR
			}
			switch m.kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if err := errnoOf(m.body); err != nil && first == nil {
					first = err
				}
				return false
			}
			if first == nil {
				first = yield(m)
			}
			return true
		})
		if !whole && !done {
			return errors.New("netlink message is cut off")
		}
	}
	return first
}

// errnoOf reads the error at the beginning of an answer, nil where there is none.
func errnoOf(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if n := -int32(nativeUint32(body)); n != 0 {
		return unix.Errno(n)
	}
	return nil
}

// guarded is a socket that one at a time uses.
type guarded struct {
	mu  sync.Mutex
	s   *socket
	seq uint32
}
