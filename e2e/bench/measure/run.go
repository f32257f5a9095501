// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fairlead/e2e/bench/probe"
	"fairlead/e2e/bench/report"
	"fairlead/e2e/bench/subject"
	"fairlead/e2e/lab"
	"fairlead/e2e/load/workload"
)

// Extent is how much is measured of a subject.
type Extent int

// The extents; each has those before it.
const (
	// Loads: the first sync, and memory.
	Loads Extent = iota
	// Curve: also what one change costs, and the floor.
	Curve
	// All there is.
	All
)

// Config is what to measure, and how much.
type Config struct {
	report.Settings
	Mix    workload.Mix
	Extent Extent
	// Patience, unless 0, is how long changes are measured one by one: when it is
	// over, three of each kind are enough.
	Patience time.Duration
	// APIFloor measures, for a subject without a floor of its own, what of a change is
	// the API server's.
	APIFloor bool
	// Log is told what is being done.
	Log func(format string, args ...any)
}

// Cutoff is how long a first sync may take.
func (c Config) cutoff() time.Duration { return time.Duration(c.CutoffS * float64(time.Second)) }

// bench is the measurement of one subject.
type bench struct {
	*Rig
	Config
	subject subject.Subject
	node    *node
	proc    *subject.Process
	run     *report.Run
}

// Run measures a subject on a new node. A first sync that takes too long is a
// result, not an error.
func (r *Rig) Run(ctx context.Context, s subject.Subject, v lab.Variant, cfg Config) (run *report.Run, err error) {
	b := &bench{Rig: r, Config: cfg, subject: s, run: &report.Run{
		Subject: s.Name, Variant: string(v),
		Size: report.Size{Services: r.loaded, Endpoints: r.plan().Endpoints},
	}}
	if s.HasFloor && cfg.Extent >= Curve {
		if b.run.Floor, err = r.floor(ctx, s, v, cfg); err != nil {
			return nil, fmt.Errorf("measure the floor of %s (%s): %w", s.Name, v, err)
		}
	}
	if cfg.APIFloor {
		if b.run.Floor, err = r.apiFloor(ctx, cfg); err != nil {
			return nil, fmt.Errorf("measure the API server at %s: %w", b.run.Size, err)
		}
	}
	if b.node, err = r.newNode(ctx, v); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.removeNode(ctx, b.node)) }()
	err = b.all(ctx)
	if b.proc != nil {
		b.proc.Kill()
	}
	if err != nil {
		return nil, fmt.Errorf("measure %s (%s) at %s: %w", s.Name, v, b.run.Size, err)
	}
	return b.run, nil
}

// all measures in an order in which nothing is in the way of what comes next.
func (b *bench) all(ctx context.Context) error {
	// On the curve there is no restart from which on it is eager.
	if err := b.firstSync(ctx, subject.Options{Eager: b.Extent == Curve}); err != nil || b.run.CutOff {
		return err
	}
	if err := b.memory(ctx); err != nil {
		return err
	}
	if b.Extent >= All {
		if err := b.connects(ctx); err != nil {
			return err
		}
		if err := b.churn(ctx); err != nil {
			return err
		}
		if err := b.restart(ctx); err != nil {
			return err
		}
	}
	if b.Extent >= Curve {
		return b.changes(ctx)
	}
	return nil
}

// start starts the subject. Calls with the context that it returns end with it.
func (b *bench) start(ctx context.Context, o subject.Options) (context.Context, context.CancelFunc, error) {
	var err error
	if b.proc, err = b.subject.Start(ctx, b.node.Node, o); err != nil {
		return nil, nil, err
	}
	running, cancel := b.proc.WhileRunning(ctx)
	return running, cancel, nil
}

// firstSync starts the subject on the empty node and waits until Services work.
func (b *bench) firstSync(ctx context.Context, o subject.Options) error {
	b.Log("first sync")
	running, cancel, err := b.start(ctx, o)
	if err != nil {
		return err
	}
	defer cancel()
	limited, stop := context.WithTimeout(running, b.cutoff())
	defer stop()
	took, err := awaitAll(limited, b.node.client(), b.plan(), b.proc.Started)
	var m subject.Metrics
	var done time.Time
	if err == nil {
		done, m, err = b.proc.WaitSynced(limited)
	}
	switch {
	case err == nil:
		b.run.FirstSync = &report.FirstSync{S: took.Seconds(), SyncS: m.Sum(subject.SyncSeconds, `ip_family="IPv4"`), DoneS: done.Sub(b.proc.Started).Seconds()}
		return nil
	case running.Err() != nil:
		return context.Cause(running)
	case limited.Err() != nil:
		b.Log("  cut off after %s", b.cutoff())
		b.run.CutOff = true
		return nil
	}
	return err
}

