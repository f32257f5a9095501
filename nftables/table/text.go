// SPDX-License-Identifier: Apache-2.0

package table

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// String returns the table as `nft list table` prints it: sets and chains in the order
// that they are in, elements sorted, where nft has the kernel's order.
func (t *Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	var parts []string
	if t.Comment != "" {
		parts = append(parts, "\tcomment "+strconv.Quote(t.Comment)+"\n")
	}
	for i, s := range t.Sets {
		text := s.text(t.Elements[s.Name])
		if i == 0 && len(parts) > 0 { // nft puts no line between
			parts[0], text = parts[0]+text, ""
		}
		if text != "" {
			parts = append(parts, text)
		}
	}
	for _, c := range t.Chains {
		parts = append(parts, c.text())
	}
	b.WriteString(strings.Join(parts, "\n"))
	b.WriteString("}\n")
	return b.String()
}

// Properties is what makes the set another one if it changes, and what people read.
func (s *Set) Properties() string { return s.declaration("; ") }

func (s *Set) text(elements []Element) string {
	out := "\t" + s.kind() + " " + s.Name + " {\n\t\t" + s.declaration("\n\t\t") + "\n"
	if len(elements) == 0 {
		return out + "\t}\n"
	}
	sorted := slices.Clone(elements)
	SortElements(sorted)
	var texts []string
	for _, e := range sorted {
		texts = append(texts, s.ElementText(e))
	}
	var lines []string
	for line := range slices.Chunk(texts, s.perLine()) {
		lines = append(lines, strings.Join(line, ", "))
	}
	return out + "\t\telements = { " + strings.Join(lines, ",\n\t\t\t     ") + " }\n\t}\n"
}

// perLine is how many elements nft writes on a line (calculate_delim in its expression.c).
func (s *Set) perLine() int {
	switch {
	case s.Map() || len(s.Key) > 1:
		return 1
	case s.Key[0] == IPv4Addr || s.Key[0] == IPv6Addr:
		return 2
	}
	return 5
}

func (s *Set) kind() string {
	if s.Map() {
		return "map"
	}
	return "set"
}

func (s *Set) declaration(sep string) string {
	lines := []string{s.typeText()}
	if s.Size > 0 {
		lines = append(lines, "size "+strconv.Itoa(int(s.Size)))
	}
	switch {
	case s.Interval:
		lines = append(lines, "flags interval")
	case s.Dynamic:
		lines = append(lines, "flags dynamic,timeout")
	}
	if s.Counter {
		lines = append(lines, "counter")
	}
	if s.Comment != "" {
		lines = append(lines, "comment "+strconv.Quote(s.Comment))
	}
	return strings.Join(lines, sep)
}

func (s *Set) typeText() string {
	word, name := "type ", func(t Type) string { return t.String() }
	if slices.Contains(s.Key, Integer) {
		word, name = "typeof ", typeofText
	}
	join := func(types []Type) string {
		var names []string
		for _, t := range types {
			names = append(names, name(t))
		}
		return strings.Join(names, " . ")
	}
	out := word + join(s.Key)
	if s.Verdicts {
		return out + " : verdict"
	}
	if len(s.Data) > 0 {
		return out + " : " + join(s.Data)
	}
	return out
}

// typeofText is an expression that has a type.
func typeofText(t Type) string {
	switch t {
	case IPv6Addr:
		return "ip6 daddr"
	case IPv4Addr:
		return "ip daddr"
	case InetProto:
		return "meta l4proto"
	case InetService:
		return "th dport"
	}
	return "numgen random mod 2"
}

// ElementText returns an element as nft writes it, if it counts as it does at first.
func (s *Set) ElementText(e Element) string {
	out := values(s.Key, e.Key, e.End)
	if s.Counter {
		out += " counter packets 0 bytes 0"
	}
	if e.Comment != "" {
		out += " comment " + strconv.Quote(e.Comment)
	}
	switch {
	case s.Verdicts:
		out += " : " + e.Data
	case len(s.Data) > 0:
		out += " : " + values(s.Data, e.Data, "")
	}
	return out
}

// values is a concatenation of values, or of ranges of them.
func values(types []Type, from, to string) string {
	var parts []string
	for _, t := range types {
		n := t.Len()
		first := value(t, from[:n])
		if to != "" {
			if last := value(t, to[:n]); last != first {
				first = span(t, from[:n], to[:n])
			}
			to = to[min(Padded(n), len(to)):]
		}
		parts = append(parts, first)
		from = from[min(Padded(n), len(from)):]
	}
	return strings.Join(parts, " . ")
}

func value(t Type, raw string) string {
	switch t {
	case IPv4Addr, IPv6Addr:
		a, _ := netip.AddrFromSlice([]byte(raw))
		return a.String()
	case InetProto:
		return ProtocolName(raw[0])
	case InetService:
		return strconv.Itoa(int(raw[0])<<8 | int(raw[1]))
	case CTDir:
		return [...]string{"original", "reply"}[raw[0]&1]
	}
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32([]byte(raw))), 10)
}

// span is a range of addresses: a prefix, where it is one.
func span(t Type, from, to string) string {
	bits := 0
	for i := range len(from) {
		x := from[i] ^ to[i]
		for b := 7; b >= 0 && x>>b&1 == 0; b-- {
			bits++
		}
		if x != 0 {
			break
		}
	}
	a, ok := netip.AddrFromSlice([]byte(from))
	if !ok {
		return value(t, from) + "-" + value(t, to)
	}
	p := netip.PrefixFrom(a, bits)
	if p.Masked().Addr() == a && LastOf(p) == to {
		return p.String()
	}
	return value(t, from) + "-" + value(t, to)
}

// LastOf returns the last address of a prefix, as an element has it.
func LastOf(p netip.Prefix) string {
	raw := p.Masked().Addr().AsSlice()
	for i := range raw {
		if host := (i+1)*8 - p.Bits(); host >= 8 {
			raw[i] = 0xff
		} else if host > 0 {
			raw[i] |= 1<<host - 1
		}
	}
	return string(raw)
}

// Properties is what makes the chain another one if it changes, rules apart: the line
// of a base chain, empty for others.
func (c *Chain) Properties() string {
	if c.Hook == "" {
		return ""
	}
	return fmt.Sprintf("type %s hook %s priority %s; policy accept;", c.Type, c.Hook, priority(c.Hook, c.Priority))
}

func (c *Chain) text() string {
	out := "\tchain " + c.Name + " {\n"
	if p := c.Properties(); p != "" {
		out += "\t\t" + p + "\n"
	}
	for _, r := range c.Rules {
		out += "\t\t" + r.Text
		if r.Comment != "" {
			out += " comment " + strconv.Quote(r.Comment)
		}
		out += "\n"
	}
	return out + "\t}\n"
}

// priority is a priority by the name that nft has for the next one, as far as it is
// within ten of it.
func priority(hook string, n int) string {
	for _, std := range []struct {
		name string
		n    int
		at   []string
	}{
		{"raw", -300, nil}, {"mangle", -150, nil}, {"filter", 0, nil}, {"security", 50, nil},
		{"dstnat", -100, []string{"prerouting"}}, {"srcnat", 100, []string{"postrouting"}},
	} {
		if std.at != nil && !slices.Contains(std.at, hook) {
			continue
		}
		switch d := n - std.n; {
		case d == 0:
			return std.name
		case d > 0 && d <= 10:
			return fmt.Sprintf("%s + %d", std.name, d)
		case d < 0 && d >= -10:
			return fmt.Sprintf("%s - %d", std.name, -d)
		}
	}
	return strconv.Itoa(n)
}
