// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"slices"
	"strings"
)

// section is the part of a restore that commits one table.
type section struct {
	table Table
	// write are the chains to create or to replace.
	write []chainWrite
	// create are chains to make that must not be there yet.
	create []string
	// insert are jumps to put above all other rules, the last one topmost.
	insert []Jump
	// remove are jumps to delete.
	remove []Jump
	// trim are rules to delete from chains that otherwise stay.
	trim []chainTrim
	// drop are chains to delete.
	drop []string
}

type chainWrite struct {
	name  string
	chain *Chain
}

// chainTrim is a chain that loses rules, and what is left of it then.
type chainTrim struct {
	name string
	gone []Rule
	left *Chain
}

func (s *section) empty() bool {
	return len(s.create)+len(s.write)+len(s.insert)+len(s.remove)+len(s.trim)+len(s.drop) == 0
}

// cost estimates the work of committing the section: a line each.
func (s *section) cost() int {
	n := len(s.insert) + len(s.remove) + 2*len(s.drop)
	for _, w := range s.write {
		n += 1 + len(w.chain.Rules)
	}
	for _, tr := range s.trim {
		n += len(tr.gone)
	}
	return n
}

// transaction is the input of one restore command: its sections commit one
// after the other, each as a whole or not at all.
type transaction []section

// text returns the transaction in the restore format. Chains are declared
// sorted, and before any rule: a rule may jump to a chain that the same
// transaction makes, and the legacy command is faster on sorted input.
func (t transaction) text() []byte {
	var b bytes.Buffer
	for i := range t {
		t[i].writeTo(&b)
	}
	return b.Bytes()
}

func (s *section) writeTo(b *bytes.Buffer) {
	if s.empty() {
		return
	}
	b.WriteString("*" + string(s.table) + "\n")
	slices.SortFunc(s.write, func(x, y chainWrite) int { return strings.Compare(x.name, y.name) })
	slices.Sort(s.drop)
	declare := make([]string, 0, len(s.write)+len(s.drop))
	for _, w := range s.write {
		declare = append(declare, w.name)
	}
	declare = append(declare, s.drop...)
	slices.Sort(declare)
	for _, name := range declare {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, w := range s.write {
		for _, r := range w.chain.Rules {
			b.WriteString(appendLine(w.name, r))
		}
	}
	for _, name := range s.create {
		b.WriteString("-N " + name + "\n")
	}
	for _, j := range s.insert {
		b.WriteString("-I " + j.Name + " " + string(j.Rule) + "\n")
	}
	for _, j := range s.remove {
		b.WriteString("-D " + j.Name + " " + string(j.Rule) + "\n")
	}
	slices.SortFunc(s.trim, func(x, y chainTrim) int { return strings.Compare(x.name, y.name) })
	for _, tr := range s.trim {
		for _, r := range tr.gone {
			b.WriteString("-D " + tr.name + " " + string(r) + "\n")
		}
	}
	for _, name := range s.drop {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
}
