// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzElement: what is written is what is read, and bytes that are no element are
// read as far as they make sense.
func FuzzElement(f *testing.F) {
	one, two := netip.MustParseAddr("10.244.0.1"), netip.MustParsePrefix("fd00::/33")
	for _, typ := range []Type{HashIP, HashIPPort, HashIPPortIP, HashIPPortNet, BitmapPort} {
		b := appendElement(nil, typ, Element{Addr: one, Protocol: unix.IPPROTO_TCP, Port: 443, Net: two})
		f.Add(b, one.AsSlice(), two.Addr().AsSlice(), uint8(33), uint8(6), uint16(443))
		f.Add(b[:len(b)-3], two.Addr().AsSlice(), one.AsSlice(), uint8(32), uint8(17), uint16(0))
	}
	f.Fuzz(func(t *testing.T, msg, addr, second []byte, bits, protocol uint8, port uint16) {
		for _, data := range attributes(msg) {
			parseElement(data)
		}
		appendElements(nil, msg)
		parse(msg)
		a, ok := netip.AddrFromSlice(addr)
		b, ok2 := netip.AddrFromSlice(second)
		if !ok || !ok2 || a.Is4In6() || b.Is4In6() {
			return
		}
		e := Element{Addr: a, Net: netip.PrefixFrom(b, int(bits)%(b.BitLen()+1)), Protocol: protocol, Port: port}
		for typ, want := range map[Type]Element{
			HashIP:        {Addr: a},
			HashIPPort:    {Addr: a, Protocol: protocol, Port: port},
			HashIPPortIP:  {Addr: a, Protocol: protocol, Port: port, Net: Single(b)},
			HashIPPortNet: e,
			BitmapPort:    {Port: port},
		} {
			n := 0
			for _, data := range attributes(appendElement(nil, typ, e)) {
				n++
				if got := parseElement(data); got != want {
					t.Errorf("%s: %s is read as %s", typ, want, got)
				}
			}
			if n != 1 {
				t.Errorf("%s: %s is %d attributes", typ, e, n)
			}
		}
	})
}
