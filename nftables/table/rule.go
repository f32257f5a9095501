// SPDX-License-Identifier: Apache-2.0

package table

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
)

// Rule is a rule: expressions, and how nft writes them.
type Rule struct {
	// Text is without the comment.
	Text    string
	Comment string
	Exprs   []Expr
}

// ID tells rules apart by all that they say. It stands in the kernel with the rule,
// so that rules can be compared without reading their expressions.
func (r Rule) ID() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q", r.Text, r.Comment)
	for _, e := range r.Exprs {
		fmt.Fprintf(h, "\n%#v", e)
	}
	return base32.StdEncoding.EncodeToString(h.Sum(nil)[:10])
}

// Reg is a register of 32 bits, from 0 to 15. Longer values are in several.
type Reg uint8

// Expr is an expression of a rule, as the kernel has them (man 8 nft,
// include/uapi/linux/netfilter/nf_tables.h).
type Expr interface{ expr() }

type (
	// Meta loads something about the packet.
	Meta struct {
		Key uint32
		Dst Reg
	}
	// Payload loads a part of the packet.
	Payload struct {
		Base, Offset, Len uint32
		Dst               Reg
	}
	// CT loads something about the packet's connection. Original is set for what the
	// first packet had.
	CT struct {
		Key      uint32
		Original bool
		Dst      Reg
	}
	// FIB loads the type of an address, of the source or the destination.
	FIB struct {
		Source bool
		Dst    Reg
	}
	// Bitwise masks a value.
	Bitwise struct {
		Src, Dst Reg
		Mask     string
	}
	// Compare goes on with the rule only if a register is, or is not, a value.
	Compare struct {
		Src   Reg
		Not   bool
		Value string
	}
	// Random loads a random number below Mod.
	Random struct {
		Mod uint32
		Dst Reg
	}
	// Hash loads a number below Mod that follows from what is in registers.
	Hash struct {
		Src, Dst       Reg
		Len, Mod, Seed uint32
	}
	// Lookup goes on only if a set has, or has not, a key. Of a map it loads the data,
	// or the verdict. Its zero Dst is of no meaning unless Load is set.
	Lookup struct {
		Set               string
		Src, Dst          Reg
		Not, Load, Decide bool
	}
	// Update adds an element to a set, or starts the time of one anew.
	Update struct {
		Set       string
		Key, Data Reg
		Timeout   uint64 // in milliseconds
	}
	// DNAT translates the destination to an address and a port in registers.
	DNAT struct {
		Family     Family
		Addr, Port Reg
	}
	// Masquerade translates the source to an address of the node.
	Masquerade struct{ FullyRandom bool }
	// Reject answers with an ICMP message: port unreachable.
	Reject struct{ IPv6 bool }
	// Verdict ends the rule: accept, drop, return, or leads to a chain.
	Verdict struct {
		Code  int32
		Chain string
	}
	// Counter counts packets and bytes.
	Counter struct{}
)

func (Meta) expr()       {}
func (Payload) expr()    {}
func (CT) expr()         {}
func (FIB) expr()        {}
func (Bitwise) expr()    {}
func (Compare) expr()    {}
func (Random) expr()     {}
func (Hash) expr()       {}
func (Lookup) expr()     {}
func (Update) expr()     {}
func (DNAT) expr()       {}
func (Masquerade) expr() {}
func (Reject) expr()     {}
func (Verdict) expr()    {}
func (Counter) expr()    {}

// Verdicts, as the kernel numbers them (NFT_JUMP, NF_DROP, …).
const (
	codeDrop   = 0
	codeAccept = 1
	codeJump   = -3
	codeGoto   = -4
	codeReturn = -5
)

// Numbers of nf_tables.
const (
	metaL4Proto  = 16
	metaIIF      = 4
	metaIIFName  = 6
	netHeader    = 1
	transHeader  = 2
	ctState      = 0
	ctDirection  = 1
	ctStatus     = 2
	ctProtocol   = 10
	ctProtoDst   = 12
	ctDstIP      = 20
	ctDstIP6     = 22
	stateInvalid = 1
	stateNew     = 8
	statusKnown  = 8 // IPS_CONFIRMED
	statusDNAT   = 0x20
	addrLocal    = 2 // RTN_LOCAL
)

// Field is a part of a key: something that a rule loads.
type Field struct {
	text string
	typ  Type
	load func(dst Reg) []Expr
}

