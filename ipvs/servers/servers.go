// SPDX-License-Identifier: Apache-2.0

// Package servers reads and writes IPVS virtual servers and their destinations
// over netlink. It knows those of one family that have an address; virtual servers
// of firewall marks are neither listed nor touched.
package servers

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol is the number of a transport protocol in IP.
type Protocol uint8

// The protocols that IPVS schedules.
const (
	TCP  Protocol = unix.IPPROTO_TCP
	UDP  Protocol = unix.IPPROTO_UDP
	SCTP Protocol = unix.IPPROTO_SCTP
)

// String returns "TCP", "UDP" or "SCTP".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Key is what the kernel finds a virtual server by.
type Key struct {
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
}

// AddrPort returns the address and port.
func (k Key) AddrPort() netip.AddrPort { return netip.AddrPortFrom(k.Addr, k.Port) }

// String returns something like "TCP 10.96.0.1:443".
func (k Key) String() string { return k.Protocol.String() + " " + k.AddrPort().String() }

// Compare orders keys by address, port and protocol.
func (k Key) Compare(l Key) int {
	return cmp.Or(k.AddrPort().Compare(l.AddrPort()), cmp.Compare(k.Protocol, l.Protocol))
}

// Flags of a virtual server (IP_VS_SVC_F_… in linux/ip_vs.h). That connections are
// persistent is not one of them here: Server.Persistence says so.
type Flags uint32

const (
	// OnePacket schedules each datagram of UDP by itself.
	OnePacket Flags = 0x04
	// HashFallback makes sh and mh take another destination for a client whose own
	// has weight 0.
	HashFallback Flags = 0x08
	// HashPort makes sh and mh look at the client's port, too.
	HashPort Flags = 0x10
)

// Server is a virtual server, without its destinations. Two are the same if they
// are equal.
type Server struct {
	Key
	// Scheduler is its name in the kernel, "rr" for example.
	Scheduler string
	Flags     Flags
	// Persistence is how long a client stays with its destination after its last
	// connection, in whole seconds; 0 where each connection is scheduled by itself.
	Persistence time.Duration
}

// Destination is a real server, reached by translation (IP_VS_CONN_F_MASQ).
type Destination struct {
	Addr netip.AddrPort
	// Weight 0 keeps the connections that are there, and takes no new ones. At most
	// 65535.
	Weight int
}

// Stats are what has passed since the kernel's object was made. The kernel adds
// that up every two seconds. Of connections and packets these are the lower 32 bits.
type Stats struct {
	Conns, PacketsIn, PacketsOut uint32
	BytesIn, BytesOut            uint64
}

// Status is what the kernel says of a destination.
type Status struct {
	Destination
	// Altered is set where it is not as AddDestination makes it: not reached by
	// translation, or with a bound for its connections. UpdateDestination puts that
	// right.
	Altered bool
	// ActiveConns are the connections that are established, InactiveConns all others
	// that the kernel remembers: of TCP those that open or close, and all flows of
	// UDP. Records of persistence are in neither.
	ActiveConns, InactiveConns int
	Stats                      Stats
}

// Listed is what the kernel says of a virtual server.
type Listed struct {
	Server
	// Altered is set where it is not as Create makes it: persistence by network, or
	// flags that are none of those here. Update puts that right.
	Altered bool
	Stats   Stats
	// Destinations are in no particular order.
	Destinations []Status
}

// Timeouts are the times after which the kernel forgets a connection without
// packets. They are one for all virtual servers of a network namespace, of both
// families.
type Timeouts struct {
	// TCP is for those established, TCPFin for those that one side has closed. In
	// whole seconds; 0 leaves one as it is.
	TCP, TCPFin, UDP time.Duration
}

// What methods of Kernel fail with, among others.
var (
	// ErrExists is of Create and AddDestination.
	ErrExists = errors.New("it exists")
	// ErrNoServer is of all that name a virtual server, except Create.
	ErrNoServer = errors.New("there is no such virtual server")
	// ErrNoDestination is of UpdateDestination and DeleteDestination.
	ErrNoDestination = errors.New("there is no such destination")
	// ErrNoScheduler is of Create, Update and Probe.
	ErrNoScheduler = errors.New("the kernel has no such scheduler")
	// ErrNotSupported is of New. The error names the module and how to load it.
	ErrNotSupported = errors.New("the kernel has no IPVS")
)

// String returns the arguments of ipvsadm that name the virtual server and say what
// it is like, as ipvsadm -Sn prints them.
func (s Server) String() string {
	out := s.Key.Option() + " -s " + s.Scheduler
	if s.Persistence > 0 {
		out += fmt.Sprintf(" -p %d", seconds(s.Persistence))
	}
	if s.Flags&OnePacket != 0 {
		out += " -o"
	}
	var flags []string
	for i, f := range []Flags{HashFallback, HashPort} {
		if s.Flags&f != 0 {
			flags = append(flags, s.flagName(i))
		}
	}
	if len(flags) > 0 {
		out += " -b " + strings.Join(flags, ",")
	}
	return out
}

// flagName returns ipvsadm's name of the first or the second flag of a scheduler.
func (s Server) flagName(i int) string {
	if s.Scheduler == "sh" || s.Scheduler == "mh" {
		return s.Scheduler + []string{"-fallback", "-port"}[i]
	}
	return fmt.Sprintf("flag-%d", i+1)
}

// Option returns the arguments of ipvsadm that name a virtual server.
func (k Key) Option() string {
	switch k.Protocol {
	case UDP:
		return "-u " + k.AddrPort().String()
	case SCTP:
		return "--sctp-service " + k.AddrPort().String()
	}
	return "-t " + k.AddrPort().String()
}

// Line returns the arguments of ipvsadm for a destination of a virtual server, as
// ipvsadm -Sn prints them.
func (d Destination) Line(k Key) string {
	return fmt.Sprintf("%s -r %s -m -w %d", k.Option(), d.Addr, d.Weight)
}

// seconds rounds up, so that what is not 0 does not become so.
func seconds(d time.Duration) uint32 {
	return uint32((d + time.Second - 1) / time.Second)
}
