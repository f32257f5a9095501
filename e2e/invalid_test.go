// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	wire "encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
	"fairlead/nat/nfacct"
	"fairlead/proxier/model"
)

// TestKernelInvalidPackets: a node does not forward what conntrack finds
// invalid, and counts it, unless it is to be liberal. The counter goes with a
// clean-up.
func TestKernelInvalidPackets(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		for _, c := range []struct {
			name   string
			args   []string
			passes bool
		}{
			{"dropped", nil, false},
			{"liberal", []string{"--conntrack-tcp-be-liberal"}, true},
		} {
			a := startAgent(ctx, t, node, v, append([]string{"--manifests", dir.path}, c.args...)...)
			a.waitSynced(ctx, 0)
			if got := invalidPasses(t, node.Pods[0], l.Client); got != c.passes {
				t.Errorf("%s: an invalid packet passes: %t, want %t", c.name, got, c.passes)
			}
			want := "1" // one that was dropped before is counted still
			if c.passes && *proxyMode == "nftables" {
				want = "0" // there the rule counts, and there is none
			}
			if got := metric(ctx, t, a, "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"); got != want {
				t.Errorf("%s: %s packets are counted, want %s", c.name, got, want)
			}
			a.stop()
		}
		cleanUp(ctx, t, node)
		err := node.Do(func() error {
			_, err := nfacct.Packets(nfacct.InvalidDropped)
			return err
		})
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("after cleanup: read the counter: %v, want %v", err, unix.ENOENT)
		}
	})
}

// The flags of a TCP segment, and where it goes to.
const (
	tcpFIN, tcpSYN = 0x01, 0x02
	invalidPort    = 7001
	validPort      = 7002
)

// invalidPasses sends a TCP segment with flags that never go together, and one
// that is in order after it, and tells whether the first arrives with the
// second.
func invalidPasses(t *testing.T, from, to *lab.NS) (passes bool) {
	t.Helper()
	raw := func(ns *lab.NS) (fd int) {
		err := ns.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	in, out := raw(to), raw(from)
	if err := unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	src, dst := from.Addr(model.IPv4), to.Addr(model.IPv4)
	for _, s := range [][]byte{segment(src, dst, invalidPort, tcpSYN|tcpFIN), segment(src, dst, validPort, tcpSYN)} {
		if err := unix.Sendto(out, s, 0, &unix.SockaddrInet4{Addr: dst.As4()}); err != nil {
			t.Fatal(err)
		}
	}
	for buf := make([]byte, 1500); ; {
		n, err := unix.Read(in, buf)
		if err != nil {
			t.Fatalf("wait for a packet that is in order: %v", err)
		}
		packet := buf[:n]
		header := int(packet[0]&0xf) * 4
		switch wire.BigEndian.Uint16(packet[header+2:]) {
		case invalidPort:
			passes = true
		case validPort:
			return passes
		}
	}
}

// segment is a TCP header (RFC 9293) from a port that changes each time.
func segment(src, dst netip.Addr, port uint16, flags byte) []byte {
	b := make([]byte, 20)
	wire.BigEndian.PutUint16(b, uint16(20000+time.Now().UnixNano()%10000))
	wire.BigEndian.PutUint16(b[2:], port)
	wire.BigEndian.PutUint32(b[4:], 1)
	b[12], b[13] = 5<<4, flags
	wire.BigEndian.PutUint16(b[14:], 1024)
	var sum uint32
	add := func(data []byte) {
		for ; len(data) > 1; data = data[2:] {
			sum += uint32(wire.BigEndian.Uint16(data))
		}
	}
	add(src.AsSlice())
	add(dst.AsSlice())
	add([]byte{0, unix.IPPROTO_TCP, 0, byte(len(b))})
	add(b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	wire.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}
