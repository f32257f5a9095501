// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// register returns a register as the kernel numbers it.
func register(r table.Reg) uint32 { return uint32(r) + 8 } // NFT_REG32_00

// exprs puts a rule's expressions into a message.
func (b *buffer) exprs(list []table.Expr) error {
	all := b.open(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range list {
		one := b.open(unix.NFTA_LIST_ELEM)
		if err := b.expr(e); err != nil {
			return err
		}
		b.shut(one)
	}
	b.shut(all)
	return nil
}

// named begins an expression with a name.
func (b *buffer) named(name string) int {
	b.text(unix.NFTA_EXPR_NAME, name)
	return b.open(unix.NFTA_EXPR_DATA)
}

func (b *buffer) expr(e table.Expr) error {
	switch e := e.(type) {
	case table.Meta:
		at := b.named("meta")
		b.number(unix.NFTA_META_KEY, e.Key)
		b.number(unix.NFTA_META_DREG, register(e.Dst))
		b.shut(at)
	case table.Payload:
		at := b.named("payload")
		b.number(unix.NFTA_PAYLOAD_DREG, register(e.Dst))
		b.number(unix.NFTA_PAYLOAD_BASE, e.Base)
		b.number(unix.NFTA_PAYLOAD_OFFSET, e.Offset)
		b.number(unix.NFTA_PAYLOAD_LEN, e.Len)
		b.shut(at)
	case table.CT:
		at := b.named("ct")
		b.number(unix.NFTA_CT_KEY, e.Key)
		b.number(unix.NFTA_CT_DREG, register(e.Dst))
		if e.Original {
			b.attr(unix.NFTA_CT_DIRECTION, 0) // IP_CT_DIR_ORIGINAL
		}
		b.shut(at)
	case table.FIB:
		at := b.named("fib")
		flags := uint32(unix.NFTA_FIB_F_DADDR)
		if e.Source {
			flags = unix.NFTA_FIB_F_SADDR
		}
		b.number(unix.NFTA_FIB_FLAGS, flags)
		b.number(unix.NFTA_FIB_RESULT, 3) // NFT_FIB_RESULT_ADDRTYPE
		b.number(unix.NFTA_FIB_DREG, register(e.Dst))
		b.shut(at)
	case table.Bitwise:
		at := b.named("bitwise")
		b.number(unix.NFTA_BITWISE_SREG, register(e.Src))
		b.number(unix.NFTA_BITWISE_DREG, register(e.Dst))
		b.number(unix.NFTA_BITWISE_LEN, uint32(len(e.Mask)))
		b.data(unix.NFTA_BITWISE_MASK, e.Mask)
		b.data(unix.NFTA_BITWISE_XOR, string(make([]byte, len(e.Mask))))
		b.shut(at)
	case table.Compare:
		at := b.named("cmp")
		op := uint32(unix.NFT_CMP_EQ)
		if e.Not {
			op = unix.NFT_CMP_NEQ
		}
		b.number(unix.NFTA_CMP_SREG, register(e.Src))
		b.number(unix.NFTA_CMP_OP, op)
		b.data(unix.NFTA_CMP_DATA, e.Value)
		b.shut(at)
	default:
		return b.statement(e)
	}
	return nil
}

// statement is an expression that looks up, or does something.
func (b *buffer) statement(e table.Expr) error {
	switch e := e.(type) {
	case table.Random:
		at := b.named("numgen")
		b.number(unix.NFTA_NG_DREG, register(e.Dst))
		b.number(unix.NFTA_NG_MODULUS, e.Mod)
		b.number(unix.NFTA_NG_TYPE, 1) // NFT_NG_RANDOM
		b.shut(at)
	case table.Hash:
		at := b.named("hash")
		b.number(unix.NFTA_HASH_SREG, register(e.Src))
		b.number(unix.NFTA_HASH_DREG, register(e.Dst))
		b.number(unix.NFTA_HASH_LEN, e.Len)
		b.number(unix.NFTA_HASH_MODULUS, e.Mod)
		b.number(unix.NFTA_HASH_SEED, e.Seed)
		b.number(unix.NFTA_HASH_TYPE, 0) // NFT_HASH_JENKINS
		b.shut(at)
	case table.Lookup:
		at := b.named("lookup")
		b.text(unix.NFTA_LOOKUP_SET, e.Set)
		b.number(unix.NFTA_LOOKUP_SREG, register(e.Src))
		switch {
		case e.Decide:
			b.number(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
		case e.Load:
			b.number(unix.NFTA_LOOKUP_DREG, register(e.Dst))
		case e.Not:
			b.number(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
		}
		b.shut(at)
	case table.Update:
		at := b.named("dynset")
		b.text(unix.NFTA_DYNSET_SET_NAME, e.Set)
		b.number(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		b.number(unix.NFTA_DYNSET_SREG_KEY, register(e.Key))
		b.number(unix.NFTA_DYNSET_SREG_DATA, register(e.Data))
		b.value(unix.NFTA_DYNSET_TIMEOUT, string(binary.BigEndian.AppendUint64(nil, e.Timeout)))
		b.shut(at)
	case table.DNAT:
		at := b.named("nat")
		b.number(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		b.number(unix.NFTA_NAT_FAMILY, uint32(e.Family))
		b.number(unix.NFTA_NAT_REG_ADDR_MIN, register(e.Addr))
		b.number(unix.NFTA_NAT_REG_PROTO_MIN, register(e.Port))
		b.shut(at)
	case table.Masquerade:
		at := b.named("masq")
		if e.FullyRandom {
			b.number(unix.NFTA_MASQ_FLAGS, 1<<4) // NF_NAT_RANGE_PROTO_RANDOM_FULLY
		}
		b.shut(at)
	case table.Reject:
		at := b.named("reject")
		code := byte(3) // ICMP_PORT_UNREACH
		if e.IPv6 {
			code = 4 // ICMPV6_PORT_UNREACH
		}
		b.number(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMP_UNREACH)
		b.attr(unix.NFTA_REJECT_ICMP_CODE, code)
		b.shut(at)
	case table.Verdict:
		at := b.named("immediate")
		b.number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		data := b.open(unix.NFTA_IMMEDIATE_DATA)
		b.verdict(e)
		b.shut(data)
		b.shut(at)
	case table.Counter:
		b.shut(b.named(counterExpr))
	default:
		return fmt.Errorf("expression %T is unknown", e)
	}
	return nil
}

// data adds an attribute with a value.
func (b *buffer) data(kind uint16, value string) {
	at := b.open(kind)
	b.value(unix.NFTA_DATA_VALUE, value)
	b.shut(at)
}

// verdict adds a verdict.
func (b *buffer) verdict(v table.Verdict) {
	at := b.open(unix.NFTA_DATA_VERDICT)
	b.number(unix.NFTA_VERDICT_CODE, uint32(v.Code))
	if v.Chain != "" {
		b.text(unix.NFTA_VERDICT_CHAIN, v.Chain)
	}
	b.shut(at)
}
