// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Dump is the whole content of an address family's tables, in the order in
// which iptables-save prints it.
type Dump []DumpTable

// DumpTable is one table of a Dump.
type DumpTable struct {
	Name   Table
	Chains []DumpChain
}

// DumpChain is one chain of a Dump.
type DumpChain struct {
	Name string
	// Policy is "-" for a user-defined chain.
	Policy string
	Rules  []Rule
}

// ErrIncompatible says that a table holds rules that the iptables command
// cannot show, so that what is in it is not known. They were written by the
// nft command or by a newer iptables.
var ErrIncompatible = errors.New("table has rules that this iptables command cannot read; use the iptables version that wrote them, or remove them with nft")

// unreadable returns ErrIncompatible for a table.
func unreadable(t Table) error { return fmt.Errorf("%s: %w", t, ErrIncompatible) }

// visitor is told what a parser of the save format finds. Chains of a table
// come before its rules.
type visitor interface {
	// unreadable tells of a table that cannot be shown; its error ends the
	// parsing.
	unreadable(t Table) error
	table(t Table)
	chain(k ChainKey, policy string)
	// rule's text is valid during the call only.
	rule(k ChainKey, text []byte)
}

// Parse reads the output of iptables-save. Counters are dropped.
func Parse(r io.Reader) (Dump, error) {
	b := &dumpBuilder{}
	if err := parse(r, b); err != nil {
		return nil, err
	}
	return b.dump, nil
}

// parser holds the state between two lines of the save format.
type parser struct {
	v     visitor
	table Table // empty between tables
	line  int
	// name is the chain of the last rule, which the next one mostly shares.
	name string
}

// maxRuleText bounds the text of one rule, which may go over several lines.
const maxRuleText = 64 << 10

// parse streams the save format from r to v.
func parse(r io.Reader, v visitor) error {
	p := parser{v: v, line: 1}
	br := bufio.NewReaderSize(r, 64<<10)
	var text []byte
	lines := 0
	for {
		line, err := readLine(br)
		if err != nil && err != io.EOF {
			return fmt.Errorf("read rules: %w", err)
		}
		if lines > 0 {
			line = append(text, line...)
		}
		lines++
		if err == nil && openQuote(line) && len(line) < maxRuleText {
			text = append([]byte(nil), line...)
			continue // a comment with a line break in it is printed as it is
		}
		if perr := p.parseLine(bytes.TrimSuffix(line, []byte("\n"))); perr != nil {
			return fmt.Errorf("parse rules, line %d: %w", p.line, perr)
		}
		if err == io.EOF {
			break
		}
		p.line += lines
		lines = 0
	}
	if p.table != "" {
		return fmt.Errorf("parse rules: table %s has no COMMIT", p.table)
	}
	return nil
}

// readLine returns the next line, which is valid until the next call, however
// long it is.
func readLine(br *bufio.Reader) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, err
	}
	long := bytes.Clone(line)
	rest, err := br.ReadBytes('\n')
	return append(long, rest...), err
}

// openQuote tells whether a quoted word of a rule's line has no end in it.
func openQuote(line []byte) bool {
	text, ok := bytes.CutPrefix(withoutCounters(line), []byte("-A "))
	if !ok || bytes.Count(text, []byte(`"`))%2 == 0 && bytes.IndexByte(text, '\\') < 0 {
		return false // almost all
	}
	_, rest, _ := strings.Cut(string(text), " ") // the chain
	for rest != "" {
		var tok string
		tok, rest = nextToken(rest)
		if strings.HasPrefix(tok, `"`) && quoteEnd(tok) < 0 {
			return true
		}
	}
	return false
}

func (p *parser) parseLine(line []byte) error {
	switch {
	case len(line) == 0:
		return nil
	case line[0] == '#':
		if name, ok := strings.CutSuffix(string(line), "' is incompatible, use 'nft' tool."); ok {
			return p.v.unreadable(Table(strings.TrimPrefix(name, "# Table `")))
		}
		return nil
	case line[0] == '*':
		return p.parseTable(string(line[1:]))
	case p.table == "":
		return fmt.Errorf("%q outside a table", line)
	case string(line) == "COMMIT":
		p.table = ""
		return nil
	case line[0] == ':':
		return p.parseChain(string(line[1:]))
	}
	return p.parseRule(line)
}

