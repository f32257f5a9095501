// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// restore is a restore command under way. It commits nothing before it is told
// to, and until then only reads its input, as far as the first COMMIT:
// iptables-nft-restore asks the kernel for what there is after that (xtables-restore.c
// and nft_prepare in nft.c of iptables).
type restore struct {
	t transaction
	// gate takes nil to commit; capacity 1. A restore without one commits when
	// its input ends.
	gate chan error
	// begun is set where the watcher has been told that it starts.
	begun bool
	pid   atomic.Int64
	done  chan error
}

var errAbandoned = errors.New("abandoned")

// prepare starts the command for a transaction. Either finish or abandon is to
// follow.
func (e *Engine) prepare(ctx context.Context, t transaction) *restore {
	if log := klog.FromContext(ctx).V(6); log.Enabled() {
		log.Info("Restoring rules", "input", t.text())
	}
	gate := make(chan error, 1)
	r := e.start(ctx, t.stream(func() error { return <-gate }))
	r.t, r.gate = t, gate
	return r
}

// start starts the command.
func (e *Engine) start(ctx context.Context, input io.ReadCloser) *restore {
	r := &restore{done: make(chan error, 1)}
	go func() {
		defer input.Close()
		r.done <- e.cmds.restore(ctx, e.exec, input, func(pid int) { r.pid.Store(int64(pid)) })
	}()
	return r
}

// abandon ends a command that has not been told to commit: input without an end
// is an error to it.
func (r *restore) abandon() {
	r.gate <- errAbandoned
	<-r.done
}

// finish has the command commit, waits for its end, tells the watcher what it
// did, and notes what the kernel has now.
func (e *Engine) finish(r *restore, res *Result) error {
	done := Committed{}
	if e.watcher != nil && !r.begun {
		e.watcher.Begin()
	}
	start := time.Now()
	if r.gate != nil {
		r.gate <- nil
	}
	err := <-r.done
	e.metrics.committed(e.family, time.Since(start), err)
	if e.watcher != nil {
		if done.OK, done.PID = err == nil, int(r.pid.Load()); done.OK {
			done.Sections, done.Growth = e.kernel.effect(r.t)
		}
		e.watcher.End(done)
	}
	if err != nil {
		e.loaded = false
		res.Failures++
		return fmt.Errorf("restore rules: %w", err)
	}
	e.alive = true
	e.kernel.record(r.t)
	for i := range r.t {
		for _, w := range r.t[i].write {
			res.Written[r.t[i].table] += len(w.chain.Rules)
		}
		res.Written[r.t[i].table] += len(r.t[i].insert)
	}
	return nil
}
