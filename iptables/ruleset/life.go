// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// errHangs is why the context of a command ends that shows no sign of life.
var errHangs = errors.New("hangs")

// life watches over a command: it is alive as long as it takes input or prints.
type life struct {
	given atomic.Int64 // bytes of its input
	timer *time.Timer
}

// withLife returns a context that ends when the command hangs.
func withLife(ctx context.Context) (context.Context, *life, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	l := &life{timer: time.AfterFunc(patience, func() { cancel(errHangs) })}
	return ctx, l, func() {
		l.timer.Stop()
		cancel(nil)
	}
}

// patience is how long the command may be silent from now on.
func (l *life) patience() time.Duration {
	return patience + time.Duration(l.given.Load()>>20)*patienceForMiB
}

func (l *life) sign() { l.timer.Reset(l.patience()) }

// reader passes r on, nil as nil.
func (l *life) reader(r io.Reader) io.Reader {
	if r == nil {
		return nil
	}
	return readFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		l.given.Add(int64(n))
		l.sign()
		return n, err
	})
}

// writer passes w on, nil as nil.
func (l *life) writer(w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	return writeFunc(func(p []byte) (int, error) {
		l.sign()
		return w.Write(p)
	})
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }
