// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bufio"
	"context"
	"io"
	"slices"
)

// early is a restore that reads chains while others are still being made, for the
// next Apply: where there is nothing of ours yet, all of them are to be written,
// and nothing can be in their way. The legacy command reads as long as it takes to
// render everything, 0.3 s of 10,000 Services, a quarter of its input.
type early struct {
	*restore
	// part collects chains for parts, and fed is how many there have been.
	part  []chainWrite
	parts chan []chainWrite
	fed   int
	// rest is what comes after the parts.
	rest chan transaction
}

// Early says that many chains are going to be staged, all of which Feed has before.
// What rules of these lead to besides each other is staged already. It does nothing
// unless that is of use. The caller calls Apply in any case.
func (e *Engine) Early(ctx context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.overlaps || e.loaded && len(e.kernel.chains) > 0 || !e.loaded && (e.ahead == nil || !e.ahead.lacks(ctx, e.owners)) {
		return
	}
	var shared []chainWrite
	for k, c := range e.desired {
		if k.Table == NAT && c.Unit == "" {
			shared = append(shared, chainWrite{k.Name, &Chain{}})
		}
	}
	e.early = &early{parts: make(chan []chainWrite, 64), rest: make(chan transaction, 1)}
	if e.watcher != nil { // the command makes the kernel's tables before it reads
		e.watcher.Begin()
	}
	e.early.restore = e.start(ctx, e.early.stream(shared))
	e.early.begun = true
}

// Feed hands over chains of a unit in table nat that are going to be staged.
func (e *Engine) Feed(names []string, chains []Chain) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.early != nil {
		e.early.add(names, chains)
	}
}

func (x *early) add(names []string, chains []Chain) {
	for i, name := range names {
		x.part = append(x.part, chainWrite{name, &chains[i]})
		chains[i].fed = true
	}
	x.fed += len(names)
	if len(x.part) >= declareAtOnce {
		x.flush()
	}
}

func (x *early) flush() {
	x.parts <- x.part
	x.part = nil
}

// complete adds the rest of a transaction, if what has been fed is a part of it.
func (x *early) complete(t transaction) (ok bool) {
	rest, found := slices.Clone(t), 0
	for i := range rest {
		if s := &rest[i]; s.table == NAT {
			n := fedLast(s.write)
			s.write, found = s.write[:n:n], found+len(s.write)-n
		}
	}
	if found != x.fed {
		return false
	}
	x.flush()
	close(x.parts)
	x.t = t
	x.rest <- rest
	return true
}

// fedLast moves chains that have been fed behind the others, and returns how many
// these are.
func fedLast(write []chainWrite) int {
	n := 0
	for i, w := range write {
		if !w.chain.fed {
			write[i], write[n] = write[n], w
			n++
		}
	}
	return n
}

// abandonEarly ends what Early has begun without a commit.
func (e *Engine) abandonEarly() {
	if x := e.early; x != nil {
		close(x.parts)
		close(x.rest)
		<-x.done
		if e.watcher != nil {
			e.watcher.End(Committed{OK: true}) // of nothing
		}
		e.early = nil
	}
}

// stream returns the input. Table nat comes first, the rest after it.
func (x *early) stream(shared []chainWrite) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriterSize(w, 64<<10)
		l := lines{b}
		l.put("*", string(NAT))
		l.declare(shared, nil)
		for part := range x.parts {
			l.part(part)
		}
		t, ok := <-x.rest
		if !ok {
			w.CloseWithError(errAbandoned)
			return
		}
		for i := range t {
			if s := &t[i]; s.table == NAT {
				l.chains(s.write, s.drop, declareAtOnce)
				l.end(s)
			}
		}
		for i := range t {
			if s := &t[i]; s.table != NAT {
				s.writeTo(b)
			}
		}
		w.CloseWithError(b.Flush())
	}()
	return r
}

// lacks tells whether the kernel has no chain of ours, as far as that is quickly
// said.
func (a *Reading) lacks(ctx context.Context, o owners) bool {
	select {
	case <-a.done:
	case <-ctx.Done():
		return false
	}
	if a.err != nil || len(a.text.parts) > 1 {
		return false
	}
	found := foundOwned{owners: o}
	err := parse(a.text.again(), &found)
	return err == nil && !found.any
}

// foundOwned is a visitor that finds out whether there are chains of ours.
type foundOwned struct {
	owners
	any bool
}

func (f *foundOwned) table(Table)                {}
func (f *foundOwned) chain(k ChainKey, _ string) { f.any = f.any || f.owns(k) }
func (f *foundOwned) rule(_ ChainKey, _ []byte)  {}
func (f *foundOwned) unreadable(t Table) error   { return unreadable(t) }
