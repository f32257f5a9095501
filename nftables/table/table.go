// SPDX-License-Identifier: Apache-2.0

// Package table has the words of nf_tables: what a table may consist of, and the steps
// of a transaction that changes it. It knows neither Services nor netlink.
//
// Values are typed, and their text is what `nft list table` prints (nft 1.0.6), so
// that golden files read as the kernel's own.
package table

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// Family is the address family of a table, as nf_tables numbers it.
type Family uint8

// The families of tables (NFPROTO_IPV4, NFPROTO_IPV6).
const (
	IPv4 Family = 2
	IPv6 Family = 10
)

// String returns the family as nft writes it.
func (f Family) String() string {
	if f == IPv6 {
		return "ip6"
	}
	return "ip"
}

// addrLen is the length of an address in bytes.
func (f Family) addrLen() int {
	if f == IPv6 {
		return 16
	}
	return 4
}

// Type is a type of data, as nft names it.
type Type uint8

// The types, with nft's numbers for them (enum datatypes in its datatype.h).
const (
	Integer     Type = 4 // of 4 bytes, in the host's order
	IPv4Addr    Type = 7
	IPv6Addr    Type = 8
	InetProto   Type = 12
	InetService Type = 13
	CTDir       Type = 27 // original or reply
)

// AddrType returns the type of a family's addresses.
func AddrType(f Family) Type {
	if f == IPv6 {
		return IPv6Addr
	}
	return IPv4Addr
}

// Len is the length of a value in bytes. In a concatenation each value takes a
// multiple of four.
func (t Type) Len() int {
	switch t {
	case IPv6Addr:
		return 16
	case InetProto, CTDir:
		return 1
	case InetService:
		return 2
	}
	return 4
}

// String returns the type's name.
func (t Type) String() string {
	switch t {
	case IPv4Addr:
		return "ipv4_addr"
	case IPv6Addr:
		return "ipv6_addr"
	case InetProto:
		return "inet_proto"
	case InetService:
		return "inet_service"
	case CTDir:
		return "ct_dir"
	}
	return "integer"
}

// Padded returns n rounded up to a multiple of four, as registers hold data.
func Padded(n int) int { return (n + 3) &^ 3 }

// Set is a set, or a map.
type Set struct {
	Name string
	// Comment says what the set is for.
	Comment string
	// Key are the types of the key's parts. One that is an Integer is the result of an
	// expression, so that nft declares the set by `typeof`.
	Key []Type
	// Data are the types of what a map leads to. Verdicts is set for a map to verdicts.
	Data     []Type
	Verdicts bool
	// Interval is set where elements are ranges.
	Interval bool
	// Counter is set where each element counts the packets that are found by it.
	Counter bool
	// Dynamic is set where rules add elements, each with a timeout of its own. Size is
	// then how many there are at most.
	Dynamic bool
	Size    uint32
}

// Map tells whether the set is a map.
func (s *Set) Map() bool { return s.Verdicts || len(s.Data) > 0 }

// KeyLen and DataLen are the lengths of key and data in bytes.
func (s *Set) KeyLen() int { return length(s.Key) }

// DataLen is described at KeyLen.
func (s *Set) DataLen() int { return length(s.Data) }

func length(types []Type) int {
	if len(types) == 1 {
		return types[0].Len()
	}
	n := 0
	for _, t := range types {
		n += Padded(t.Len())
	}
	return n
}

// Element is an element of a set. Key, End and Data are as the kernel has them: the
// values in network byte order, Integers in the host's, in a concatenation each
// filled up with zeros to a multiple of four bytes.
type Element struct {
	Key string
	// End is the last key of a range, empty where there is no range.
	End string
	// Data is what a map leads to, or its verdict in text: "goto endpoints-3".
	Data string
	// Comment is for people. It does not make elements different.
	Comment string
}

