// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"context"
	"io"
	"time"
)

// Reading is a reading of all rules that is started before it is needed.
type Reading struct {
	began time.Time
	keep  func(ChainKey) bool
	done  chan struct{} // closed at the end, and then:
	took  time.Duration
	text  spool
	kept  map[ChainKey][]Rule
	err   error
}

// maxAhead is how long ago a reading may have begun to be of use still.
const maxAhead = 30 * time.Second

// Read starts to read the rules, all tables'. Of chains that keep chooses, whoever
// has made them, Chain returns the rules; keep may be nil. The reading ends with ctx.
func Read(ctx context.Context, x Exec, cmds Commands, keep func(ChainKey) bool) *Reading {
	r := &Reading{began: time.Now(), keep: keep, done: make(chan struct{}), kept: map[ChainKey][]Rule{}}
	go func() {
		defer close(r.done)
		r.err = x.Run(ctx, Command{Name: cmds.Save, Stdout: &r.text})
		r.took = time.Since(r.began)
		if r.err == nil && keep != nil {
			r.err = parse(r.text.again(), keeper{r})
		}
	}()
	return r
}

// Chain waits for the end of the reading and returns the rules of a chain that is
// kept, none where it is not there. ok is false where there is no telling: the
// reading has failed, or was long ago.
func (r *Reading) Chain(k ChainKey) (rules []Rule, ok bool) {
	<-r.done
	return r.kept[k], r.usable()
}

// Each waits for the end of the reading and calls yield for each rule of a table that
// is kept. ok is as Chain has it.
func (r *Reading) Each(t Table, yield func(Rule)) (ok bool) {
	<-r.done
	for k, rules := range r.kept {
		for _, rule := range rules {
			if k.Table == t {
				yield(rule)
			}
		}
	}
	return r.usable()
}

func (r *Reading) usable() bool {
	return r.err == nil && r.keep != nil && time.Since(r.began) <= maxAhead
}

// keeper is the visitor that keeps rules.
type keeper struct{ *Reading }

func (keeper) table(Table)              {}
func (keeper) chain(ChainKey, string)   {}
func (keeper) unreadable(t Table) error { return unreadable(t) }
func (r keeper) rule(k ChainKey, text []byte) {
	if r.keep(k) {
		r.kept[k] = append(r.kept[k], Rule(text))
	}
}

// Use has the first Apply take what r has read, for which it waits otherwise: 3 s at
// 10,000 Services, in which the objects can be listed. If the engine has a Watcher, Take
// has been called just before r was started.
func (e *Engine) Use(r *Reading) { e.ahead = r }

// takeAhead returns what was read ahead, nil where that is of no use.
func (e *Engine) takeAhead(ctx context.Context) *Reading {
	a := e.ahead
	e.ahead = nil
	if a == nil {
		return nil
	}
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil
	}
	if a.err != nil || time.Since(a.began) > maxAhead {
		return nil
	}
	return a
}

// spool keeps what is written to it until it is read.
type spool struct{ parts [][]byte }

// spoolPart is the size of a part. Growing one buffer would copy it all again
// and again.
const spoolPart = 1 << 20

// again returns a reader of what has been written, which stays.
func (s *spool) again() io.Reader {
	var parts []io.Reader
	for _, p := range s.parts {
		parts = append(parts, bytes.NewReader(p))
	}
	return io.MultiReader(parts...)
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		last := len(s.parts) - 1
		if last < 0 || len(s.parts[last]) == spoolPart {
			s.parts = append(s.parts, make([]byte, 0, spoolPart))
			last++
		}
		n := min(len(rest), spoolPart-len(s.parts[last]))
		s.parts[last] = append(s.parts[last], rest[:n]...)
		rest = rest[n:]
	}
	return len(p), nil
}

// Read implements io.Reader. What has been read is let go of.
func (s *spool) Read(p []byte) (int, error) {
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.parts[0])
	if s.parts[0] = s.parts[0][n:]; len(s.parts[0]) == 0 {
		s.parts[0] = nil
		s.parts = s.parts[1:]
	}
	return n, nil
}
