// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"fairlead/e2e/bench/probe"
	"fairlead/e2e/bench/report"
	"fairlead/e2e/bench/subject"
	"fairlead/e2e/load/workload"
)

// single is a Service that goes from few endpoints to one more and back.
type single struct {
	number    int
	few, more []int
	// without and with are how connects end without and with that endpoint.
	without, with probe.Outcome
	// calm is how many connects in a row have to end so until that shows that
	// the endpoint is gone.
	calm int
}

// edge refuses without an endpoint.
func edge() single {
	return single{number: edgeService, more: []int{edgeEndpoint}, without: probe.Refused, with: probe.Connected, calm: 1}
}

// pair has one endpoint that answers, and another one that refuses. A connect
// finds either by chance; that 30 in a row do not find one that is there is
// less likely than one in a thousand million.
func pair() single {
	return single{number: pairService, few: []int{stayEndpoint}, more: []int{stayEndpoint, leaveEndpoint},
		without: probe.Connected, with: probe.Refused, calm: 30}
}

// awaited is a change, and what shows that it is not yet in effect and that it is.
type awaited struct {
	workload.Change
	before, after sign
}

// sign is an outcome that so many connects in a row have.
type sign struct {
	outcome probe.Outcome
	streak  int
}

func (s single) add() awaited {
	return awaited{s.change(s.few, s.more), sign{s.without, s.calm}, sign{s.with, 1}}
}

func (s single) remove() awaited {
	return awaited{s.change(s.more, s.few), sign{s.with, 1}, sign{s.without, s.calm}}
}

func (s single) change(from, to []int) workload.Change {
	return workload.Change{
		Kind:   workload.Scale,
		Before: &workload.Service{Number: s.number, Endpoints: from},
		After:  &workload.Service{Number: s.number, Endpoints: to},
	}
}

// effectTime bounds how long a change may take to be in effect.
const effectTime = 2 * time.Minute

// change writes a change, while a client connects to the Service all the time,
// and returns how long it took from the write, which began then, to the connect
// that first shows the effect.
func (r *Rig) change(ctx context.Context, n *node, a awaited) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, effectTime)
	defer cancel()
	client, at := n.client(), r.plan().At(a.Number())
	if _, err := client.Await(ctx, at, a.before.outcome, a.before.streak); err != nil {
		return 0, fmt.Errorf("before %s: %w", a.Change, err)
	}
	type result struct {
		at  time.Time
		err error
	}
	seen := make(chan result, 1)
	go func() {
		first, err := client.Await(ctx, at, a.after.outcome, a.after.streak)
		seen <- result{first, err}
	}()
	start := time.Now()
	if err := r.single(a.Number()).Apply(ctx, a.Change); err != nil {
		cancel()
		<-seen
		return 0, err
	}
	got := <-seen
	if got.err != nil {
		return 0, fmt.Errorf("%s: %w", a.Change, got.err)
	}
	return got.at.Sub(start), nil
}

func (b *bench) change(ctx context.Context, a awaited) (time.Duration, error) {
	running, cancel := b.proc.WhileRunning(ctx)
	defer cancel()
	return b.Rig.change(running, b.node, a)
}

// changes measures changes one by one.
func (b *bench) changes(ctx context.Context) error {
	b.Log("changes one by one")
	before, err := b.proc.Metrics(ctx)
	if err != nil {
		return err
	}
	if b.run.AddedMS, b.run.RemovedMS, err = b.cycle(ctx, edge(), b.Samples); err != nil {
		return err
	}
	after, err := b.proc.Metrics(ctx)
	if err != nil {
		return err
	}
	b.run.ChangeSyncMS = subject.MeanSync(before, after).Seconds() * 1000
	if b.Extent < All {
		return nil
	}
	// Of these a few are enough: the kernel does the same as before.
	_, b.run.LeftMS, err = b.cycle(ctx, pair(), (b.Samples+5)/6)
	return err
}

// enough is how many changes of a kind are measured when patience is at its end.
const enough = 3

// cycle adds and removes an endpoint n times.
func (b *bench) cycle(ctx context.Context, s single, n int) (added, removed *report.Dist, err error) {
	var add, remove []time.Duration
	start := time.Now()
	for i := range n {
		if b.Patience > 0 && i >= enough && time.Since(start) > b.Patience {
			break
		}
		for _, step := range []struct {
			awaited
			to *[]time.Duration
		}{{s.add(), &add}, {s.remove(), &remove}} {
			took, err := b.change(ctx, step.awaited)
			if err != nil {
				return nil, nil, err
			}
			*step.to = append(*step.to, took)
			if err := rest(ctx, took); err != nil {
				return nil, nil, err
			}
		}
	}
	return report.NewDist(add, time.Millisecond), report.NewDist(remove, time.Millisecond), nil
}

// rest waits until a subject whose change was in effect after some time is idle
// again: it may have been at work a quarter longer, or where it refuses first much
// longer, and rests after a sync for as long as that took, or has a minimal time between
// two. The next change then comes at no particular time.
func rest(ctx context.Context, busy time.Duration) error {
	return sleep(ctx, 2*busy+busy/2+250*time.Millisecond+rand.N(10*time.Millisecond))
}

// sleep ends with an error if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
