// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
)

// Server takes TCP connections and closes them.
type Server struct {
	fd   int
	stop chan struct{}
	once sync.Once
	done chan struct{}
}

const (
	// accepting is the pause between two looks for connections. Nobody waits for
	// them: to wake up a server would cost the client, in whose connect(2) the
	// kernel does it, as much as the connect itself.
	accepting = 5 * time.Millisecond
	// backlog is more than a client makes in that time. It is the kernel's most.
	backlog = 4096
)

// Serve serves at an address of IPv4 in a namespace until Close.
func Serve(ns *lab.NS, at netip.AddrPort) (*Server, error) {
	s := &Server{stop: make(chan struct{}), done: make(chan struct{})}
	err := ns.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = unix.Bind(s.fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())})
		if err == nil {
			err = unix.Listen(s.fd, backlog)
		}
		if err != nil {
			unix.Close(s.fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve at %s in %s: %w", at, ns.Label, err)
	}
	go s.run()
	return s, nil
}

func (s *Server) run() {
	defer close(s.done)
	tick := time.NewTicker(accepting)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.drain()
		}
	}
}

// drain takes the connections that there are; their clients have reset them.
func (s *Server) drain() {
	for {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			unix.Close(fd)
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		default: // EAGAIN: there are no more
			return
		}
	}
}

// Close ends the server. It may be called again.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		close(s.stop)
		<-s.done
		err = unix.Close(s.fd)
	})
	return err
}
