// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// Echo answers over TCP and UDP with a line "NAME PEER", so that a client
// learns which server it got and which address and port the server saw it
// come from. UDP datagrams are each answered so. A TCP connection is greeted
// so, and every line it sends then comes back, until the client closes.
type Echo struct {
	// Name is what the server calls itself.
	Name string
	// Addr is where it listens.
	Addr netip.AddrPort

	tcp net.Listener
	udp net.PacketConn
	wg  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]struct{}
	closed bool
}

// Echo starts an echo server of that name in the namespace. On an unspecified
// address it answers both families. It ends with Close, or with the lab.
func (ns *NS) Echo(ctx context.Context, name string, at netip.AddrPort) (*Echo, error) {
	tcp, err := ns.Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("start echo server %s: %w", name, err)
	}
	udp, err := ns.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start echo server %s: %w", name, err), tcp.Close())
	}
	e := &Echo{Name: name, Addr: at, tcp: tcp, udp: udp, conns: map[net.Conn]struct{}{}}
	e.wg.Go(e.serveTCP)
	e.wg.Go(e.serveUDP)
	ns.mu.Lock()
	ns.echos = append(ns.echos, e)
	ns.mu.Unlock()
	return e, nil
}

// EchoPort starts an echo server named after the namespace on a port of all of
// its addresses.
func (ns *NS) EchoPort(ctx context.Context, port uint16) (*Echo, error) {
	return ns.Echo(ctx, ns.Label, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
}

// Close stops the server and its connections. It may be called again.
func (e *Echo) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	errs := []error{e.tcp.Close(), e.udp.Close()}
	for c := range e.conns {
		errs = append(errs, c.Close())
	}
	e.mu.Unlock()
	e.wg.Wait()
	return errors.Join(errs...)
}

func (e *Echo) serveTCP() {
	for {
		conn, err := e.tcp.Accept()
		if err != nil {
			return
		}
		if e.track(conn) {
			e.wg.Go(func() { e.serveConn(conn) })
		}
	}
}

// track remembers a connection, or closes it if the server has been closed.
func (e *Echo) track(conn net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = conn.Close() // nobody is left to tell
		return false
	}
	e.conns[conn] = struct{}{}
	return true
}

func (e *Echo) serveConn(conn net.Conn) {
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.closed { // else Close has closed it
			delete(e.conns, conn)
			_ = conn.Close() // the client has gone
		}
	}()
	if _, err := conn.Write(e.greeting(conn.RemoteAddr())); err != nil {
		return
	}
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		if _, err := conn.Write(line); err != nil {
			return
		}
	}
}

func (e *Echo) serveUDP() {
	buf := make([]byte, 2048)
	for {
		_, peer, err := e.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		// A client that cannot be reached counts its own timeout.
		_, _ = e.udp.WriteTo(e.greeting(peer), peer)
	}
}

func (e *Echo) greeting(peer net.Addr) []byte {
	return fmt.Appendf(nil, "%s %s\n", e.Name, peerOf(peer))
}
