// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"encoding/binary"

	"fairlead/nftables/table"
)

// Numbers by which nft describes expressions in user data: enum expr_types of its
// expression.h, enum proto_desc_id and the fields of headers in proto.h.
const (
	exprPayload = 7
	exprMeta    = 9
	exprConcat  = 13
	exprNumgen  = 23

	headerIP  = 12
	headerIP6 = 13
	headerTH  = 11

	fieldIPDaddr  = 12
	fieldIP6Daddr = 9
	fieldTHDport  = 2
	metaL4Proto   = 16
)

// typeof describes a concatenation by expressions of its types, for nft to declare a set
// by them: a random number has no type that could be declared by name. Each expression
// is its number (kind 0) and what it is about (kind 1).
func typeof(types []table.Type) []byte {
	var parts []byte
	for i, t := range types {
		parts = udata(parts, byte(i), string(exprOf(t)))
	}
	return udata(udataNumber(nil, 0, exprConcat), 1, string(parts))
}

func exprOf(t table.Type) []byte {
	payload := func(header, field uint32) []byte {
		return udata(udataNumber(nil, 0, exprPayload), 1, string(udataNumber(udataNumber(nil, 0, header), 1, field)))
	}
	switch t {
	case table.IPv4Addr:
		return payload(headerIP, fieldIPDaddr)
	case table.IPv6Addr:
		return payload(headerIP6, fieldIP6Daddr)
	case table.InetService:
		return payload(headerTH, fieldTHDport)
	case table.InetProto:
		return udata(udataNumber(nil, 0, exprMeta), 1, string(udataNumber(nil, 0, metaL4Proto)))
	}
	random := udataNumber(udataNumber(udataNumber(nil, 0, 1), 1, 2), 2, 0) // type, modulus, offset
	return udata(udataNumber(nil, 0, exprNumgen), 1, string(random))
}

// udataNumber appends a number, in the host's order.
func udataNumber(b []byte, kind byte, n uint32) []byte {
	return udata(b, kind, string(binary.NativeEndian.AppendUint32(nil, n)))
}
