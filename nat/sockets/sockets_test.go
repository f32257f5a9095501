// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net"
	"net/netip"
	"testing"

	"fairlead/proxier/model"
)

// TestListening: ports that processes listen on are told, of both families, and those
// that they connect from are not.
func TestListening(t *testing.T) {
	want := map[Port]bool{}
	at := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	var connected []Port
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", host)
		if err != nil {
			t.Logf("without %s: %v", host, err) // the other family is enough
			continue
		}
		defer l.Close()
		u, err := net.ListenPacket("udp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		want[Port{model.TCP, at(l.Addr())}], want[Port{model.UDP, at(u.LocalAddr())}] = true, true
		for network, to := range map[model.Protocol]net.Addr{model.TCP: l.Addr(), model.UDP: u.LocalAddr()} {
			c, err := net.Dial(network.Lower(), to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			connected = append(connected, Port{network, at(c.LocalAddr())})
		}
	}
	got, err := Listening()
	if err != nil {
		t.Fatal(err)
	}
	for p := range want {
		if !got[p] {
			t.Errorf("%v is not told", p)
		}
	}
	for _, p := range connected {
		if got[p] && !want[p] {
			t.Errorf("%v is told, and is that of a client", p)
		}
	}
}
