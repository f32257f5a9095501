// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	wire "encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelSCTP: an association by SCTP gets to an endpoint and back, at every
// kind of address and masqueraded where a connection by TCP is, and nowhere where
// there is none. It is begun by hand: not every kernel has sockets for SCTP, and
// what the rules do needs none.
func TestKernelSCTP(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established"); err != nil {
			t.Skip(err)
		}
		node, pod := l.Nodes[0], l.Nodes[0].Pods[1]
		dir := newDirectory(t)
		idle := service("idle", 20)
		idle.Spec.Type = corev1.ServiceTypeNodePort
		idle.Spec.Ports[2].NodePort = sctpNodePort + 1
		dir.write("web.yaml", append(exposed(l, node.Pods[0]), idle)...)
		publish := func(port int32) corev1.ContainerPort {
			return corev1.ContainerPort{HostPort: port, ContainerPort: sctpTarget, Protocol: corev1.ProtocolSCTP}
		}
		dir.write("pod.yaml", podObject("web", node.Pods[0], publish(hostPort), publish(sctpNodePort+1)))
		startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir()).waitSynced(ctx, 0)
		for _, f := range families() {
			server := newSCTPHost(ctx, t, node.Pods[0], f)
			go server.serve()
			bridge := node.PodCIDR(f).Addr().Next()
			external := map[model.Family]string{model.IPv4: "203.0.113.5", model.IPv6: "2001:db8:f::5"}[f]
			for _, tt := range []struct {
				name string
				from *lab.NS
				to   netip.AddrPort
				saw  netip.Addr // invalid where nobody answers
			}{
				{"cluster IP from a pod", pod, netip.AddrPortFrom(vip(f, 10), sctpPort), pod.Addr(f)},
				{"cluster IP from the node", node.NS, netip.AddrPortFrom(vip(f, 10), sctpPort), bridge},
				{"cluster IP from outside", l.Client, netip.AddrPortFrom(vip(f, 10), sctpPort), bridge},
				{"external IP from a pod", pod, netip.AddrPortFrom(netip.MustParseAddr(external), sctpPort), bridge},
				{"node port from outside", l.Client, netip.AddrPortFrom(node.Addr(f), sctpNodePort), bridge},
				{"host port from outside", l.Client, netip.AddrPortFrom(node.Addr(f), hostPort), l.Client.Addr(f)},
				{"host port from a pod elsewhere", l.Nodes[1].Pods[0], netip.AddrPortFrom(node.Addr(f), hostPort), l.Nodes[1].Pods[0].Addr(f)},
				{"host port that is a node port without endpoints", l.Client, netip.AddrPortFrom(node.Addr(f), sctpNodePort+1), netip.Addr{}},
				{"another port", pod, netip.AddrPortFrom(vip(f, 10), sctpPort+1), netip.Addr{}},
				{"a Service without endpoints", pod, netip.AddrPortFrom(vip(f, 20), sctpPort), netip.Addr{}},
			} {
				t.Run(fmt.Sprintf("%s %s", f, tt.name), func(t *testing.T) {
					got, err := newSCTPHost(ctx, t, tt.from, f).begin(tt.to)
					if answered := err == nil; answered != tt.saw.IsValid() || got != tt.saw {
						t.Errorf("got an answer of who saw %s (%v), want %s", got, err, tt.saw)
					}
				})
			}
		}
	})
}

const (
	sctpNodePort = 30082
	// sctpPatience is how long an answer may take.
	sctpPatience = time.Second
)

// The types of the first chunks of an association (RFC 9260, section 3.2).
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpHost sends and receives SCTP packets of one family.
type sctpHost struct {
	family model.Family
	conn   net.PacketConn
}

