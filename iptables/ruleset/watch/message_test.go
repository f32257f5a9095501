// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The functions below build messages as the kernel does.

// attr returns an attribute that contains others, or bytes.
func attr(kind uint16, parts ...[]byte) []byte {
	b := make([]byte, attributeSize)
	for _, p := range parts {
		b = append(b, p...)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func attrText(kind uint16, s string) []byte { return attr(kind, []byte(s+"\x00")) }

// sender is who sends messages in tests.
const sender = 1234

func msg(kind uint8, family uint8, flags uint16, attrs ...[]byte) []byte {
	b := make([]byte, headerSize, 256)
	b = append(b, family, 0, 0, 0)
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NFNL_SUBSYS_NFTABLES<<8|uint16(kind))
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[12:], sender)
	return b
}

func genMsg(gen uint32) []byte {
	return msg(unix.NFT_MSG_NEWGEN, unix.NFPROTO_UNSPEC, 0,
		attr(unix.NFTA_GEN_ID, binary.BigEndian.AppendUint32(nil, gen)), attrText(unix.NFTA_GEN_PROC_NAME, "iptables"))
}

// ruleMsg is about a rule of IPv4 that leads to target, unless that is empty.
func ruleMsg(kind uint8, table, chain, target string) []byte {
	exprs := [][]byte{attr(unix.NFTA_LIST_ELEM, attrText(unix.NFTA_EXPR_NAME, "counter"),
		attr(unix.NFTA_EXPR_DATA, attr(1, make([]byte, 8)), attr(2, make([]byte, 8))))}
	if target != "" {
		exprs = append(exprs, attr(unix.NFTA_LIST_ELEM, attrText(unix.NFTA_EXPR_NAME, "immediate"), attr(unix.NFTA_EXPR_DATA,
			attr(unix.NFTA_IMMEDIATE_DREG, []byte{0, 0, 0, 0}),
			attr(unix.NFTA_IMMEDIATE_DATA|unix.NLA_F_NESTED, attr(unix.NFTA_DATA_VERDICT,
				attr(unix.NFTA_VERDICT_CODE, []byte{0xff, 0xff, 0xff, 0xfd}), attrText(unix.NFTA_VERDICT_CHAIN, target))))))
	}
	return msg(kind, unix.NFPROTO_IPV4, 0, attrText(unix.NFTA_RULE_TABLE, table), attrText(unix.NFTA_RULE_CHAIN, chain),
		attr(unix.NFTA_RULE_HANDLE, make([]byte, 8)), attr(unix.NFTA_RULE_EXPRESSIONS, exprs...))
}

func chainMsg(kind uint8, flags uint16, table, chain string) []byte {
	return msg(kind, unix.NFPROTO_IPV4, flags, attrText(unix.NFTA_CHAIN_TABLE, table),
		attr(unix.NFTA_CHAIN_HANDLE, make([]byte, 8)), attrText(unix.NFTA_CHAIN_NAME, chain))
}

func tableMsg(kind uint8, table string) []byte {
	return msg(kind, unix.NFPROTO_IPV4, unix.NLM_F_CREATE, attrText(unix.NFTA_TABLE_NAME, table))
}

// sizeOf returns the size of the first message.
func sizeOf(b []byte) int { return int(binary.NativeEndian.Uint32(b)) }

func setSender(b []byte, from uint32) { binary.NativeEndian.PutUint32(b[12:], from) }

