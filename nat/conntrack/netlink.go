// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead/proxier/model"
)

// Attributes of <linux/netfilter/nfnetlink_conntrack.h> that the netlink library
// does not name, and of net/netfilter/nf_internals.h the flag that makes a dump
// compare the protocol.
const (
	ctaTupleZone       = 3
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
	filterProtoNum     = 1 << 3
)

// timeout bounds the wait for one answer of the kernel.
var timeout = unix.Timeval{Sec: 10}

// Netlink is the kernel's table of flows in the network namespace of the thread
// that uses it.
type Netlink struct{}

var _ Kernel = Netlink{}

// Flows implements Kernel. Kernels since 5.8 leave all but UDP out by
// themselves; older ones ignore that they are asked to.
func (Netlink) Flows(ctx context.Context, f model.Family, yield func(Flow) bool) error {
	return withSocket(func(s *socket) error {
		err := s.dump(ctx, f, yield, true)
		if errors.Is(err, unix.EINVAL) {
			err = s.dump(ctx, f, yield, false)
		}
		return classify(err)
	})
}

// Delete implements Kernel.
func (Netlink) Delete(ctx context.Context, f model.Family, flows []Flow) (int, error) {
	deleted, failed := 0, 0
	var first error
	err := withSocket(func(s *socket) error {
		for _, flow := range flows {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			err := s.delete(f, flow)
			switch {
			case err == nil:
				deleted++
			case errors.Is(err, fs.ErrNotExist): // it has expired, or is a new one already
			default:
				failed++
				first = cmp.Or(first, fmt.Errorf("flow from %s to %s: %w", flow.Src, flow.Dst, err))
			}
		}
		return nil
	})
	if failed > 1 {
		first = fmt.Errorf("%w, and %d more", first, failed-1)
	}
	return deleted, errors.Join(first, err)
}

// classify tells apart what a caller can do something about.
func classify(err error) error {
	for _, e := range []error{nl.ErrDumpInterrupted, unix.EINTR, unix.ENOBUFS} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrInterrupted, err)
		}
	}
	// An unknown part of nfnetlink is EINVAL: net/netfilter/nfnetlink.c.
	for _, e := range []error{unix.EINVAL, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNotSupported, err)
		}
	}
	return err
}

// socket is one netlink socket for several requests.
type socket struct{ handle *nl.SocketHandle }

func withSocket(fn func(*socket) error) error {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return classify(fmt.Errorf("open netlink socket: %w", err))
	}
	defer s.Close()
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		return fmt.Errorf("set up netlink socket: %w", err)
	}
	return fn(&socket{&nl.SocketHandle{Socket: s}})
}

func (s *socket) request(op, flags int, f model.Family) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|op, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: s.handle}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: addressFamily(f), Version: nl.NFNETLINK_V0})
	return req
}

func addressFamily(f model.Family) uint8 {
	if f == model.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (s *socket) dump(ctx context.Context, f model.Family, yield func(Flow) bool, filtered bool) error {
	req := s.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, f)
	if filtered {
		req.AddData(nested(nl.CTA_TUPLE_ORIG, nested(nl.CTA_TUPLE_PROTO, protoUDP())))
		req.AddData(nested(ctaFilter, nl.NewRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(filterProtoNum))))
	}
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		flow, ok := parseFlow(msg)
		if ctx.Err() != nil {
			return false
		}
		return !ok || model.FamilyOf(flow.Dst.Addr()) != f || yield(flow)
	})
	if err == nil {
		err = ctx.Err()
	}
	return err
}

