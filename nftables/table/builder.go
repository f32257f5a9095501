// SPDX-License-Identifier: Apache-2.0

package table

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Builder puts a rule together, from left to right. Each part goes on only if it
// matches. It is a value: one can be the beginning of several rules.
type Builder struct {
	family Family
	text   []string
	exprs  []Expr
}

// On begins a rule of a table of a family.
func On(f Family) Builder { return Builder{family: f} }

func (b Builder) with(text string, exprs ...Expr) Builder {
	b.text = append(b.text[:len(b.text):len(b.text)], text)
	b.exprs = append(b.exprs[:len(b.exprs):len(b.exprs)], exprs...)
	return b
}

// In matches what is in a set, NotIn what is not.
func (b Builder) In(s *Set, key ...Field) Builder { return b.lookup(s, false, key) }

// NotIn is described at In.
func (b Builder) NotIn(s *Set, key ...Field) Builder { return b.lookup(s, true, key) }

func (b Builder) lookup(s *Set, not bool, key []Field) Builder {
	exprs, _ := load(key, 0)
	text := keyText(key) + " "
	if not {
		text += "!= "
	}
	return b.with(text+"@"+s.Name, append(exprs, Lookup{Set: s.Name, Not: not})...)
}

// New matches the first packet of a connection, Invalid what belongs to none and may
// begin none, Translated what has another destination than it was sent to. Known matches what comes
// once a packet of the connection has got through: all but the first one.
func (b Builder) New() Builder { return b.flag("ct state new", ctState, stateNew) }

// Invalid is described at New.
func (b Builder) Invalid() Builder { return b.flag("ct state invalid", ctState, stateInvalid) }

// Translated is described at New.
func (b Builder) Translated() Builder { return b.flag("ct status dnat", ctStatus, statusDNAT) }

// Untouched matches packets of connections whose destination has not been translated.
func (b Builder) Untouched() Builder {
	return b.with("ct status ! dnat", CT{Key: ctStatus}, Bitwise{Mask: number(statusDNAT)}, Compare{Value: number(0)})
}

// Known is described at New.
func (b Builder) Known() Builder { return b.flag("ct status confirmed", ctStatus, statusKnown) }

func (b Builder) flag(text string, key, bit uint32) Builder {
	return b.with(text, CT{Key: key}, Bitwise{Mask: number(bit)}, Compare{Not: true, Value: number(0)})
}

func number(n uint32) string { return string(Key(nil).Integer(n)) }

// ToNode matches what is for an address of the node, FromNode what comes from one.
func (b Builder) ToNode() Builder {
	return b.with("fib daddr type local", FIB{}, Compare{Value: number(addrLocal)})
}

// FromNode is described at ToNode.
func (b Builder) FromNode() Builder {
	return b.with("fib saddr type local", FIB{Source: true}, Compare{Value: number(addrLocal)})
}

// Loopback matches what is for 127.0.0.0/8 or ::1, NotLoopback all else.
func (b Builder) Loopback() Builder { return b.loopback(false) }

// NotLoopback is described at Loopback.
func (b Builder) NotLoopback() Builder { return b.loopback(true) }

func (b Builder) loopback(not bool) Builder {
	to, value := address(b.family, true, 0), netip.IPv6Loopback().AsSlice()
	text := Destination(b.family).text + " "
	if not {
		text += "!= "
	}
	if b.family == IPv6 {
		return b.with(text+"::1", to, Compare{Not: not, Value: string(value)})
	}
	to.Len = 1 // as nft does for a prefix of whole bytes
	return b.with(text+"127.0.0.0/8", to, Compare{Not: not, Value: "\x7f"})
}

// NotFrom matches what arrives by another interface than one of a name, or whose
// name begins so where "*" is at the end. From is the opposite.
func (b Builder) NotFrom(name string) Builder { return b.iif(name, true) }

// From is described at NotFrom.
func (b Builder) From(name string) Builder { return b.iif(name, false) }

func (b Builder) iif(name string, not bool) Builder {
	text := "iifname "
	if not {
		text += "!= "
	}
	text += strconv.Quote(name)
	value := name + "\x00" // the name and its end, of 16 bytes
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		value = prefix
	} else {
		value += strings.Repeat("\x00", max(0, 16-len(value)))
	}
	return b.with(text, Meta{Key: metaIIFName}, Compare{Not: not, Value: value})
}

// Arrived matches what has come by an interface, and was not sent by the node.
func (b Builder) Arrived() Builder {
	return b.with("iif != 0", Meta{Key: metaIIF}, Compare{Not: true, Value: number(0)})
}

// Of matches one protocol, by its number.
func (b Builder) Of(proto uint8) Builder {
	return b.with("meta l4proto "+ProtocolName(proto), Meta{Key: metaL4Proto}, Compare{Value: string([]byte{proto})})
}

// OfConnection matches the packets of connections of one protocol, by its number. After it
// nft knows what the original port is.
func (b Builder) OfConnection(proto uint8) Builder {
	return b.with("ct protocol "+ProtocolName(proto), CT{Key: ctProtocol}, Compare{Value: string([]byte{proto})})
}