func concat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// TestMessages: a datagram has several messages, and only those of nf_tables
// count.
func TestMessages(t *testing.T) {
	foreign := msg(unix.NFT_MSG_NEWRULE, unix.NFPROTO_IPV4, 0)
	foreign[5] = unix.NFNL_SUBSYS_CTNETLINK
	var got []string
	for m := range messages(concat(chainMsg(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_EXCL, "nat", "KUBE-A"), foreign, ruleMsg(unix.NFT_MSG_DELRULE, "nat", "X", "KUBE-A"), genMsg(7))) {
		switch m.kind {
		case unix.NFT_MSG_NEWCHAIN:
			got = append(got, "chain "+string(m.attrs.get(unix.NFTA_CHAIN_NAME).text()))
			if !m.created() || m.family != unix.NFPROTO_IPV4 || m.sender != sender {
				t.Errorf("message %+v is not of a new chain of IPv4 by %d", m, sender)
			}
		case unix.NFT_MSG_DELRULE:
			for target, ok := range m.targets() {
				if !ok {
					t.Error("a rule cannot be read")
				}
				got = append(got, "rule to "+string(target))
			}
		case unix.NFT_MSG_NEWGEN:
			if gen, ok := m.generation(); !ok || gen != 7 {
				t.Errorf("generation() = %d, %t, want 7", gen, ok)
			}
			got = append(got, "generation")
		}
	}
	if diff := cmp.Diff([]string{"chain KUBE-A", "rule to KUBE-A", "generation"}, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// TestCutMessages: wherever a datagram is cut off, that is seen.
func TestCutMessages(t *testing.T) {
	whole := concat(tableMsg(unix.NFT_MSG_NEWTABLE, "nat"), ruleMsg(unix.NFT_MSG_NEWRULE, "nat", "X", "KUBE-A"))
	first := len(tableMsg(unix.NFT_MSG_NEWTABLE, "nat"))
	for n := 1; n < len(whole); n++ {
		if n == first {
			continue
		}
		var err error
		for m := range messages(whole[:n]) {
			err = m.err
		}
		if err == nil {
			t.Errorf("the first %d bytes of %d are taken for whole", n, len(whole))
		}
	}
}

// TestBadSizes: a size that cannot be leads nowhere.
func TestBadSizes(t *testing.T) {
	for _, size := range []uint32{0, 1, headerSize - 1, headerSize, 1 << 16, 1 << 31, 1<<32 - 1} {
		b := ruleMsg(unix.NFT_MSG_NEWRULE, "nat", "X", "")
		binary.NativeEndian.PutUint32(b, size)
		var err error
		for m := range messages(b) {
			err = m.err
		}
		if err == nil {
			t.Errorf("a message of %d bytes passes for one of %d", len(b), size)
		}
	}
}

// TestMalformedRules: a rule that cannot be read is not one that leads nowhere.
func TestMalformedRules(t *testing.T) {
	immediate := func(data ...[]byte) []byte {
		return attr(unix.NFTA_LIST_ELEM, attrText(unix.NFTA_EXPR_NAME, "immediate"), attr(unix.NFTA_EXPR_DATA, data...))
	}
	verdict := func(data ...[]byte) []byte {
		return immediate(attr(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VERDICT, data...)))
	}
	short, long := []byte{3, 0, 1, 0}, []byte{200, 0, 1, 0}
	for _, test := range []struct {
		name  string
		exprs []byte
		want  bool // whether it can be read
	}{
		{"nothing", nil, true},
		{"jump", verdict(attrText(unix.NFTA_VERDICT_CHAIN, "A")), true},
		{"verdict without a chain", verdict(attr(unix.NFTA_VERDICT_CODE, make([]byte, 4))), true},
		{"value", immediate(attr(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VALUE, make([]byte, 4)))), true},
		{"list too short", short, false},
		{"list too long", long, false},
		{"rest of a list", concat(verdict(), []byte{0}), false},
		{"expression", attr(unix.NFTA_LIST_ELEM, long), false},
		{"data", immediate(short), false},
		{"immediate", immediate(attr(unix.NFTA_IMMEDIATE_DATA, long)), false},
		{"verdict", verdict(long), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := message{kind: unix.NFT_MSG_NEWRULE, attrs: attr(unix.NFTA_RULE_EXPRESSIONS, test.exprs)}
			got := true
			for _, ok := range m.targets() {
				got = got && ok
			}
			if got != test.want {
				t.Errorf("it can be read: %t, want %t", got, test.want)
			}
		})
	}
}

// FuzzMessages: no datagram makes the parser panic, or go round and round.
func FuzzMessages(f *testing.F) {
	f.Add(genMsg(1))
	f.Add(concat(tableMsg(unix.NFT_MSG_DELTABLE, "nat"), chainMsg(unix.NFT_MSG_NEWCHAIN, 0, "filter", "KUBE-A")))
	f.Add(concat(ruleMsg(unix.NFT_MSG_NEWRULE, "nat", "X", "KUBE-A"), ruleMsg(unix.NFT_MSG_DELRULE, "nat", "KUBE-A", ""), genMsg(2)))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		n := 0
		for m := range messages(datagram) {
			if n++; n > len(datagram)/headerSize+1 {
				t.Fatalf("%d messages in %d bytes", n, len(datagram))
			}
			m.generation()
			for chain, ok := range m.targets() {
				if len(chain) > len(datagram) || len(chain) == 0 && ok {
					t.Errorf("target %q, %t", chain, ok)
				}
			}
		}
		w := fakeNFT(&fakeSource{gen: 1})
		w.datagram(datagram)
		w.datagram(genMsg(2))
		w.Take()
	})
}
