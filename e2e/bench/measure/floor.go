// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"fairlead/e2e/bench/floor"
	"fairlead/e2e/bench/report"
	"fairlead/e2e/bench/subject"
	"fairlead/e2e/lab"
)

// recorded is what a subject fed to restore commands.
type recorded struct {
	firstSync, added, removed []floor.Restore
}

// floor measures the least that the subject's restore commands can take. The
// subject runs on a node where what it feeds them is recorded. Then it is
// stopped, the tables there are emptied, and the bare commands get the same: what
// rules name besides, sets and counters, is there already. It is nil if the
// subject does not finish in time.
func (r *Rig) floor(ctx context.Context, s subject.Subject, v lab.Variant, cfg Config) (f *report.Floor, err error) {
	cfg.Log("floor")
	dir, err := os.MkdirTemp(r.dir, "floor-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	rec, err := floor.NewRecorder(dir, v)
	if err != nil {
		return nil, err
	}
	b := &bench{Rig: r, Config: cfg, subject: s, run: &report.Run{}}
	if b.node, err = r.newNode(ctx, v); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.removeNode(ctx, b.node)) }()
	texts, err := b.record(ctx, rec)
	if err != nil || texts == nil {
		return nil, err
	}
	if err := floor.Empty(ctx, b.node.NS, v); err != nil {
		return nil, err
	}
	if err := sleep(ctx, time.Second); err != nil { // the kernel frees rules later
		return nil, err
	}
	return b.replay(ctx, texts)
}

// record runs the subject and returns what it fed to its commands.
func (b *bench) record(ctx context.Context, rec *floor.Recorder) (*recorded, error) {
	if err := b.firstSync(ctx, subject.Options{Path: rec.Bin}); err != nil {
		return nil, err
	}
	defer b.proc.Kill()
	if b.run.CutOff {
		return nil, nil
	}
	var texts recorded
	var err error
	if texts.firstSync, err = takeSettled(ctx, rec, calm); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		awaited
		to *[]floor.Restore
	}{{edge().add(), &texts.added}, {edge().remove(), &texts.removed}} {
		took, err := b.change(ctx, step.awaited)
		if err != nil {
			return nil, err
		}
		if *step.to, err = takeSettled(ctx, rec, max(calm, 2*took)); err != nil {
			return nil, err
		}
	}
	return &texts, nil
}

// calm is how long at least nothing is recorded when a subject has finished.
const calm = 300 * time.Millisecond

// takeSettled takes what was recorded once nothing more has come for some time.
func takeSettled(ctx context.Context, rec *floor.Recorder, calm time.Duration) ([]floor.Restore, error) {
	for since, last := time.Now(), -1; time.Since(since) < calm; {
		n, err := rec.Count()
		if err != nil {
			return nil, err
		}
		if n != last {
			since, last = time.Now(), n
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return rec.Take()
}

// maxReplays bounds how often one change is fed again.
const maxReplays = 10

// replay feeds what was recorded to bare commands.
func (b *bench) replay(ctx context.Context, texts *recorded) (*report.Floor, error) {
	took, err := floor.Replay(ctx, b.node.NS, texts.firstSync)
	if err != nil {
		return nil, err
	}
	f := &report.Floor{FirstSyncS: took.Seconds(), Restores: len(texts.firstSync)}
	var added, removed []time.Duration
	for range min(b.Samples, maxReplays) {
		for _, step := range []struct {
			texts []floor.Restore
			to    *[]time.Duration
		}{{texts.added, &added}, {texts.removed, &removed}} {
			if len(step.texts) == 0 {
				continue
			}
			took, err := floor.Replay(ctx, b.node.NS, step.texts)
			if err != nil {
				return nil, err
			}
			*step.to = append(*step.to, took)
		}
	}
	f.AddedMS, f.RemovedMS = report.NewDist(added, time.Millisecond), report.NewDist(removed, time.Millisecond)
	return f, nil
}
