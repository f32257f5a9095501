// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"errors"
	"iter"

	"golang.org/x/sys/unix"
)

// errMalformed says that a datagram is not what nf_tables sends. What is in it
// is as good as lost.
var errMalformed = errors.New("malformed netlink message")

const (
	headerSize    = 16 // struct nlmsghdr, linux/netlink.h
	nfHeaderSize  = 4  // struct nfgenmsg, linux/netfilter/nfnetlink.h
	attributeSize = 4  // struct nlattr, linux/netlink.h
	// attributeType masks the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER out.
	attributeType = 0x3fff
)

// message is a message of nf_tables (linux/netfilter/nf_tables.h).
type message struct {
	kind   uint8 // NFT_MSG_NEWRULE, …
	family uint8 // NFPROTO_IPV4, …
	flags  uint16
	// sender is the netlink socket that the change came from.
	sender uint32
	// attrs are the message's attributes.
	attrs attributes
	// err is set where there is no message, because what is left of the
	// datagram is malformed.
	err error
}

// messages returns the messages of nf_tables in a datagram. It ends with one
// that has an error if not all could be read.
func messages(datagram []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for rest := datagram; len(rest) > 0; {
			if len(rest) < headerSize {
				yield(message{err: errMalformed})
				return
			}
			size := int64(binary.NativeEndian.Uint32(rest))
			kind := binary.NativeEndian.Uint16(rest[4:])
			if size < headerSize || size > int64(len(rest)) {
				yield(message{err: errMalformed})
				return
			}
			body := rest[headerSize:size]
			flags, sender := binary.NativeEndian.Uint16(rest[6:]), binary.NativeEndian.Uint32(rest[12:])
			rest = rest[min(align(int(size)), len(rest)):]
			if kind>>8 != unix.NFNL_SUBSYS_NFTABLES {
				continue
			}
			m := message{kind: uint8(kind), flags: flags, sender: sender, err: errMalformed}
			if len(body) >= nfHeaderSize {
				m.family, m.attrs, m.err = body[0], body[nfHeaderSize:], nil
			}
			if !yield(m) || m.err != nil {
				return
			}
		}
	}
}

// generationRequest is a message that asks for NFT_MSG_NEWGEN.
func generationRequest() []byte {
	b := make([]byte, headerSize+nfHeaderSize)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	return b
}

// align returns where the next message or attribute begins.
func align(n int) int { return (n + 3) &^ 3 }

// generation returns the number that NFT_MSG_NEWGEN tells.
func (m message) generation() (uint32, bool) {
	id := m.attrs.get(unix.NFTA_GEN_ID)
	if len(id) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(id), true
}

// created tells whether a NFT_MSG_NEWCHAIN is about a chain that is new, or
// may be: its creator has asked for a new one. Renaming does not. Kernels
// before 5.15, without the backports of "netfilter: nf_tables: honor
// NLM_F_CREATE and NLM_F_EXCL in event notification", never say so.
func (m message) created() bool { return m.flags&(unix.NLM_F_CREATE|unix.NLM_F_EXCL) != 0 }

// attributes are netlink attributes in a row.
type attributes []byte

// next splits the first attribute off. It returns false at the end, and where
// what is left is malformed.
func (a attributes) next() (kind uint16, value, rest attributes, ok bool) {
	if len(a) < attributeSize {
		return 0, nil, nil, false
	}
	size := int(binary.NativeEndian.Uint16(a))
	if size < attributeSize || size > len(a) {
		return 0, nil, nil, false
	}
	kind = binary.NativeEndian.Uint16(a[2:]) & attributeType
	return kind, a[attributeSize:size], a[min(align(size), len(a)):], true
}

// valid tells whether nothing but attributes is there. It does not look into
// them.
func (a attributes) valid() bool {
	for {
		_, _, rest, ok := a.next()
		if !ok {
			return len(a) == 0
		}
		a = rest
	}
}

// all returns the attributes of a kind.
func (a attributes) all(kind uint16) iter.Seq[attributes] {
	return func(yield func(attributes) bool) {
		for {
			k, value, rest, ok := a.next()
			if !ok || k == kind && !yield(value) {
				return
			}
			a = rest
		}
	}
}

// get returns the first attribute of a kind, nil where there is none.
func (a attributes) get(kind uint16) attributes {
	for value := range a.all(kind) {
		return value
	}
	return nil
}

// text returns the string in an attribute, without its final NUL.
func (a attributes) text() []byte {
	if n := len(a); n > 0 && a[n-1] == 0 {
		return a[:n-1]
	}
	return a
}

// targets returns the chains that a rule jumps or goes to, and false in place
// of what cannot be read. The message is one about a rule: it has all
// expressions of the rule, also if that is deleted.
func (m message) targets() iter.Seq2[[]byte, bool] {
	return func(yield func([]byte, bool) bool) {
		list := m.attrs.get(unix.NFTA_RULE_EXPRESSIONS)
		if !list.valid() && !yield(nil, false) {
			return
		}
		for expr := range list.all(unix.NFTA_LIST_ELEM) {
			chain, ok := expr.target()
			if (!ok || len(chain) > 0) && !yield(chain, ok) {
				return
			}
		}
	}
}

// target returns the chain that an expression jumps or goes to, if it does so,
// and false where it cannot be read.
func (a attributes) target() ([]byte, bool) {
	if !a.valid() {
		return nil, false
	}
	if string(a.get(unix.NFTA_EXPR_NAME).text()) != "immediate" {
		return nil, true
	}
	for _, kind := range []uint16{unix.NFTA_EXPR_DATA, unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT} {
		if a = a.get(kind); !a.valid() {
			return nil, false
		}
	}
	return a.get(unix.NFTA_VERDICT_CHAIN).text(), true
}
