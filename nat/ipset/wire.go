// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What elements are in messages: nested attributes (linux/netlink.h), aligned to 4
// bytes, numbers in network order. A set may have 100,000 of them, so they are
// written and read in place.

const (
	nested   = unix.NLA_F_NESTED
	netOrder = unix.NLA_F_NET_BYTEORDER
)

// appendAttr appends an attribute.
func appendAttr(b []byte, typ uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(value)%4)%4)...)
}

// appendNested appends an attribute whose value is the attributes that f appends.
func appendNested(b []byte, typ uint16, f func([]byte) []byte) []byte {
	start := len(b)
	b = f(appendAttr(b, typ|nested))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// appendAddr appends an address, which is an attribute in an attribute.
func appendAddr(b []byte, typ uint16, addr netip.Addr) []byte {
	return appendNested(b, typ, func(b []byte) []byte {
		if addr.Is4() {
			ip := addr.As4()
			return appendAttr(b, nl.IPSET_ATTR_IPADDR_IPV4|netOrder, ip[:]...)
		}
		ip := addr.As16()
		return appendAttr(b, nl.IPSET_ATTR_IPADDR_IPV6|netOrder, ip[:]...)
	})
}

// appendElement appends an element of a set of a type.
func appendElement(b []byte, typ Type, e Element) []byte {
	return appendNested(b, nl.IPSET_ATTR_DATA, func(b []byte) []byte {
		if typ == HashNet {
			return appendAttr(appendAddr(b, nl.IPSET_ATTR_IP, e.Net.Addr()), nl.IPSET_ATTR_CIDR, uint8(e.Net.Bits()))
		}
		if typ != BitmapPort {
			b = appendAddr(b, nl.IPSET_ATTR_IP, e.Addr)
		}
		if typ == HashIPPortIP || typ == HashIPPortNet {
			b = appendAddr(b, nl.IPSET_ATTR_IP2, e.Net.Addr())
		}
		if typ == HashIPPortNet {
			b = appendAttr(b, nl.IPSET_ATTR_CIDR2, uint8(e.Net.Bits()))
		}
		if typ != HashIP && typ != BitmapPort {
			b = appendAttr(b, nl.IPSET_ATTR_PROTO, e.Protocol)
		}
		if typ != HashIP {
			b = appendAttr(b, nl.IPSET_ATTR_PORT|netOrder, byte(e.Port>>8), byte(e.Port))
		}
		return b
	})
}

// attributes are the attributes in b that are not empty, by their type without
// flags. What is no attribute ends them.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if typ := binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK; n > unix.SizeofRtAttr && !yield(typ, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// payload returns what is in an answer of the kernel's after the header that all of
// netfilter has.
func payload(msg []byte) []byte { return msg[min(len(msg), nl.SizeofNfgenmsg):] }

// appendElements appends the elements in an answer.
func appendElements(out []Element, msg []byte) []Element {
	for typ, all := range attributes(payload(msg)) {
		if typ != nl.IPSET_ATTR_ADT {
			continue
		}
		for _, data := range attributes(all) {
			out = append(out, parseElement(data))
		}
	}
	return out
}

// appendCounted appends the elements in an answer, with their counters.
func appendCounted(out []Counted, msg []byte) []Counted {
	for typ, all := range attributes(payload(msg)) {
		if typ != nl.IPSET_ATTR_ADT {
			continue
		}
		for _, data := range attributes(all) {
			c := Counted{Element: parseElement(data)}
			for typ, v := range attributes(data) {
				switch {
				case len(v) != 8:
				case typ == nl.IPSET_ATTR_PACKETS:
					c.Packets = binary.BigEndian.Uint64(v)
				case typ == nl.IPSET_ATTR_BYTES:
					c.Bytes = binary.BigEndian.Uint64(v)
				}
			}
			out = append(out, c)
		}
	}
	return out
}

// parseElement reads an element.
func parseElement(data []byte) Element {
	var e Element
	var second netip.Addr
	bits, net := -1, -1
	for typ, v := range attributes(data) {
		switch typ {
		case nl.IPSET_ATTR_IP:
			e.Addr = parseAddr(v)
		case nl.IPSET_ATTR_IP2:
			second = parseAddr(v)
		case nl.IPSET_ATTR_CIDR:
			net = int(v[0])
		case nl.IPSET_ATTR_CIDR2:
			bits = int(v[0])
		case nl.IPSET_ATTR_PROTO:
			e.Protocol = v[0]
		case nl.IPSET_ATTR_PORT:
			if len(v) == 2 {
				e.Port = binary.BigEndian.Uint16(v)
			}
		}
	}
	if second.IsValid() {
		if bits < 0 {
			bits = second.BitLen()
		}
		e.Net = netip.PrefixFrom(second, bits)
	}
	if net >= 0 { // of a set of networks, the kernel tells of no port
		e.Addr, e.Net = netip.Addr{}, netip.PrefixFrom(e.Addr, net)
	}
	return e
}

// parseAddr reads a nested address, invalid if it is none.
func parseAddr(b []byte) netip.Addr {
	var out netip.Addr
	for _, v := range attributes(b) {
		out, _ = netip.AddrFromSlice(v)
	}
	return out
}
