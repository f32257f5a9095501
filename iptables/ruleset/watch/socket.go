// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errLost says that notifications have been lost: the receive buffer was full,
// or the kernel had no memory for them.
var errLost = errors.New("notifications lost")

const (
	// receiveBuffer is the size of the receive buffer in bytes, of which the
	// kernel takes memory only for what is queued, and twice as much. It holds
	// the notifications of some 100,000 rules.
	receiveBuffer = 16 << 20
	// maxDatagram is more than any datagram of notifications has. The kernel
	// fills them up to a page (NLMSG_GOODSIZE, linux/netlink.h).
	maxDatagram = 64 << 10
)

// socket receives the notifications of nf_tables for one network namespace.
type socket struct {
	file *os.File
	conn syscall.RawConn
	buf  []byte
	// ask is for questions. Answers on the other socket would have to be told
	// from notifications, and would be lost with them.
	ask int
}

// openSocket joins the group in the calling thread's network namespace.
func openSocket(buffer int) (*socket, error) {
	fd, err := netlinkSocket(unix.SOCK_NONBLOCK)
	if err != nil {
		return nil, err
	}
	ask, err := netlinkSocket(0)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &socket{ask: ask, buf: make([]byte, maxDatagram), file: os.NewFile(uintptr(fd), "nf_tables")}
	if err := s.join(fd, buffer); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func netlinkSocket(flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("bind netlink socket: %w", err)
	}
	return fd, nil
}

func (s *socket) join(fd, buffer int) error {
	var err error
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return fmt.Errorf("use netlink socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("listen to nf_tables: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(s.ask, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("set receive timeout: %w", err)
	}
	return nil
}

// Wait blocks until there may be something to receive, or Stop was called.
func (s *socket) Wait() error {
	var ready bool
	err := s.conn.Read(func(fd uintptr) bool {
		// Only what comes after this is called wakes the caller.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		ready = n > 0 || err != nil
		return ready
	})
	return err
}

// Receive hands each datagram that is there to f, and waits for none. The
// datagram is f's only until f returns. An error wraps errLost if some are
// missing from what came.
func (s *socket) Receive(f func(datagram []byte)) error {
	var lost, failed error
	err := s.conn.Control(func(fd uintptr) {
		for failed == nil {
			n, from, err := unix.Recvfrom(int(fd), s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			switch sender, _ := from.(*unix.SockaddrNetlink); {
			case errors.Is(err, unix.EAGAIN):
				return
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.ENOBUFS) || n > len(s.buf):
				lost = errLost
			case err != nil:
				failed = fmt.Errorf("receive from netlink socket: %w", err)
			case sender != nil && sender.Pid == 0: // from the kernel
				f(s.buf[:n])
			}
		}
	})
	return errors.Join(err, failed, lost)
}

// Generation asks for the number of commits that this network namespace has
// seen. It wraps around.
func (s *socket) Generation() (uint32, error) {
	if err := unix.Sendto(s.ask, generationRequest(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask for the generation of nf_tables: %w", err)
	}
	var buf [4096]byte
	n, _, err := unix.Recvfrom(s.ask, buf[:], 0)
	if err != nil {
		return 0, fmt.Errorf("receive the generation of nf_tables: %w", err)
	}
	for m := range messages(buf[:n]) {
		if m.kind == unix.NFT_MSG_NEWGEN {
			if gen, ok := m.generation(); ok {
				return gen, nil
			}
		}
	}
	return 0, fmt.Errorf("receive the generation of nf_tables: %w", errMalformed)
}

// Stop ends Wait, now and from now on.
func (s *socket) Stop() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }

// Close leaves the group. Nothing but Close may be called after it.
func (s *socket) Close() error { return errors.Join(s.file.Close(), unix.Close(s.ask)) }
