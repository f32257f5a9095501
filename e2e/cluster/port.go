// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// reservedPort is a TCP port that belongs to a socket which never listens: only
// sockets of the same user that set SO_REUSEPORT too, as the API server is told
// to, can bind it. So it is free when the API server starts, and still free when
// it starts again.
type reservedPort struct {
	number uint16
	fd     int // 0 if none is held
}

// reservePort reserves a free port, or returns want without holding it unless
// that is 0.
func reservePort(want uint16) (reservedPort, error) {
	if want != 0 {
		return reservedPort{number: want}, nil
	}
	fd, err := reusePortSocket(unix.AF_INET6)
	var wildcard unix.Sockaddr = &unix.SockaddrInet6{} // also 0.0.0.0
	if err != nil {                                    // a kernel without IPv6
		fd, err = reusePortSocket(unix.AF_INET)
		wildcard = &unix.SockaddrInet4{}
	}
	if err != nil {
		return reservedPort{}, fmt.Errorf("reserve port: %w", err)
	}
	number, err := bindPort(fd, wildcard)
	if err != nil {
		unix.Close(fd)
		return reservedPort{}, fmt.Errorf("reserve port: %w", err)
	}
	return reservedPort{number: number, fd: fd}, nil
}

func reusePortSocket(family int) (fd int, err error) {
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// bindPort binds fd to a port of the kernel's choice.
func bindPort(fd int, wildcard unix.Sockaddr) (uint16, error) {
	if err := unix.Bind(fd, wildcard); err != nil {
		return 0, err
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch a := bound.(type) {
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	}
	return 0, unix.EAFNOSUPPORT
}

// release gives the port back; a second call does nothing.
func (r *reservedPort) release() error {
	if r.fd == 0 {
		return nil
	}
	fd := r.fd
	r.fd = 0
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("release port %d: %w", r.number, err)
	}
	return nil
}
