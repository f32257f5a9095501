// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"io"
	"time"
)

// ahead is a reading of all rules that was started before it was needed.
type ahead struct {
	began time.Time
	done  chan struct{} // closed at the end, and then:
	took  time.Duration
	text  spool
	err   error
}

// maxAhead is how long ago a reading may have begun to be of use still.
const maxAhead = 30 * time.Second

// ReadAhead starts to read the kernel's rules, which the first Apply waits for
// otherwise: 3 s at 10,000 Services, in which the objects can be listed. It is to
// be called before the first Apply, and after Watch. The reading ends with ctx.
func (e *Engine) ReadAhead(ctx context.Context) {
	a := &ahead{began: time.Now(), done: make(chan struct{})}
	if e.watcher != nil {
		e.watcher.Take() // what comes from here on is seen or told
	}
	e.ahead = a
	go func() {
		defer close(a.done)
		a.err = e.exec.Run(ctx, Command{Name: e.cmds.Save, Stdout: &a.text})
		a.took = time.Since(a.began)
	}()
}

// takeAhead returns what was read ahead, nil where that is of no use.
func (e *Engine) takeAhead(ctx context.Context) *ahead {
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
