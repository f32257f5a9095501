// SPDX-License-Identifier: Apache-2.0

// Package batch sends netlink requests many at a time. Libraries send one, ask for
// their own address and wait for an answer, which is what a first sync of tens of
// thousands of objects would mostly be.
package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// size is how many requests go into one message: of 150 bytes each, a sixth of what
// a socket takes at once by default (net.core.wmem_default). The kernel answers all of
// it before the send is over, so the answers have to have room, too.
const size = 200

// patience bounds how long an answer is awaited, which is there when the request has
// been sent.
const patience = 10 * time.Second

// Socket is a netlink socket in the network namespace of the thread that called Open;
// its methods may be called from any. It is safe for concurrent use.
type Socket struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// Open opens a socket of a protocol, unix.NETLINK_ROUTE for one.
func Open(protocol int) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	t := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t),
		// An error comes without the request that it is about.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &Socket{fd: fd, buf: make([]byte, 1<<16)}, nil
}

// Close closes the socket.
func (s *Socket) Close() { _ = unix.Close(s.fd) }

// Do has the kernel do all requests, in order, and calls failed for each that it
// refuses; the others it does all the same. After an error, it may have done some.
func (s *Socket) Do(requests []*nl.NetlinkRequest, failed func(i int, err error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := 0
	for part := range slices.Chunk(requests, size) {
		err := s.do(part, func(i int, err error) { failed(first+i, err) })
		if err != nil {
			return err
		}
		first += len(part)
	}
	return nil
}

// do does what goes into one message. Only the last request asks for an answer, but
// errors are told of each.
func (s *Socket) do(requests []*nl.NetlinkRequest, failed func(i int, err error)) error {
	first := s.seq + 1
	var out []byte
	for i, r := range requests {
		s.seq++
		r.Seq, r.Flags = s.seq, r.Flags&^unix.NLM_F_ACK
		if i == len(requests)-1 {
			r.Flags |= unix.NLM_F_ACK
		}
		out = append(out, r.Serialize()...)
	}
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink requests: %w", err)
	}
	for {
		answers, err := s.receive()
		if err != nil {
			return fmt.Errorf("await the end of netlink requests: %w", err)
		}
		for _, m := range answers {
			i := m.Header.Seq - first
			if m.Header.Type != unix.NLMSG_ERROR || int(i) >= len(requests) || len(m.Data) < 4 {
				continue // of requests that an error has cut off
			}
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				failed(int(i), syscall.Errno(-code))
			}
			if m.Header.Seq == s.seq {
				return nil
			}
		}
	}
}

// receive awaits answers.
func (s *Socket) receive() ([]syscall.NetlinkMessage, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return syscall.ParseNetlinkMessage(s.buf[:n])
	}
}
