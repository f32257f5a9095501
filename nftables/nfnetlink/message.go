// SPDX-License-Identifier: Apache-2.0

// Package nfnetlink writes and reads tables of nf_tables over netlink, and tells what
// others change of them. It knows tables by the words of package table, and nothing of
// Services.
//
// A transaction is one datagram (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c): it
// takes effect as a whole, between two packets, or not at all. Elements are put into
// messages as they come, hundreds in each, without a value of their own: 110,000 take
// about 0.1 s. Libraries that have a message for each set of elements leave the bound of
// an attribute, 64 KB, to the caller.
package nfnetlink

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// buffer is a datagram in the making.
type buffer struct{ b []byte }

const (
	headerLen = unix.SizeofNlMsghdr
	genLen    = 4 // struct nfgenmsg
	attrLen   = unix.SizeofNlAttr
	nested    = 0x8000 // NLA_F_NESTED
	typeMask  = 0x3fff // NLA_TYPE_MASK
)

// begin begins a message and returns where it is.
func (b *buffer) begin(kind, flags uint16, seq uint32, family uint8, res uint16) int {
	at := len(b.b)
	b.b = binary.NativeEndian.AppendUint32(b.b, 0) // the length
	b.b = binary.NativeEndian.AppendUint16(b.b, kind)
	b.b = binary.NativeEndian.AppendUint16(b.b, flags)
	b.b = binary.NativeEndian.AppendUint32(b.b, seq)
	b.b = binary.NativeEndian.AppendUint32(b.b, 0) // the sender, which the kernel knows
	b.b = append(b.b, family, 0)
	b.b = binary.BigEndian.AppendUint16(b.b, res)
	return at
}

// end ends a message.
func (b *buffer) end(at int) { binary.NativeEndian.PutUint32(b.b[at:], uint32(len(b.b)-at)) }

// open begins an attribute that consists of others.
func (b *buffer) open(kind uint16) int {
	at := len(b.b)
	b.b = binary.NativeEndian.AppendUint16(b.b, 0)
	b.b = binary.NativeEndian.AppendUint16(b.b, kind|nested)
	return at
}

// shut ends it.
func (b *buffer) shut(at int) { binary.NativeEndian.PutUint16(b.b[at:], uint16(len(b.b)-at)) }

// attr adds an attribute.
func (b *buffer) attr(kind uint16, data ...byte) {
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(attrLen+len(data)))
	b.b = binary.NativeEndian.AppendUint16(b.b, kind)
	b.b = append(b.b, data...)
	b.pad()
}

// text adds a string, with its end.
func (b *buffer) text(kind uint16, s string) {
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(attrLen+len(s)+1))
	b.b = binary.NativeEndian.AppendUint16(b.b, kind)
	b.b = append(append(b.b, s...), 0)
	b.pad()
}

// value adds bytes.
func (b *buffer) value(kind uint16, s string) {
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(attrLen+len(s)))
	b.b = binary.NativeEndian.AppendUint16(b.b, kind)
	b.b = append(b.b, s...)
	b.pad()
}

// number adds a number as nf_tables has them, in network byte order.
func (b *buffer) number(kind uint16, n uint32) {
	b.attr(kind, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func (b *buffer) pad() {
	for len(b.b)%4 != 0 {
		b.b = append(b.b, 0)
	}
}

// attrs are the attributes of a message, or of one that consists of others.
type attrs []byte

// each calls yield for each attribute, and returns false if they are cut off.
func (a attrs) each(yield func(kind uint16, data []byte)) bool {
	for len(a) >= attrLen {
		n := int(binary.NativeEndian.Uint16(a))
		if n < attrLen || n > len(a) {
			return false
		}
		yield(binary.NativeEndian.Uint16(a[2:])&typeMask, a[attrLen:n])
		a = a[min((n+3)&^3, len(a)):]
	}
	return len(a) == 0
}

// get returns the first attribute of a kind, nil where there is none.
func (a attrs) get(kind uint16) attrs {
	var out attrs
	a.each(func(k uint16, data []byte) {
		if k == kind && out == nil {
			out = data
		}
	})
	return out
}

// text returns a string without its end.
func (a attrs) text() string {
	for len(a) > 0 && a[len(a)-1] == 0 {
		a = a[:len(a)-1]
	}
	return string(a)
}

// number returns a number, 0 where there is none.
func (a attrs) number() uint32 {
	if len(a) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a)
}

// long returns a number of 64 bits, 0 where there is none.
func (a attrs) long() uint64 {
	if len(a) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a)
}

// message is one message that was received.
type message struct {
	kind, flags uint16
	seq, sender uint32
	family      uint8
	body        []byte // after nfgenmsg; of an error or an end all
}

// messages calls yield for each message of a datagram, and returns false if it is cut
// off, or yield returns false.
func messages(b []byte, yield func(message) bool) bool {
	for len(b) >= headerLen {
		n := int(binary.NativeEndian.Uint32(b))
		if n < headerLen || n > len(b) {
			return false
		}
		m := message{
			kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), sender: binary.NativeEndian.Uint32(b[12:]), body: b[headerLen:n],
		}
		if m.kind >= unix.NLMSG_MIN_TYPE && len(m.body) >= genLen {
			m.family, m.body = m.body[0], m.body[genLen:]
		}
		if !yield(m) {
			return false
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return true
}

// kindOf is the type of a message about tables.
func kindOf(m uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | m }