func (s *socket) delete(f model.Family, flow Flow) error {
	req := s.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, f)
	for _, attr := range keyOf(flow) {
		req.AddData(attr)
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// keyOf returns what names a flow. It is the direction of the answers: a flow
// that has taken its place since is translated by the rules as they are now, and
// differs there if it differs at all.
func keyOf(flow Flow) []*nl.RtAttr {
	key := []*nl.RtAttr{
		tuple(nl.CTA_TUPLE_REPLY, flow.ReplySrc, flow.ReplyDst, flow.Ref.ReplyZone),
		nl.NewRtAttr(nl.CTA_ID, nl.BEUint32Attr(flow.Ref.ID)),
	}
	if flow.Ref.Zone != 0 {
		key = append(key, nl.NewRtAttr(nl.CTA_ZONE, nl.BEUint16Attr(flow.Ref.Zone)))
	}
	return key
}

func tuple(typ int, from, to netip.AddrPort, zone uint16) *nl.RtAttr {
	src, dst := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if to.Addr().Is6() {
		src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	attr := nested(typ,
		nested(nl.CTA_TUPLE_IP,
			nl.NewRtAttr(src, from.Addr().AsSlice()),
			nl.NewRtAttr(dst, to.Addr().AsSlice())),
		nested(nl.CTA_TUPLE_PROTO, protoUDP(),
			nl.NewRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(from.Port())),
			nl.NewRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(to.Port()))))
	if zone != 0 {
		attr.AddChild(nl.NewRtAttr(ctaTupleZone, nl.BEUint16Attr(zone)))
	}
	return attr
}

func protoUDP() *nl.RtAttr { return nl.NewRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP}) }

func nested(typ int, parts ...*nl.RtAttr) *nl.RtAttr {
	attr := nl.NewRtAttr(typ|unix.NLA_F_NESTED, nil)
	for _, p := range parts {
		attr.AddChild(p)
	}
	return attr
}

// parseFlow reads a message of a dump; ok is false if it is not a UDP flow.
func parseFlow(msg []byte) (f Flow, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return Flow{}, false
	}
	var orig, reply tupleData
	eachAttr(msg[nl.SizeofNfgenmsg:], func(typ int, v []byte) {
		switch {
		case typ == nl.CTA_TUPLE_ORIG:
			orig = parseTuple(v)
		case typ == nl.CTA_TUPLE_REPLY:
			reply = parseTuple(v)
		case typ == nl.CTA_ID && len(v) == 4:
			f.Ref.ID = binary.BigEndian.Uint32(v)
		case typ == nl.CTA_ZONE && len(v) == 2:
			f.Ref.Zone = binary.BigEndian.Uint16(v)
		}
	})
	f.Src, f.Dst, f.Ref.OrigZone = orig.src(), orig.dst(), orig.zone
	f.ReplySrc, f.ReplyDst, f.Ref.ReplyZone = reply.src(), reply.dst(), reply.zone
	return f, orig.proto == unix.IPPROTO_UDP && f.Src.IsValid() && f.Dst.IsValid() && f.ReplySrc.IsValid() && f.ReplyDst.IsValid()
}

// tupleData is one direction of a flow.
type tupleData struct {
	proto            uint8
	zone             uint16
	srcAddr, dstAddr netip.Addr
	srcPort, dstPort uint16
}

func (t *tupleData) src() netip.AddrPort { return netip.AddrPortFrom(t.srcAddr, t.srcPort) }
func (t *tupleData) dst() netip.AddrPort { return netip.AddrPortFrom(t.dstAddr, t.dstPort) }

func parseTuple(b []byte) (t tupleData) {
	eachAttr(b, func(typ int, v []byte) {
		switch {
		case typ == nl.CTA_TUPLE_IP:
			eachAttr(v, t.addIP)
		case typ == nl.CTA_TUPLE_PROTO:
			eachAttr(v, t.addProto)
		case typ == ctaTupleZone && len(v) == 2:
			t.zone = binary.BigEndian.Uint16(v)
		}
	})
	return t
}

func (t *tupleData) addIP(typ int, v []byte) {
	addr, _ := netip.AddrFromSlice(v)
	switch typ {
	case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
		t.srcAddr = addr
	case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
		t.dstAddr = addr
	}
}

func (t *tupleData) addProto(typ int, v []byte) {
	switch {
	case typ == nl.CTA_PROTO_NUM && len(v) == 1:
		t.proto = v[0]
	case typ == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
		t.srcPort = binary.BigEndian.Uint16(v)
	case typ == nl.CTA_PROTO_DST_PORT && len(v) == 2:
		t.dstPort = binary.BigEndian.Uint16(v)
	}
}

// eachAttr calls fn with type and value of each netlink attribute in b, up to
// the first that is cut short.
func eachAttr(b []byte, fn func(typ int, v []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		fn(int(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK), b[unix.SizeofNlAttr:n])
		b = b[min((n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
}