func newSCTPHost(ctx context.Context, t *testing.T, ns *lab.NS, f model.Family) *sctpHost {
	t.Helper()
	network, at := "ip4:132", netip.IPv4Unspecified()
	if f == model.IPv6 {
		network, at = "ip6:132", netip.IPv6Unspecified()
	}
	conn, err := ns.ListenPacket(ctx, network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &sctpHost{f, conn}
}

// sctpPacket is a packet with one chunk, INIT or INIT ACK. With the latter a
// server tells whom it saw.
type sctpPacket struct {
	src, dst uint16
	tag      uint32
	chunk    byte
	saw      netip.Addr
}

// checksum is SCTP's (RFC 9260, appendix A).
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func (p sctpPacket) bytes() []byte {
	var b []byte
	b = wire.BigEndian.AppendUint16(b, p.src)
	b = wire.BigEndian.AppendUint16(b, p.dst)
	b = wire.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0) // checksum
	addr := p.saw.AsSlice()
	b = append(b, p.chunk, 0)
	b = wire.BigEndian.AppendUint16(b, uint16(20+4+len(addr)))
	b = wire.BigEndian.AppendUint32(b, 4711)  // initiate tag
	b = wire.BigEndian.AppendUint32(b, 65536) // window
	b = wire.BigEndian.AppendUint16(b, 1)     // streams
	b = wire.BigEndian.AppendUint16(b, 1)
	b = wire.BigEndian.AppendUint32(b, 1) // TSN
	b = wire.BigEndian.AppendUint16(b, 7) // state cookie, which is the server's own
	b = wire.BigEndian.AppendUint16(b, uint16(4+len(addr)))
	b = append(b, addr...)
	wire.LittleEndian.PutUint32(b[8:], checksum(b))
	return b
}

// parseSCTP reads what bytes wrote. A wrong checksum is an error: where NAT
// changes a port it has to change that.
func parseSCTP(b []byte) (sctpPacket, error) {
	const header, chunk = 12, 24
	if len(b) < header+chunk {
		return sctpPacket{}, errors.New("short packet")
	}
	sum := wire.LittleEndian.Uint32(b[8:])
	copy(b[8:], []byte{0, 0, 0, 0})
	if got := checksum(b); got != sum {
		return sctpPacket{}, fmt.Errorf("checksum %#x, want %#x", sum, got)
	}
	saw, _ := netip.AddrFromSlice(b[header+chunk:])
	return sctpPacket{
		src: wire.BigEndian.Uint16(b), dst: wire.BigEndian.Uint16(b[2:]), tag: wire.BigEndian.Uint32(b[4:]),
		chunk: b[header], saw: saw,
	}, nil
}

// serve answers INIT on the target port until the host is closed.
func (h *sctpHost) serve() {
	buf := make([]byte, 1500)
	for {
		n, peer, err := h.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		p, err := parseSCTP(buf[:n])
		if err != nil || p.chunk != sctpInit || p.dst != sctpTarget {
			continue
		}
		saw, _ := netip.AddrFromSlice(peer.(*net.IPAddr).IP)
		answer := sctpPacket{src: p.dst, dst: p.src, tag: 4711, chunk: sctpInitAck, saw: saw.Unmap()}
		_, _ = h.conn.WriteTo(answer.bytes(), peer) // whoever waits for it tells
	}
}

// begin begins an association and returns whom the server saw.
func (h *sctpHost) begin(to netip.AddrPort) (netip.Addr, error) {
	const port = 40132
	init := sctpPacket{src: port, dst: to.Port(), chunk: sctpInit}
	if _, err := h.conn.WriteTo(init.bytes(), &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil {
		return netip.Addr{}, err
	}
	if err := h.conn.SetReadDeadline(time.Now().Add(sctpPatience)); err != nil {
		return netip.Addr{}, err
	}
	for buf := make([]byte, 1500); ; {
		n, peer, err := h.conn.ReadFrom(buf)
		if err != nil {
			return netip.Addr{}, err
		}
		from, _ := netip.AddrFromSlice(peer.(*net.IPAddr).IP)
		p, err := parseSCTP(buf[:n])
		if err != nil {
			return netip.Addr{}, err
		}
		if p.chunk == sctpInitAck && p.dst == port && netip.AddrPortFrom(from.Unmap(), p.src) == to {
			return p.saw, nil
		}
	}
}