// maxComment is how long nft prints comments (NFTNL_UDATA_COMMENT_MAXLEN, less the end).
const maxComment = 127

// Shorten cuts a comment to what nft can print, and marks that.
func Shorten(s string) string {
	if len(s) <= maxComment {
		return s
	}
	return s[:maxComment-3] + "..."
}

// Compare orders elements by key.
func (e Element) Compare(o Element) int {
	return cmp.Or(strings.Compare(e.Key, o.Key), strings.Compare(e.End, o.End))
}

// Chain is a chain with its rules.
type Chain struct {
	Name string
	// Hook, Type and Priority are those of a base chain; Hook is empty for others. The
	// policy of a base chain is to accept.
	Hook, Type string
	Priority   int
	Rules      []Rule
}

// Table is all that a table consists of.
type Table struct {
	Family Family
	Name   string
	// Comment says whose the table is.
	Comment  string
	Sets     []*Set
	Chains   []*Chain
	Elements map[string][]Element // by the name of the set
}

// Step is one step of a transaction: AddTable, DeleteTable, AddSet, AddChain,
// SetRules, DeleteChain, FlushSet, AddElements, DeleteElements.
type Step interface{ step() }

type (
	// AddTable makes the table, if there is none.
	AddTable struct{ Comment string }
	// DeleteTable removes the table with all that is in it. There must be one.
	DeleteTable struct{}
	// AddSet makes a set that there is none of.
	AddSet struct{ *Set }
	// DeleteSet removes a set that no rule names any more.
	DeleteSet struct{ Name string }
	// FlushSet removes all elements of a set.
	FlushSet struct{ Name string }
	// AddChain makes a chain without rules, if there is none. That of a base chain
	// with other properties fails.
	AddChain struct{ *Chain }
	// SetRules makes rules all that a chain has.
	SetRules struct {
		Chain string
		Rules []Rule
	}
	// DeleteChain removes a chain, with its rules, that nothing leads to any more.
	DeleteChain struct{ Name string }
	// AddElements adds elements, of which the set has none with other data.
	AddElements struct {
		Set      *Set
		Elements []Element
	}
	// DeleteElements removes elements, which there must be.
	DeleteElements struct {
		Set      *Set
		Elements []Element
	}
)

func (AddTable) step()       {}
func (DeleteTable) step()    {}
func (AddSet) step()         {}
func (DeleteSet) step()      {}
func (FlushSet) step()       {}
func (AddChain) step()       {}
func (SetRules) step()       {}
func (DeleteChain) step()    {}
func (AddElements) step()    {}
func (DeleteElements) step() {}

// State is what there is of a table, elements apart.
type State struct {
	// Sets have, by name, the properties of sets as Set.Properties gives them.
	Sets map[string]string
	// Chains have, by name, what Chain.Properties gives, and Rules.
	Chains map[string]ChainState
}

// ChainState is what there is of a chain.
type ChainState struct {
	Properties string
	// Rules are the rules by what Rule.ID gives; one that is not ours is empty.
	Rules []string
}

// Key makes keys and data of elements: concatenations of values.
type Key []byte

// Addr appends an address.
func (k Key) Addr(a netip.Addr) Key { return append(k, a.AsSlice()...) }

// Proto appends a protocol, by its number.
func (k Key) Proto(n uint8) Key { return append(k, n, 0, 0, 0) }

// Port appends a port.
func (k Key) Port(p uint16) Key { return append(k, byte(p>>8), byte(p), 0, 0) }

// Direction appends a direction of a connection's packets.
func (k Key) Direction(reply bool) Key {
	if reply {
		return append(k, 1, 0, 0, 0)
	}
	return append(k, 0, 0, 0, 0)
}

// Integer appends a number.
func (k Key) Integer(n uint32) Key { return binary.NativeEndian.AppendUint32(k, n) }

// SortElements orders elements by key.
func SortElements(es []Element) { slices.SortFunc(es, Element.Compare) }