// Source, Destination, OriginalDestination are addresses of a packet, the last one
// that before translation.
func Source(f Family) Field {
	return Field{f.String() + " saddr", AddrType(f), func(r Reg) []Expr { return []Expr{address(f, false, r)} }}
}

// Destination is described at Source.
func Destination(f Family) Field {
	return Field{f.String() + " daddr", AddrType(f), func(r Reg) []Expr { return []Expr{address(f, true, r)} }}
}

// OriginalDestination is described at Source.
func OriginalDestination(f Family) Field {
	key := uint32(ctDstIP)
	if f == IPv6 {
		key = ctDstIP6
	}
	return Field{"ct original " + f.String() + " daddr", AddrType(f), func(r Reg) []Expr { return []Expr{CT{Key: key, Original: true, Dst: r}} }}
}

func address(f Family, destination bool, r Reg) Payload {
	offset, n := uint32(12), uint32(f.addrLen())
	if f == IPv6 {
		offset = 8
	}
	if destination {
		offset += n
	}
	return Payload{Base: netHeader, Offset: offset, Len: n, Dst: r}
}

// Protocol is the packet's transport protocol.
func Protocol() Field {
	return Field{"meta l4proto", InetProto, func(r Reg) []Expr { return []Expr{Meta{Key: metaL4Proto, Dst: r}} }}
}

// Port is the packet's destination port, OriginalPort that before translation, and
// SourcePort where it comes from.
func Port() Field {
	return Field{"th dport", InetService, func(r Reg) []Expr { return []Expr{Payload{Base: transHeader, Offset: 2, Len: 2, Dst: r}} }}
}

// PortOf is Port, in a rule for one protocol, which nft writes with its name.
func PortOf(proto uint8) Field {
	f := Port()
	f.text = ProtocolName(proto) + " dport"
	return f
}

// OriginalPort is described at Port. nft reads it only in rules for one protocol.
func OriginalPort() Field {
	return Field{"ct original proto-dst", InetService, func(r Reg) []Expr { return []Expr{CT{Key: ctProtoDst, Original: true, Dst: r}} }}
}

// ConnectionProtocol is the transport protocol of a packet's connection, and Direction which way
// the packet goes in it. A message of ICMP about a connection is one of its packets.
func ConnectionProtocol() Field {
	return Field{"ct protocol", InetProto, func(r Reg) []Expr { return []Expr{CT{Key: ctProtocol, Dst: r}} }}
}

// Direction is described at ConnectionProtocol.
func Direction() Field {
	return Field{"ct direction", CTDir, func(r Reg) []Expr { return []Expr{CT{Key: ctDirection, Dst: r}} }}
}

// OneOf is a random number below n.
func OneOf(n int) Field {
	return Field{"numgen random mod " + strconv.Itoa(n), Integer, func(r Reg) []Expr { return []Expr{Random{Mod: uint32(n), Dst: r}} }}
}

// HashOf is a number below n that follows from the client's address, and from its
// port where that is asked for.
func HashOf(f Family, port bool, n int, seed uint32) Field {
	text := "jhash " + f.String() + " saddr"
	hash := Hash{Src: 12, Len: uint32(f.addrLen()), Mod: uint32(n), Seed: seed}
	load := []Expr{address(f, false, hash.Src)}
	if port {
		text += " . th sport"
		hash.Src = Reg(11)
		load = []Expr{address(f, false, hash.Src), Payload{Base: transHeader, Offset: 0, Len: 2, Dst: hash.Src + Reg(f.addrLen()/4)}}
		hash.Len += 4
	}
	text += " mod " + strconv.Itoa(n)
	if seed != 0 {
		text += fmt.Sprintf(" seed %#x", seed)
	}
	return Field{text, Integer, func(r Reg) []Expr {
		h := hash
		h.Dst = r
		return append(load[:len(load):len(load)], h)
	}}
}

// keyText is a key as nft writes it.
func keyText(key []Field) string {
	var parts []string
	for _, f := range key {
		parts = append(parts, f.text)
	}
	return strings.Join(parts, " . ")
}

// load loads a key into registers from r on, and returns the next free one.
func load(key []Field, r Reg) ([]Expr, Reg) {
	var out []Expr
	for _, f := range key {
		out = append(out, f.load(r)...)
		r += Reg(Padded(f.typ.Len()) / 4)
	}
	return out, r
}