func (p *parser) parseTable(name string) error {
	if p.table != "" {
		return fmt.Errorf("table %s has no COMMIT", p.table)
	}
	if name == "" || strings.Contains(name, " ") {
		return fmt.Errorf("table name %q", name)
	}
	p.table = Table(name)
	p.v.table(p.table)
	return nil
}

func (p *parser) parseChain(s string) error {
	name, rest, _ := strings.Cut(s, " ")
	policy, _, _ := strings.Cut(rest, " ")
	if name == "" || policy == "" {
		return fmt.Errorf("chain %q", s)
	}
	p.v.chain(ChainKey{p.table, name}, policy)
	return nil
}

// withoutCounters returns a rule's line without the counters that iptables-save
// -c puts before it.
func withoutCounters(line []byte) []byte {
	if bytes.HasPrefix(line, []byte("[")) {
		_, line, _ = bytes.Cut(line, []byte("] "))
	}
	return line
}

func (p *parser) parseRule(line []byte) error {
	rest, ok := bytes.CutPrefix(withoutCounters(line), []byte("-A "))
	if !ok {
		return fmt.Errorf("unknown line %q", line)
	}
	name, text, _ := bytes.Cut(rest, []byte(" "))
	if len(name) == 0 {
		return fmt.Errorf("rule without a chain %q", line)
	}
	if openQuote(line) {
		return fmt.Errorf("rule with a quote that does not end %.100q", line)
	}
	if string(name) != p.name {
		p.name = string(name)
	}
	text = bytes.TrimRight(text, " ")
	if c, ok := p.v.(counter); ok {
		n, err := packetsOf(line)
		if err != nil {
			return fmt.Errorf("rule without counters %.100q", line)
		}
		c.counted(ChainKey{p.table, p.name}, n, text)
		return nil
	}
	p.v.rule(ChainKey{p.table, p.name}, text)
	return nil
}

// dumpBuilder is the visitor that keeps everything.
type dumpBuilder struct {
	dump  Dump
	index map[ChainKey]int
}

func (b *dumpBuilder) unreadable(t Table) error { return unreadable(t) }

func (b *dumpBuilder) table(t Table) {
	b.dump = append(b.dump, DumpTable{Name: t})
	b.index = map[ChainKey]int{}
}

func (b *dumpBuilder) chain(k ChainKey, policy string) {
	t := &b.dump[len(b.dump)-1]
	if i, ok := b.index[k]; ok {
		t.Chains[i].Policy = policy
		return
	}
	b.index[k] = len(t.Chains)
	t.Chains = append(t.Chains, DumpChain{Name: k.Name, Policy: policy})
}

func (b *dumpBuilder) rule(k ChainKey, text []byte) {
	if _, ok := b.index[k]; !ok {
		b.chain(k, "-")
	}
	c := &b.dump[len(b.dump)-1].Chains[b.index[k]]
	c.Rules = append(c.Rules, Rule(text))
}

// String prints the dump as iptables-save does, without counters and comment
// lines.
func (d Dump) String() string {
	var b strings.Builder
	for _, t := range d {
		fmt.Fprintf(&b, "*%s\n", t.Name)
		for _, c := range t.Chains {
			fmt.Fprintf(&b, ":%s %s [0:0]\n", c.Name, c.Policy)
		}
		for _, c := range t.Chains {
			for _, r := range c.Rules {
				b.WriteString(appendLine(c.Name, r))
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// appendLine returns the line that appends r to the chain.
func appendLine(chain string, r Rule) string {
	if r == "" {
		return "-A " + chain + "\n"
	}
	return "-A " + chain + " " + string(r) + "\n"
}
