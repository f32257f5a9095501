// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// User data are what nft and we have the kernel keep beside an object: each a kind, a
// length and bytes (libnftnl: udata.h).
const (
	commentOfTable   = 0 // NFTNL_UDATA_TABLE_COMMENT
	commentOfSet     = 7 // NFTNL_UDATA_SET_COMMENT
	commentOfElement = 0 // NFTNL_UDATA_SET_ELEM_COMMENT
	commentOfRule    = 0 // NFTNL_UDATA_RULE_COMMENT
	idOfRule         = 0x66
	keyByteOrder     = 0 // NFTNL_UDATA_SET_KEYBYTEORDER
	dataByteOrder    = 1
	keyTypeof        = 3
	dataTypeof       = 4
)

// transaction is a datagram that changes one table.
type transaction struct {
	buffer
	family table.Family
	name   string
	seq    uint32
	setID  uint32
	// last is where the last message begins, which is to be acknowledged.
	last int
}

func newTransaction(f table.Family, name string, seq uint32) *transaction {
	t := &transaction{family: f, name: name, seq: seq}
	t.end(t.begin(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, t.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	return t
}

// finish ends it, and returns the number of the message that is acknowledged.
func (t *transaction) finish() uint32 {
	flags := binary.NativeEndian.Uint16(t.b[t.last+6:])
	binary.NativeEndian.PutUint16(t.b[t.last+6:], flags|unix.NLM_F_ACK)
	acked := t.seq
	t.seq++
	t.end(t.begin(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, t.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	return acked
}

// message adds one.
func (t *transaction) message(kind, flags uint16, fill func()) {
	t.seq++
	t.last = t.begin(kindOf(kind), unix.NLM_F_REQUEST|flags, t.seq, uint8(t.family), 0)
	fill()
	t.end(t.last)
}

// step adds what a step takes.
func (t *transaction) step(s table.Step) error {
	const create, only = unix.NLM_F_CREATE, unix.NLM_F_EXCL
	switch s := s.(type) {
	case table.AddTable:
		t.message(unix.NFT_MSG_NEWTABLE, create, func() {
			t.text(unix.NFTA_TABLE_NAME, t.name)
			t.number(unix.NFTA_TABLE_FLAGS, 0)
			if s.Comment != "" {
				t.value(tableUserdata, string(udata(nil, commentOfTable, s.Comment+"\x00")))
			}
		})
	case table.DeleteTable:
		t.message(unix.NFT_MSG_DELTABLE, 0, func() { t.text(unix.NFTA_TABLE_NAME, t.name) })
	case table.AddSet:
		t.message(unix.NFT_MSG_NEWSET, create|only, func() { t.set(s.Set) })
	case table.DeleteSet:
		t.message(unix.NFT_MSG_DELSET, 0, func() {
			t.text(unix.NFTA_SET_TABLE, t.name)
			t.text(unix.NFTA_SET_NAME, s.Name)
		})
	case table.FlushSet:
		t.message(unix.NFT_MSG_DELSETELEM, 0, func() {
			t.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
			t.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		})
	case table.AddChain:
		t.message(unix.NFT_MSG_NEWCHAIN, create, func() { t.chain(s.Chain) })
	case table.DeleteChain:
		t.message(unix.NFT_MSG_DELCHAIN, 0, func() {
			t.text(unix.NFTA_CHAIN_TABLE, t.name)
			t.text(unix.NFTA_CHAIN_NAME, s.Name)
		})
	case table.SetRules:
		return t.rules(s)
	case table.AddElements:
		return t.elements(unix.NFT_MSG_NEWSETELEM, create, s.Set, s.Elements)
	case table.DeleteElements:
		return t.elements(unix.NFT_MSG_DELSETELEM, 0, s.Set, s.Elements)
	default:
		return fmt.Errorf("step %T is unknown", s)
	}
	return nil
}

// What unix has no names for.
const (
	tableUserdata   = 6  // NFTA_TABLE_USERDATA
	setDescConcat   = 2  // NFTA_SET_DESC_CONCAT
	setFieldLen     = 1  // NFTA_SET_FIELD_LEN
	setExpr         = 17 // NFTA_SET_EXPR
	setConcat       = 0x80
	elementKeyEnd   = 10 // NFTA_SET_ELEM_KEY_END
	verdictDataType = 0xffffff00
)

func (t *transaction) set(s *table.Set) {
	t.setID++
	t.text(unix.NFTA_SET_TABLE, t.name)
	t.text(unix.NFTA_SET_NAME, s.Name)
	t.number(unix.NFTA_SET_FLAGS, setFlags(s))
	t.number(unix.NFTA_SET_KEY_TYPE, typeNumber(s.Key))
	t.number(unix.NFTA_SET_KEY_LEN, uint32(s.KeyLen()))
	switch {
	case s.Verdicts:
		t.number(unix.NFTA_SET_DATA_TYPE, verdictDataType)
		t.number(unix.NFTA_SET_DATA_LEN, 16) // sizeof(struct nft_verdict)
	case s.Map():
		t.number(unix.NFTA_SET_DATA_TYPE, typeNumber(s.Data))
		t.number(unix.NFTA_SET_DATA_LEN, uint32(s.DataLen()))
	}
	t.number(unix.NFTA_SET_ID, t.setID)
	desc := t.open(unix.NFTA_SET_DESC)
	if s.Size > 0 {
		t.number(unix.NFTA_SET_DESC_SIZE, s.Size)
	}
	if concatenated(s) {
		all := t.open(setDescConcat)
		for _, f := range s.Key {
			one := t.open(unix.NFTA_LIST_ELEM)
			t.number(setFieldLen, uint32(f.Len()))
			t.shut(one)
		}
		t.shut(all)
	}
	t.shut(desc)
	if s.Counter { // which each element gets a copy of
		at := t.open(setExpr)
		t.shut(t.named(counterExpr))
		t.shut(at)
	}
	t.value(unix.NFTA_SET_USERDATA, string(setUserdata(s)))
}

// concatenated tells whether ranges are of several values each.
func concatenated(s *table.Set) bool { return s.Interval && len(s.Key) > 1 }

func setFlags(s *table.Set) uint32 {
	var out uint32
	if s.Map() {
		out |= unix.NFT_SET_MAP
	}
	if s.Interval {
		out |= unix.NFT_SET_INTERVAL
	}
	if concatenated(s) {
		out |= setConcat
	}
	if s.Dynamic {
		out |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	return out
}

// typeNumber is the number of a concatenation, as nft puts it together.
func typeNumber(types []table.Type) uint32 {
	var out uint32
	for _, t := range types {
		out = out<<6 | uint32(t)
	}
	return out
}

// setUserdata is what nft wants to know to print a set.
func setUserdata(s *table.Set) []byte {
	const hostOrder, networkOrder = 1, 2
	order := func(types []table.Type) string {
		n := uint32(networkOrder)
		if len(types) != 1 {
			n = 0 // as nft has it for concatenations
		}
		return string(binary.NativeEndian.AppendUint32(nil, n))
	}
	out := udata(nil, keyByteOrder, order(s.Key))
	if s.Map() {
		data := order(s.Data)
		if s.Verdicts {
			data = string(binary.NativeEndian.AppendUint32(nil, hostOrder))
		}
		out = udata(out, dataByteOrder, data)
	}
	if slices.Contains(s.Key, table.Integer) {
		out = udata(out, keyTypeof, string(typeof(s.Key)))
		if len(s.Data) > 0 {
			out = udata(out, dataTypeof, string(typeof(s.Data)))
		}
	}
	if s.Comment != "" {
		out = udata(out, commentOfSet, s.Comment+"\x00")
	}
	return out
}

// udata appends one piece of user data.
func udata(b []byte, kind byte, data string) []byte {
	return append(append(b, kind, byte(len(data))), data...)
}

func (t *transaction) chain(c *table.Chain) {
	t.text(unix.NFTA_CHAIN_TABLE, t.name)
	t.text(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook == "" {
		return
	}
	hook := t.open(unix.NFTA_CHAIN_HOOK)
	t.number(unix.NFTA_HOOK_HOOKNUM, uint32(slices.Index(hooks(), c.Hook)))
	t.number(unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Priority)))
	t.shut(hook)
	t.number(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
	t.text(unix.NFTA_CHAIN_TYPE, c.Type)
}

// hooks are the hooks in the kernel's order.
func hooks() []string { return []string{"prerouting", "input", "forward", "output", "postrouting"} }

// rules removes a chain's rules and adds others.
func (t *transaction) rules(s table.SetRules) error {
	t.message(unix.NFT_MSG_DELRULE, 0, func() {
		t.text(unix.NFTA_RULE_TABLE, t.name)
		t.text(unix.NFTA_RULE_CHAIN, s.Chain)
	})
	var err error
	for _, r := range s.Rules {
		t.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func() {
			t.text(unix.NFTA_RULE_TABLE, t.name)
			t.text(unix.NFTA_RULE_CHAIN, s.Chain)
			if e := t.exprs(r.Exprs); e != nil {
				err = e
			}
			var user []byte
			if r.Comment != "" {
				user = udata(user, commentOfRule, r.Comment+"\x00")
			}
			t.value(unix.NFTA_RULE_USERDATA, string(udata(user, idOfRule, r.ID())))
		})
	}
	return err
}

// maxElements is how many bytes of elements are in one message: the length of an
// attribute has 16 bits.
const maxElements = 60_000

// elements adds messages with elements.
func (t *transaction) elements(kind, flags uint16, s *table.Set, list []table.Element) error {
	var err error
	for len(list) > 0 {
		t.message(kind, flags, func() {
			t.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
			t.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
			all := t.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			for len(list) > 0 && len(t.b)-all < maxElements {
				if e := t.element(s, list[0], kind == unix.NFT_MSG_NEWSETELEM); e != nil && err == nil {
					err = e
				}
				list = list[1:]
			}
			t.shut(all)
		})
	}
	return err
}

// element adds one. What is removed is told by its key.
func (t *transaction) element(s *table.Set, e table.Element, whole bool) error {
	one := t.open(unix.NFTA_LIST_ELEM)
	t.data(unix.NFTA_SET_ELEM_KEY, e.Key)
	if e.End != "" && concatenated(s) {
		t.data(elementKeyEnd, e.End)
	}
	if whole && s.Map() {
		data := t.open(unix.NFTA_SET_ELEM_DATA)
		if s.Verdicts {
			v, ok := table.ParseVerdict(e.Data)
			if !ok {
				return fmt.Errorf("element of %s has a verdict that there is not: %q", s.Name, e.Data)
			}
			t.verdict(v)
		} else {
			t.value(unix.NFTA_DATA_VALUE, e.Data)
		}
		t.shut(data)
	}
	if whole && e.Comment != "" {
		t.value(unix.NFTA_SET_ELEM_USERDATA, string(udata(nil, commentOfElement, e.Comment+"\x00")))
	}
	t.shut(one)
	if e.End == "" || concatenated(s) {
		return nil
	}
	// The end of a range of single values is an element, the first beyond.
	next, ok := after(e.End)
	if !ok {
		return nil // it goes on to the last value that there is
	}
	one = t.open(unix.NFTA_LIST_ELEM)
	t.data(unix.NFTA_SET_ELEM_KEY, next)
	t.number(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	t.shut(one)
	return nil
}

// after returns the next value.
func after(s string) (string, bool) {
	b := []byte(s)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return string(b), true
		}
	}
	return "", false
}
