// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen is net.Listen in the namespace, plain TCP.
func (ns *NS) Listen(ctx context.Context, network, addr string) (net.Listener, error) {
	var l net.Listener
	err := ns.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// manyDatagrams is a buffer, in bytes, for what a lab's clients ask at one time: a
// datagram takes about 1 kB of it.
const manyDatagrams = 8 << 20

// ListenPacket is net.ListenPacket in the namespace, with room for many datagrams.
func (ns *NS) ListenPacket(ctx context.Context, network, addr string) (net.PacketConn, error) {
	var c net.PacketConn
	err := ns.Do(func() (err error) {
		lc := net.ListenConfig{Control: enlarge}
		c, err = lc.ListenPacket(ctx, network, addr)
		return err
	})
	return c, err
}

// enlarge gives a socket a buffer beyond net.core.rmem_max.
func enlarge(_, _ string, raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, manyDatagrams)
	}); e != nil {
		return e
	}
	return err
}

// Dial is net.Dialer.DialContext in the namespace. The address is numeric.
func (ns *NS) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// dial connects the probe's socket; the thread is in the namespace.
func (p Probe) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1, Control: hearICMP}
	if from, bound := p.local(); bound {
		if p.Network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(from)
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(from)
		}
	}
	conn, err := d.DialContext(ctx, p.Network, p.To.String())
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		return tcp, ignoreICMP(tcp)
	}
	return conn, nil
}

// hearICMP makes a socket remember ICMP errors that arrive while connect is
// still busy with it. In a lab the answer to a SYN is that fast, and without
// this it would be lost and the refusal seen only once TCP repeats the SYN.
func hearICMP(network, _ string, raw syscall.RawConn) error {
	return setRecvErr(network, raw, 1)
}

// ignoreICMP makes an established connection take ICMP errors as any other
// does, that is, live on.
func ignoreICMP(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	network := "tcp6"
	if peerOf(conn.RemoteAddr()).Addr().Is4() {
		network = "tcp4"
	}
	return setRecvErr(network, raw, 0)
}

func setRecvErr(network string, raw syscall.RawConn, on int) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	switch network {
	case "tcp4":
		level, option = unix.IPPROTO_IP, unix.IP_RECVERR
	case "tcp6":
	default:
		return nil // UDP hears them always
	}
	var err error
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, on) }); e != nil {
		return e
	}
	return err
}

// peerOf returns an address and port as netip, IPv4 as IPv4.
func peerOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
