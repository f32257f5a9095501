// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// userdataOf returns one piece of user data, empty where there is none.
func userdataOf(a attrs, kind byte) string {
	for len(a) >= 2 && int(a[1]) <= len(a)-2 {
		if a[0] == kind {
			return string(a[2 : 2+a[1]])
		}
		a = a[2+int(a[1]):]
	}
	return ""
}

func commentIn(a attrs, kind byte) string { return attrs(userdataOf(a, kind)).text() }

// chainProperties is what table.Chain.Properties gives for a chain of the kernel.
func chainProperties(a attrs) string {
	hook := a.get(unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return ""
	}
	n := hook.get(unix.NFTA_HOOK_HOOKNUM).number()
	if n >= uint32(len(hooks())) {
		return "unknown hook"
	}
	c := table.Chain{
		Hook: hooks()[n], Type: a.get(unix.NFTA_CHAIN_TYPE).text(),
		Priority: int(int32(hook.get(unix.NFTA_HOOK_PRIORITY).number())),
	}
	out := c.Properties()
	if a.get(unix.NFTA_CHAIN_POLICY).number() == 0 {
		out += " drop"
	}
	return out
}

func setAnonymous(a attrs) uint32 {
	return a.get(unix.NFTA_SET_FLAGS).number() & unix.NFT_SET_ANONYMOUS
}

// setOf reads a set.
func setOf(a attrs) (*table.Set, error) {
	flags := a.get(unix.NFTA_SET_FLAGS).number()
	s := &table.Set{
		Name: a.get(unix.NFTA_SET_NAME).text(), Comment: commentIn(a.get(unix.NFTA_SET_USERDATA), commentOfSet),
		Interval: flags&unix.NFT_SET_INTERVAL != 0, Dynamic: flags&unix.NFT_SET_EVAL != 0 && flags&unix.NFT_SET_TIMEOUT != 0,
		Size:    a.get(unix.NFTA_SET_DESC).get(unix.NFTA_SET_DESC_SIZE).number(),
		Counter: a.get(setExpr).get(unix.NFTA_EXPR_NAME).text() == counterExpr,
		Key:     typesOf(a.get(unix.NFTA_SET_KEY_TYPE).number()),
	}
	if flags&unix.NFT_SET_MAP == 0 {
		return s, nil
	}
	if data := a.get(unix.NFTA_SET_DATA_TYPE).number(); data == verdictDataType {
		s.Verdicts = true
	} else if s.Data = typesOf(data); len(s.Data) == 0 {
		return nil, fmt.Errorf("map %s leads to data of type %#x, which is unknown", s.Name, data)
	}
	return s, nil
}

// typesOf takes a concatenation's number apart.
func typesOf(n uint32) []table.Type {
	var out []table.Type
	for ; n > 0; n >>= 6 {
		out = append(out, table.Type(n&0x3f))
	}
	slices.Reverse(out)
	return out
}

// single is an element of a set of ranges of single values, or where one ends.
type single struct {
	table.Element
	end bool
}

// elementOf reads an element.
func elementOf(s *table.Set, a attrs) (e table.Element, end bool) {
	a.each(func(kind uint16, data []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key = string(attrs(data).get(unix.NFTA_DATA_VALUE))
		case elementKeyEnd:
			e.End = string(attrs(data).get(unix.NFTA_DATA_VALUE))
		case unix.NFTA_SET_ELEM_DATA:
			if !s.Verdicts {
				e.Data = string(attrs(data).get(unix.NFTA_DATA_VALUE))
				return
			}
			v := attrs(data).get(unix.NFTA_DATA_VERDICT)
			e.Data = table.Verdict{
				Code: int32(v.get(unix.NFTA_VERDICT_CODE).number()), Chain: v.get(unix.NFTA_VERDICT_CHAIN).text(),
			}.String()
		case unix.NFTA_SET_ELEM_FLAGS:
			end = attrs(data).number()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_USERDATA:
			e.Comment = commentIn(data, commentOfElement)
		}
	})
	return e, end
}

// ranges puts the ends of ranges to their beginnings.
func ranges(singles []single) []table.Element {
	slices.SortFunc(singles, func(a, b single) int {
		if c := a.Compare(b.Element); c != 0 || a.end == b.end {
			return c
		}
		if a.end { // one that begins where another ends comes after
			return -1
		}
		return 1
	})
	var out []table.Element
	for i, s := range singles {
		if s.end {
			continue
		}
		e := s.Element
		if i+1 < len(singles) && singles[i+1].end {
			e.End = before(singles[i+1].Key)
		} else {
			e.End = string(slices.Repeat([]byte{0xff}, len(e.Key)))
		}
		out = append(out, e)
	}
	return out
}

// before returns the value before.
func before(s string) string {
	b := []byte(s)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return string(b)
}
