// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bufio"
	"errors"
	"io"
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
	// insert are jumps to put above all other rules, the last one topmost, or
	// below them, the last one last.
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

func (t transaction) empty() bool {
	return !slices.ContainsFunc(t, func(s section) bool { return !s.empty() })
}

// text returns the transaction in the restore format.
func (t transaction) text() string {
	var b strings.Builder
	for i := range t {
		t[i].writeTo(&b)
	}
	return b.String()
}

// stream returns the text as it is read: at 10,000 Services it has 40 MB. The
// first COMMIT comes when gate returns, and nothing where that is an error. The
// reader must be closed.
func (t transaction) stream(gate func() error) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		b := gated{Writer: bufio.NewWriterSize(w, 64<<10), gate: gate}
		for i := range t {
			t[i].writeTo(&b)
		}
		w.CloseWithError(errors.Join(b.err, b.Flush())) // nil is the end
	}()
	return r
}

// gated is a writer that waits for its gate before the first COMMIT.
type gated struct {
	*bufio.Writer
	gate func() error
	err  error
}

// WriteString implements io.StringWriter.
func (g *gated) WriteString(s string) (int, error) {
	if s == commit && g.gate != nil && g.err == nil {
		g.err = errors.Join(g.Flush(), g.gate()) // what there is is to be read meanwhile
		g.gate = nil
	}
	if g.err != nil {
		return 0, g.err
	}
	return g.Writer.WriteString(s)
}

// writeTo writes the section in the restore format. Chains are declared sorted,
// and before any rule: a rule may jump to a chain that the same transaction
// makes, and the legacy command is faster on sorted input. What w cannot take it
// is to tell at its end.
func (s *section) writeTo(w io.StringWriter) {
	if s.empty() {
		return
	}
	b := lines{w}
	b.put("*", string(s.table))
	slices.SortFunc(s.write, func(x, y chainWrite) int { return strings.Compare(x.name, y.name) })
	slices.Sort(s.drop)
	declare := make([]string, 0, len(s.write)+len(s.drop))
	for _, w := range s.write {
		declare = append(declare, w.name)
	}
	if len(s.drop) > 0 {
		declare = append(declare, s.drop...)
		slices.Sort(declare)
	}
	for _, name := range declare {
		b.put(":", name, " - [0:0]")
	}
	for _, w := range s.write {
		for _, r := range w.chain.Rules {
			_, _ = b.WriteString("-A ")
			if r == "" {
				b.put(w.name)
			} else {
				b.put(w.name, " ", string(r))
			}
		}
	}
	for _, name := range s.create {
		b.put("-N ", name)
	}
	for _, j := range s.insert {
		if j.Last {
			b.put("-A ", j.Name, " ", string(j.Rule))
		} else {
			b.put("-I ", j.Name, " ", string(j.Rule))
		}
	}
	for _, j := range s.remove {
		b.put("-D ", j.Name, " ", string(j.Rule))
	}
	slices.SortFunc(s.trim, func(x, y chainTrim) int { return strings.Compare(x.name, y.name) })
	for _, tr := range s.trim {
		for _, r := range tr.gone {
			b.put("-D ", tr.name, " ", string(r))
		}
	}
	for _, name := range s.drop {
		b.put("-X ", name)
	}
	b.put(commit)
}

const commit = "COMMIT"

// lines writes lines.
type lines struct{ io.StringWriter }

func (l lines) put(parts ...string) {
	for _, p := range parts {
		_, _ = l.WriteString(p)
	}
	_, _ = l.WriteString("\n")
}
