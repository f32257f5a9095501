// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// Key is the destination that a rule is for.
type Key struct {
	// Addr is invalid where any address will do, as with node ports. The keys
	// of one Tree have all an address of one family, or all none.
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

// protocols are those that a Key can have, in the order of the chains.
var protocols = [...]model.Protocol{model.TCP, model.UDP, model.SCTP}

// portDigits is how many digits a port has.
const portDigits = 4

// path returns the digits, of 4 bits each, of the address, of the protocol and
// of the port: the way from the root to the rule.
func (k Key) path() string {
	var b []byte
	if k.Addr.IsValid() {
		for _, c := range k.Addr.AsSlice() {
			b = append(b, c>>4, c&15)
		}
	}
	for i, p := range protocols {
		if p == k.Protocol {
			b = append(b, byte(i))
		}
	}
	return string(append(b, byte(k.Port>>12), byte(k.Port>>8&15), byte(k.Port>>4&15), byte(k.Port&15)))
}

// slot is all destinations whose path starts with the same digits.
type slot struct {
	digits string
	// addr is the number of digits that addresses have.
	addr int
}

// prefix returns the addresses of a slot.
func (s slot) prefix() netip.Prefix {
	n := min(len(s.digits), s.addr)
	raw := make([]byte, s.addr/2)
	for i := range n {
		raw[i/2] |= s.digits[i] << (4 * (1 - i%2))
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(a, 4*n)
}

// protocol returns the protocol of a slot, empty where it has all.
func (s slot) protocol() string {
	if len(s.digits) <= s.addr {
		return ""
	}
	return protocols[s.digits[s.addr]].Lower()
}

// ports returns the ports of a slot; ok is false where it has all.
func (s slot) ports() (lo, hi int, ok bool) {
	n := len(s.digits) - s.addr - 1
	if n <= 0 {
		return 0, 0, false
	}
	for _, d := range []byte(s.digits[s.addr+1:]) {
		lo = lo<<4 | int(d)
	}
	shift := 4 * (portDigits - n)
	return lo << shift, (lo+1)<<shift - 1, true
}

// String returns the slot as chains are named for it: "10.96.32.0/20",
// "10.96.0.10/tcp", "tcp/28672-32767".
func (s slot) String() string {
	var parts []string
	if s.addr > 0 {
		parts = append(parts, s.prefix().String())
	}
	if p := s.protocol(); p != "" {
		if s.addr > 0 {
			parts[0] = s.prefix().Addr().String()
		}
		parts = append(parts, p)
	}
	if lo, hi, ok := s.ports(); ok {
		parts = append(parts, fmt.Sprintf("%d-%d", lo, hi))
	}
	return strings.Join(parts, "/")
}

// chain returns the name of the chain for a slot. What is too long is hashed,
// which is so for most of IPv6.
func (s slot) chain(prefix string) string {
	text := s.String()
	if len(prefix)+len(text) <= ruleset.MaxChainName {
		return prefix + text
	}
	sum := sha256.Sum256([]byte(text))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// match returns what a rule has to match to lead to the slot, in the form of
// iptables-save, with a space at the end. more comes between the protocol and
// the ports.
func (s slot) match(more string) string {
	var b strings.Builder
	if s.addr > 0 {
		b.WriteString("-d " + s.prefix().String() + " ")
	}
	p := s.protocol()
	if p != "" {
		b.WriteString("-p " + p + " ")
	}
	b.WriteString(more)
	if lo, hi, ok := s.ports(); ok {
		fmt.Fprintf(&b, "-m %s --dport %d", p, lo)
		if hi > lo {
			fmt.Fprintf(&b, ":%d", hi)
		}
		b.WriteByte(' ')
	}
	return b.String()
}