// sentinels is how many Services tell that all are there.
const sentinels = 64

// awaitAll waits until connects work to Services spread evenly over all of them,
// the first and the last included, and returns how long that was from start on.
func awaitAll(ctx context.Context, c probe.Client, plan workload.Plan, start time.Time) (time.Duration, error) {
	var last time.Time
	for i := range min(sentinels, plan.Services) {
		number := 0
		if i > 0 {
			number = i * (plan.Services - 1) / (min(sentinels, plan.Services) - 1)
		}
		at, err := c.Await(ctx, plan.At(number), probe.Connected, 1)
		if err != nil {
			return 0, err
		}
		last = at
	}
	return last.Sub(start), nil
}

const mib = 1 << 20

// memory notes what the process has in memory after the first sync, once it has
// had a second to give back what that alone needed.
func (b *bench) memory(ctx context.Context) error {
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	m, err := b.proc.Memory()
	b.run.Memory = &report.Memory{SyncedMiB: float64(m.Resident) / mib, PeakMiB: float64(m.Peak) / mib}
	return err
}

// connects measures connect(2).
func (b *bench) connects(ctx context.Context) (err error) {
	b.Log("connects")
	order, err := b.dispatchOrder(ctx)
	if err != nil {
		return err
	}
	plan, from := b.plan(), b.node.client()
	noService := netip.AddrPortFrom(plan.Endpoint(0), plan.TargetPort)
	hand, err := b.byHand(ctx, order[0], noService)
	if hand != nil {
		defer func() { err = errors.Join(err, b.removeNode(ctx, hand)) }()
	}
	if err != nil {
		return err
	}
	got, err := probe.Latencies(ctx, []probe.Target{
		{From: from, To: order[0]}, {From: from, To: order[len(order)/2]}, {From: from, To: order[len(order)-1]},
		{From: from, To: noService}, {From: hand.client(), To: order[0]}, {From: b.bare.client(), To: noService},
	}, b.Connects)
	if err != nil {
		return err
	}
	dist := func(i int) report.Dist { return *report.NewDist(got[i], time.Microsecond) }
	b.run.Connect = &report.Connect{FirstUS: dist(0), MiddleUS: dist(1), LastUS: dist(2), NoServiceUS: dist(3), ByHandUS: report.NewDist(got[4], time.Microsecond), NoRulesUS: dist(5)}
	return nil
}

// churn makes changes at a rate, and measures until the last one is in effect.
// Then it takes them back.
func (b *bench) churn(ctx context.Context) error {
	b.Log("%d changes, %g in a second", b.Changes, b.Rate)
	churn := workload.NewChurn(b.plan(), b.Mix, b.Seed)
	start := time.Now()
	before, err := b.proc.CPU()
	if err != nil {
		return err
	}
	if _, err := b.writer.Run(ctx, b.Rate, slices.Values(churn.Take(b.Changes))); err != nil {
		return err
	}
	// A sync takes all that waits: when this one works, all do.
	if _, err := b.change(ctx, edge().add()); err != nil {
		return err
	}
	took := time.Since(start)
	after, err := b.proc.CPU()
	if err != nil {
		return err
	}
	m, err := b.proc.Memory()
	if err != nil {
		return err
	}
	b.run.Churn = &report.Churn{CPUS: (after - before).Seconds(), TookS: took.Seconds(), MemoryMiB: float64(m.Resident) / mib}
	b.run.Memory.PeakMiB = float64(m.Peak) / mib
	if _, err := b.writer.Run(ctx, 0, slices.Values(churn.Undo())); err != nil {
		return err
	}
	last, err := b.change(ctx, edge().remove())
	if err != nil {
		return err
	}
	return rest(ctx, last) // what follows is not to interrupt a sync
}

// restart stops the subject and starts it again. The one that runs then syncs
// at once, for the changes that follow.
func (b *bench) restart(ctx context.Context) error {
	b.Log("restart")
	if err := b.proc.Stop(); err != nil {
		return err
	}
	save, err := b.timeSave(ctx)
	if err != nil {
		return err
	}
	running, cancel, err := b.start(ctx, subject.Options{Eager: true})
	if err != nil {
		return err
	}
	defer cancel()
	limited, stop := context.WithTimeout(running, b.cutoff())
	defer stop()
	at, m, err := b.proc.WaitSynced(limited)
	if err != nil {
		return err
	}
	b.run.Restart = &report.Restart{
		ReadyS: at.Sub(b.proc.Started).Seconds(), SaveS: save.Seconds(),
		RulesWritten: int(m.Sum(subject.RulesWritten, "")),
	}
	return nil
}
