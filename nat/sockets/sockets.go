// SPDX-License-Identifier: Apache-2.0

// Package sockets tells which ports processes of the node listen on, over netlink.
package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairlead/proxier/model"
)

// Port is a port that a process listens on, be it on one address or on all.
type Port struct {
	Protocol model.Protocol
	Number   uint16
}

// States of sockets that take what nobody asked for (TCP_LISTEN and TCP_CLOSE in
// net/tcp_states.h): of TCP those that listen, of UDP those that are not connected.
const (
	stateListen = 10
	stateClose  = 7
)

// Listening returns the ports of TCP and UDP that processes listen on, in the network
// namespace of the thread. Only sockets that do are asked for, as others may be many.
func Listening() (map[Port]bool, error) {
	out := map[Port]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []struct {
			model    model.Protocol
			protocol uint8
			state    int
		}{{model.TCP, unix.IPPROTO_TCP, stateListen}, {model.UDP, unix.IPPROTO_UDP, stateClose}} {
			req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			req.AddData(request{family, kind.protocol, 1 << kind.state})
			msgs, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) { // no such family
				return nil, fmt.Errorf("list sockets: %w", err)
			}
			for _, m := range msgs {
				if port := portOf(m); port != 0 {
					out[Port{kind.model, port}] = true
				}
			}
		}
	}
	return out, nil
}

// request is an inet_diag_req_v2 (linux/inet_diag.h) for all sockets in some states.
type request struct {
	family, protocol uint8
	states           uint32
}

// Len implements nl.NetlinkRequestData.
func (request) Len() int { return 56 }

// Serialize implements nl.NetlinkRequestData.
func (r request) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return b
}

// portOf returns the port of a socket in an inet_diag_msg, 0 if it is none.
func portOf(msg []byte) uint16 {
	if len(msg) < 6 {
		return 0
	}
	return binary.BigEndian.Uint16(msg[4:])
}
