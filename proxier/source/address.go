// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fairlead/proxier/model"
)

// Reasons for which an address is refused.
const (
	reasonNoAddress   = "is not an IP address"
	reasonZone        = "is an address with a zone, which has no meaning on another host"
	reasonMapped      = "is an IPv4-mapped IPv6 address, which no packet carries"
	reasonCompatible  = "is an IPv4-compatible IPv6 address, which are deprecated (RFC 4291)"
	reasonUnspecified = "is the unspecified address"
	reasonLoopback    = "is a loopback address"
	reasonLinkLocal   = "is a link-local address"
	reasonMulticast   = "is a multicast address"
	reasonBroadcast   = "is the broadcast address"
	reasonFamily      = "is not of the address family of the slice"
	reasonSameFamily  = "is a second address of the same family"
	reasonNoPrefix    = "is not a CIDR, an address and the length of a prefix like 192.0.2.0/24"
)

// maxAddressLen is more than any address has that is written in earnest; it
// bounds the work on one that is not.
const maxAddressLen = 64

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseUnicast returns the address that s spells, if packets can be sent to it
// on behalf of others; otherwise reason says why not. The host's own scopes
// (loopback, link-local) are refused because a destination rewritten to them
// reaches services that never meant to be reachable from outside the host
// (CVE-2021-25737); the API server refuses them too, but is not the only writer
// that a source may have.
func parseUnicast(s string) (addr netip.Addr, reason string) {
	addr, ok := parseAddr(s)
	switch {
	case !ok:
		return netip.Addr{}, reasonNoAddress
	case addr.Zone() != "":
		return netip.Addr{}, reasonZone
	case addr.Is4In6():
		return netip.Addr{}, reasonMapped
	case compatible(addr):
		return netip.Addr{}, reasonCompatible
	case addr.IsUnspecified():
		return netip.Addr{}, reasonUnspecified
	case addr.IsLoopback():
		return netip.Addr{}, reasonLoopback
	case addr.IsLinkLocalUnicast():
		return netip.Addr{}, reasonLinkLocal
	case addr.IsMulticast():
		return netip.Addr{}, reasonMulticast
	case addr == broadcast:
		return netip.Addr{}, reasonBroadcast
	}
	return addr, ""
}

// parseAddr parses an address the way the API server did before it insisted on
// canonical spelling: leading zeros in the dotted part are dropped and do not
// mean octal. Objects stored then are still around.
func parseAddr(s string) (netip.Addr, bool) {
	if len(s) > maxAddressLen {
		return netip.Addr{}, false
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return addr, true
	}
	colon := strings.LastIndexByte(s, ':')
	dotted := s[colon+1:]
	if !strings.Contains(dotted, ".") {
		return netip.Addr{}, false
	}
	octets := strings.Split(dotted, ".")
	for i, octet := range octets {
		for len(octet) > 1 && octet[0] == '0' {
			octet = octet[1:]
		}
		octets[i] = octet
	}
	addr, err := netip.ParseAddr(s[:colon+1] + strings.Join(octets, "."))
	return addr, err == nil
}

// parsePrefix returns the prefix that s spells, with the bits of the host
// cleared; otherwise reason says why not. Its address is parsed as leniently as
// others, and may be one that packets cannot be sent to.
func parsePrefix(s string) (prefix netip.Prefix, reason string) {
	address, length, found := strings.Cut(s, "/")
	addr, ok := parseAddr(address)
	if !found || !ok || len(length) > maxAddressLen {
		return netip.Prefix{}, reasonNoPrefix
	}
	bits, err := strconv.ParseUint(length, 10, 8)
	switch {
	case err != nil || int(bits) > addr.BitLen():
		return netip.Prefix{}, reasonNoPrefix
	case addr.Zone() != "":
		return netip.Prefix{}, reasonZone
	case addr.Is4In6():
		return netip.Prefix{}, reasonMapped
	}
	prefix = netip.PrefixFrom(addr, int(bits)).Masked()
	if compatible(prefix.Addr()) {
		return netip.Prefix{}, reasonCompatible
	}
	return prefix, ""
}

// compatible tells whether an address is one of IPv6 that embeds one of IPv4 in
// the deprecated way (RFC 4291, section 2.5.5.1). C libraries do not agree on how
// to print these, so rules that match one would be found to differ from what was
// written.
func compatible(addr netip.Addr) bool {
	raw := addr.As16()
	return addr.Is6() && [12]byte(raw[:12]) == [12]byte{} && (raw[12] != 0 || raw[13] != 0)
}

// prefixList returns the valid ones of a list of CIDRs, without duplicates. What
// is beyond the limit is refused.
func prefixList(field string, in []string, limit int, r *refusals) []netip.Prefix {
	var out []netip.Prefix
	for i, value := range bounded(r, field, in, limit) {
		out = appendPrefix(out, fmt.Sprintf("%s[%d]", field, i), value, r)
	}
	return out
}

// appendPrefix appends the prefix that value spells, unless it is there already.
func appendPrefix(out []netip.Prefix, field, value string, r *refusals) []netip.Prefix {
	prefix, reason := parsePrefix(value)
	if reason != "" {
		r.add(field, value, reason)
		return out
	}
	if slices.Contains(out, prefix) {
		return out
	}
	return append(out, prefix)
}

// familyOf returns the family that an EndpointSlice's addressType names; ok is
// false where it names none.
func familyOf(addressType string) (f model.Family, ok bool) {
	switch addressType {
	case "IPv4":
		return model.IPv4, true
	case "IPv6":
		return model.IPv6, true
	}
	return 0, false
}
