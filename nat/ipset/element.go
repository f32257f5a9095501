// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Type is a type of sets, by its name in the kernel.
type Type string

// The types of sets that NewSet knows, and the fields that their elements have.
const (
	HashIP        Type = "hash:ip"         // Addr
	HashIPPort    Type = "hash:ip,port"    // Addr, Protocol, Port
	HashIPPortIP  Type = "hash:ip,port,ip" // Addr, Protocol, Port, and Net of a single address
	HashIPPortNet Type = "hash:ip,port,net"
	BitmapPort    Type = "bitmap:port" // Port
	HashNet       Type = "hash:net"    // Net
)

// Element is an element of a set. Fields that elements of its type do not have are
// zero, so two elements are the same if they are equal.
type Element struct {
	Addr netip.Addr
	// Net is masked, and not all there is (/0), which the kernel does not take.
	Net netip.Prefix
	// Protocol is a number of IP, IPPROTO_TCP for example.
	Protocol uint8
	Port     uint16
}

// Single returns the Net of a single address.
func Single(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// Loop returns the element of a set of destinations and sources (HashIPPortIP) that
// has an endpoint's address as both.
func Loop(protocol uint8, endpoint netip.AddrPort) Element {
	return Element{Addr: endpoint.Addr(), Protocol: protocol, Port: endpoint.Port(), Net: Single(endpoint.Addr())}
}

// IsLoop tells whether an element has one address as both.
func (e Element) IsLoop() bool { return e.Net == Single(e.Addr) }

// String returns the element as ipset prints it: "10.0.0.1,tcp:80,10.0.0.0/8" for
// example.
func (e Element) String() string {
	port := strconv.Itoa(int(e.Port))
	switch {
	case e.Net.IsValid() && !e.Addr.IsValid() && e.Net.IsSingleIP():
		return e.Net.Addr().String()
	case e.Net.IsValid() && !e.Addr.IsValid():
		return e.Net.String()
	case !e.Addr.IsValid():
		return port
	}
	out := e.Addr.String()
	if e.Protocol != 0 {
		out += "," + protocolName(e.Protocol) + ":" + port
	}
	switch {
	case e.Net.IsSingleIP():
		out += "," + e.Net.Addr().String()
	case e.Net.IsValid():
		out += "," + e.Net.String()
	}
	return out
}

// protocolName returns ipset's name of a protocol.
func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

// Compare orders the elements of a set.
func (e Element) Compare(f Element) int {
	return cmp.Or(e.Addr.Compare(f.Addr), cmp.Compare(e.Protocol, f.Protocol), cmp.Compare(e.Port, f.Port), e.Net.Compare(f.Net))
}

// Save returns a set as ipset save prints it, its elements in order, without what
// is about its size.
func Save(name string, typ Type, ipv6 bool, elements []Element) string {
	var b strings.Builder
	fmt.Fprintf(&b, "create %s %s%s\n", name, typ, options(typ, ipv6))
	elements = slices.Clone(elements)
	slices.SortFunc(elements, Element.Compare)
	for _, e := range elements {
		fmt.Fprintf(&b, "add %s %s\n", name, e)
	}
	return b.String()
}

func options(typ Type, ipv6 bool) string {
	switch {
	case typ == BitmapPort:
		return " range 0-65535"
	case ipv6:
		return " family inet6"
	}
	return " family inet"
}
