// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bufio"
	"cmp"
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

// writeTo writes the section in the restore format. What w cannot take it is to
// tell at its end.
func (s *section) writeTo(w io.StringWriter) {
	if s.empty() {
		return
	}
	b := lines{w}
	b.put("*", string(s.table))
	slices.Sort(s.drop)
	b.chains(s.write, s.drop, declareAtOnce)
	b.end(s)
}

// end writes what comes after the chains that are written.
func (b lines) end(s *section) {
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

// declareAtOnce is how many chains are declared at a time, in about. For every
// rule the legacy command looks up chains among those that there are by then: with
// 110,000 that are all declared first, 10,000 Services take 4.1 s, and 3.8 s with
// anything from 10,000 to 40,000 at a time.
const declareAtOnce = 16_000

// chains writes chains, about so many at a time, and declares those to drop. Chains
// are declared sorted, as the legacy command is faster so, and before any rule that
// may lead to them: those of no unit may be led to by all.
func (l lines) chains(write []chainWrite, drop []string, atOnce int) {
	if len(write) <= atOnce {
		slices.SortFunc(write, compareWrites)
		l.declare(write, drop)
		l.rules(write)
		return
	}
	shared, rest := byUnit(write)
	l.declare(shared, drop)
	for len(rest) > 0 {
		n := min(atOnce, len(rest))
		for n < len(rest) && rest[n].chain.Unit == rest[n-1].chain.Unit {
			n++
		}
		l.part(rest[:n])
		rest = rest[n:]
	}
	l.rules(shared)
}

// part writes chains of some units.
func (l lines) part(write []chainWrite) {
	slices.SortFunc(write, compareWrites)
	l.declare(write, nil)
	l.rules(write)
}

// byUnit sorts chains, and returns those of no unit and the others, by unit.
func byUnit(write []chainWrite) (shared, rest []chainWrite) {
	slices.SortFunc(write, func(x, y chainWrite) int {
		return cmp.Or(strings.Compare(x.chain.Unit, y.chain.Unit), compareWrites(x, y))
	})
	n := slices.IndexFunc(write, func(w chainWrite) bool { return w.chain.Unit != "" })
	if n < 0 {
		n = len(write)
	}
	return write[:n], write[n:]
}

func compareWrites(x, y chainWrite) int { return strings.Compare(x.name, y.name) }

// declare declares chains.
func (l lines) declare(write []chainWrite, drop []string) {
	names := make([]string, 0, len(write)+len(drop))
	for _, w := range write {
		names = append(names, w.name)
	}
	names = append(names, drop...)
	slices.Sort(names)
	for _, name := range names {
		l.put(":", name, " - [0:0]")
	}
}

// rules writes the rules of chains.
func (l lines) rules(write []chainWrite) {
	for _, w := range write {
		for _, r := range w.chain.Rules {
			_, _ = l.WriteString("-A ")
			if r == "" {
				l.put(w.name)
			} else {
				l.put(w.name, " ", string(r))
			}
		}
	}
}

// lines writes lines.
type lines struct{ io.StringWriter }

func (l lines) put(parts ...string) {
	for _, p := range parts {
		_, _ = l.WriteString(p)
	}
	_, _ = l.WriteString("\n")
}