// WithPort matches one protocol and, as all packets have, a port. After it nft knows what a
// port is.
func (b Builder) WithPort(proto uint8) Builder {
	return b.with(ProtocolName(proto)+" dport != 0",
		Meta{Key: metaL4Proto}, Compare{Value: string([]byte{proto})},
		Payload{Base: transHeader, Offset: 2, Len: 2}, Compare{Not: true, Value: "\x00\x00"})
}

// Count counts.
func (b Builder) Count() Builder { return b.with("counter", Counter{}) }

// Rule ends with what was put together, with a comment, which may be empty.
func (b Builder) rule() Rule { return Rule{Text: strings.Join(b.text, " "), Exprs: b.exprs} }

// Only does nothing more: what was matched has been counted.
func (b Builder) Only() Rule { return b.rule() }

// Drop drops, Return ends the chain, Reject refuses, Goto and Jump lead to a chain, the
// latter only for a while.
func (b Builder) Drop() Rule { return b.verdict("drop", codeDrop, "") }

// Return is described at Drop.
func (b Builder) Return() Rule { return b.verdict("return", codeReturn, "") }

// Goto is described at Drop.
func (b Builder) Goto(chain string) Rule { return b.verdict("goto "+chain, codeGoto, chain) }

// Jump is described at Drop.
func (b Builder) Jump(chain string) Rule { return b.verdict("jump "+chain, codeJump, chain) }

func (b Builder) verdict(text string, code int32, chain string) Rule {
	return b.with(text, Verdict{Code: code, Chain: chain}).rule()
}

// Reject is described at Drop.
func (b Builder) Reject() Rule {
	return b.with("reject", Reject{IPv6: b.family == IPv6}).rule()
}

// Masquerade gives the packet an address of the node as its source, and a random port.
func (b Builder) Masquerade() Rule {
	return b.with("masquerade fully-random", Masquerade{FullyRandom: true}).rule()
}

// MasqueradeKeepingPorts gives it one, too, and keeps the source port if that is free.
func (b Builder) MasqueradeKeepingPorts() Rule { return b.with("masquerade", Masquerade{}).rule() }

// Decide does what a map has for a key.
func (b Builder) Decide(m *Set, key ...Field) Rule {
	exprs, _ := load(key, 0)
	return b.with(keyText(key)+" vmap @"+m.Name, append(exprs, Lookup{Set: m.Name, Decide: true})...).rule()
}

// DNAT translates to the address and port that a map has for a key.
func (b Builder) DNAT(m *Set, key ...Field) Rule {
	exprs, _ := load(key, 0)
	exprs = append(exprs, Lookup{Set: m.Name, Load: true},
		DNAT{Family: b.family, Addr: 0, Port: Reg(b.family.addrLen() / 4)})
	return b.with("dnat "+b.family.String()+" to "+keyText(key)+" map @"+m.Name, exprs...).rule()
}

// Remember adds an element to a map, or starts its time anew: key leads to data.
func (b Builder) Remember(m *Set, timeout time.Duration, key, data []Field) Rule {
	exprs, next := load(key, 0)
	more, _ := load(data, next)
	text := fmt.Sprintf("update @%s { %s timeout %s : %s }", m.Name, keyText(key), seconds(timeout), keyText(data))
	return b.with(text, append(append(exprs, more...), Update{Set: m.Name, Key: 0, Data: next, Timeout: uint64(timeout / time.Millisecond)})...).rule()
}

// seconds is a time as nft writes it: 3h, 1d12h.
func seconds(d time.Duration) string {
	n, out := int(d/time.Second), ""
	for _, u := range []struct {
		name string
		size int
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}} {
		if k := n / u.size; k > 0 {
			out += strconv.Itoa(k) + u.name
			n -= k * u.size
		}
	}
	return out
}

// Because returns the rule with a comment.
func (r Rule) Because(comment string) Rule {
	r.Comment = comment
	return r
}

// ParseVerdict reads a verdict as Element.Data has it.
func ParseVerdict(s string) (Verdict, bool) {
	action, chain, _ := strings.Cut(s, " ")
	switch action {
	case "goto":
		return Verdict{codeGoto, chain}, chain != ""
	case "jump":
		return Verdict{codeJump, chain}, chain != ""
	case "drop":
		return Verdict{Code: codeDrop}, chain == ""
	case "accept":
		return Verdict{Code: codeAccept}, chain == ""
	case "return":
		return Verdict{Code: codeReturn}, chain == ""
	}
	return Verdict{}, false
}

// String is the verdict as Element.Data has it.
func (v Verdict) String() string {
	switch v.Code {
	case codeGoto:
		return "goto " + v.Chain
	case codeJump:
		return "jump " + v.Chain
	case codeDrop:
		return "drop"
	case codeAccept:
		return "accept"
	case codeReturn:
		return "return"
	}
	return "verdict " + strconv.Itoa(int(v.Code))
}

// ProtocolName is the name of a transport protocol, by its number.
func ProtocolName(n uint8) string {
	switch n {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(n))
}
