// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"k8s.io/klog/v2"
)

// Config is what an Engine needs.
type Config struct {
	Exec     Exec
	Commands Commands
	Variant  Variant
	// Contributions are all that will ever be written. No two own the same
	// chain.
	Contributions []Contribution
	// Heir has what Clean is to leave.
	Heir Heir
	// Metrics may be nil. Family is what they have this family as.
	Metrics *Metrics
	Family  string
}

// Engine is the one writer of one family's rules. It is safe for concurrent
// use.
type Engine struct {
	exec    Exec
	cmds    Commands
	variant Variant
	limits  limits
	metrics *Metrics
	family  string
	// trims is set where removing rules is cheaper than writing a chain anew.
	trims  bool
	owners owners
	jumps  []Jump
	guests []Guest
	heir   Heir
	// overlaps is set where a restore command may be started while another one
	// runs: the legacy command has a lock from the start.
	overlaps bool
	// watcher is nil where nothing tells what others change.
	watcher Watcher
	// ahead is nil once it is used.
	ahead *Reading
	// early is set from Early to the end of Apply.
	early *early
	// cleaning is set by Clean.
	cleaning bool
	// entry are the jumps that lead to a chain of ours, and former those of them
	// that are not wanted any more.
	entry, former map[ChainKey][]Rule

	mu      sync.Mutex
	desired map[ChainKey]*Chain
	rules   map[Table]int // number of rules in desired
	kernel  kernel
	// loaded is false while what the kernel has is not known: at start and
	// after a failure.
	loaded bool
	// dirty are the chains that may differ from what is wanted, and unsettled
	// those of them that may go on so for a while. With all set, any may.
	dirty     map[ChainKey]bool
	all       bool
	unsettled map[ChainKey]bool
	// stalePins is set where what pins chains may be gone.
	stalePins bool
	refused   refusals
	// alive is set once a restore has succeeded.
	alive bool
}

// NewEngine returns an Engine. It runs no command.
func NewEngine(cfg Config) *Engine {
	e := &Engine{
		exec: cfg.Exec, cmds: cfg.Commands, variant: cfg.Variant, limits: limitsOf(cfg.Variant), trims: cfg.Variant == NFT, overlaps: cfg.Variant == NFT,
		metrics: cfg.Metrics, family: cfg.Family,
		owners:  newOwners(cfg.Contributions),
		heir:    cfg.Heir,
		entry:   map[ChainKey][]Rule{},
		former:  map[ChainKey][]Rule{},
		desired: map[ChainKey]*Chain{},
		rules:   map[Table]int{},
		dirty:   map[ChainKey]bool{},
		all:     true,
		refused: newRefusals(),
	}
	for _, c := range cfg.Contributions {
		e.jumps = append(e.jumps, c.Jumps...)
		e.guests = append(e.guests, c.Guests...)
		for _, j := range c.Jumps {
			target := ChainKey{j.Table, j.Rule.Target()}
			e.entry[target] = append(e.entry[target], j.Rule)
		}
		for _, j := range c.Former {
			target := ChainKey{j.Table, j.Rule.Target()}
			e.entry[target] = append(e.entry[target], j.Rule)
			e.former[target] = append(e.former[target], j.Rule)
		}
	}
	return e
}

// Stage says what chains are wanted from the next Apply on; nil means not
// wanted any more. Chains that it does not name stay wanted as they were. It
// panics on a chain that no Contribution owns.
func (e *Engine) Stage(chains map[ChainKey]*Chain) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, c := range chains {
		if !e.owners.owns(k) {
			panic(fmt.Sprintf("ruleset: chain %s is staged but not owned", k))
		}
		if old := e.desired[k]; old != nil {
			e.rules[k.Table] -= len(old.Rules)
			e.tryAgain(old.Unit)
		}
		if e.loaded { // else all will be
			e.dirty[k] = true
		}
		if c == nil {
			delete(e.desired, k)
			e.refused.keepRules(k, nil)
			continue
		}
		e.desired[k] = c
		e.rules[k.Table] += len(c.Rules)
		e.tryAgain(c.Unit)
		e.refused.keepRules(k, c.Rules)
	}
}

// Rules returns how many rules are wanted in a table, jumps included.
func (e *Engine) Rules(t Table) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rules[t] + len(jumpsOf(e.wantedJumps(), t))
}

// wantedJumps returns the jumps to chains that are wanted.
func (e *Engine) wantedJumps() []Jump {
	return slices.DeleteFunc(slices.Clone(e.jumps), func(j Jump) bool {
		return e.desired[ChainKey{j.Table, j.Rule.Target()}] == nil
	})
}

// Existing calls yield for each rule that chains of ours have in a table of the
// kernel, reading the kernel's rules first if they are not known.
func (e *Engine) Existing(ctx context.Context, t Table, yield func(Rule)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.loaded {
		if err := e.load(ctx, &Result{}); err != nil {
			return err
		}
	}
	for k, c := range e.kernel.chains {
		if k.Table != t {
			continue
		}
		for _, r := range c.Rules {
			yield(r)
		}
	}
	return nil
}

// Options say how Apply is to work.
type Options struct {
	// Prune allows removals. While it is false, what the kernel has of ours
	// beyond what is wanted stays and keeps working.
	Prune bool
	// Verify reads the kernel's rules again instead of trusting what is known
	// of them, and tries again what was refused.
	Verify bool
	// Settle brings chains into their final form for which it was enough to
	// lose rules.
	Settle bool
}

// Result tells what Apply did.
type Result struct {
	// Written is the number of rules written, by table.
	Written map[Table]int
	// Full is set where everything was compared with what the kernel has, not
	// only what was staged or was said to have changed.
	Full bool
	// Failures is the number of restore commands that failed.
	Failures int
	// Unverified is why what Verify asked for could not be done. What was known
	// of the kernel before was gone by.
	Unverified error
	// Drift are the chains of ours that others changed since the last Apply,
	// found by Verify, and repaired.
	Drift []ChainKey
	// Refused is what the kernel does not accept; all else is in place.
	Refused []Refused
	// Unsettled is the number of chains that wait for Options.Settle.
	Unsettled int
}

// Apply makes the kernel hold what is wanted, and writes nothing where it does
// already. An error means that it is not known what the kernel holds: calling
// Apply again, later, is the remedy. A unit or a rule that the kernel refuses
// is no error: it is reported in the Result, left out, and all else is done.
func (e *Engine) Apply(ctx context.Context, o Options) (Result, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.abandonEarly() // if it has come to nothing
	res := Result{Written: map[Table]int{}}
	if o.Verify || !e.loaded {
		if !e.loaded {
			if err := e.load(ctx, &res); err != nil {
				return res, err
			}
		} else if err := e.verify(ctx, &res); err != nil {
			e.loaded, res.Unverified = true, err
		}
	}
	err := e.commit(ctx, e.plan(o), &res)
	if err != nil && !e.variant.transient(err) && ctx.Err() == nil {
		err = e.isolate(ctx, o, &res)
	}
	res.Refused, res.Unsettled = e.refused.list(), len(e.unsettled)
	return res, err
}

// Clean removes all that is ours, but for what the heir goes on with, wherever nothing
// of others refers to it. It runs no restore command where there is nothing.
func (e *Engine) Clean(ctx context.Context) (Result, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	res := Result{Written: map[Table]int{}}
	e.jumps, e.desired = nil, map[ChainKey]*Chain{}
	e.cleaning = true
	for i := range e.guests {
		e.guests[i].Wanted = false
	}
	if err := e.load(ctx, &res); err != nil {
		return res, err
	}
	theirs := e.bequeath()
	err := e.commit(ctx, e.plan(Options{Prune: true, Settle: true}), &res)
	for k := range e.kernel.pinned {
		if _, left := e.kernel.chains[k]; left && !theirs.owns(k) {
			klog.FromContext(ctx).Info("Chain stays: rules of others lead to it", "chain", k)
		}
	}
	return res, err
}

// load reads what the kernel has. Whatever is wanted or there may differ.
func (e *Engine) load(ctx context.Context, res *Result) error {
	r := e.reader()
	if err := e.readAll(ctx, r); err != nil {
		e.loaded = false
		return fmt.Errorf("read rules: %w", err)
	}
	r.endChain()
	res.Full, e.stalePins = true, false
	if e.loaded {
		res.Drift = drift(&e.kernel, &r.kernel)
	}
	e.kernel, e.loaded = r.kernel, true
	e.refused = newRefusals()
	e.all = true
	return nil
}

// reader returns one for what the kernel has.
func (e *Engine) reader() *reader {
	r := newReader(e.owners, e.entry, e.guests, e.desired)
	r.former = e.former
	return r
}

// commit carries out a plan. After an error it is not known what the kernel
// has.
func (e *Engine) commit(ctx context.Context, p *plan, res *Result) error {
	if !p.empty() {
		all := p.transactions(&e.kernel, e.limits)
		p.write = nil // what the kernel comes to have needs the memory
		if err := e.runAll(ctx, all, res); err != nil {
			return err
		}
	}
	e.dirty, e.all, e.unsettled = map[ChainKey]bool{}, false, p.unsettled
	for _, k := range p.deferred {
		e.dirty[k] = true
	}
	for k := range p.unsettled {
		e.dirty[k] = true
	}
	return nil
}

// runAll commits transactions, one after the other. Where that is possible, the
// command of the next reads its input while one commits: of what 10,000 Services
// take with the nft variant, reading is as much as committing.
func (e *Engine) runAll(ctx context.Context, all []transaction, res *Result) error {
	all = slices.DeleteFunc(all, transaction.empty)
	if x := e.early; x != nil && len(all) == 1 && x.complete(all[0]) {
		e.early = nil
		return e.finish(x.restore, res)
	}
	e.abandonEarly()
	var next *restore
	for i, t := range all {
		r := next
		if next = nil; r == nil {
			r = e.prepare(ctx, t)
		}
		if e.overlaps && i+1 < len(all) {
			next = e.prepare(ctx, all[i+1])
		}
		if err := e.finish(r, res); err != nil {
			if next != nil {
				next.abandon()
			}
			return err
		}
		all[i] = nil
	}
	return nil
}

// run commits one transaction.
func (e *Engine) run(ctx context.Context, t transaction, res *Result) error {
	return e.runAll(ctx, []transaction{t}, res)
}

// drift returns the chains in which two states of the kernel differ.
func drift(before, after *kernel) []ChainKey {
	var out []ChainKey
	differ(before.chains, after.chains, (*Chain).same, &out)
	differ(before.jumps, after.jumps, slices.Equal[[]Rule], &out)
	slices.SortFunc(out, compareKeys)
	return out
}

// differ adds to out the chains that are not in both of a and b, or not equal.
func differ[V any](a, b map[ChainKey]V, equal func(V, V) bool, out *[]ChainKey) {
	for k, v := range a {
		if other, ok := b[k]; !ok || !equal(v, other) {
			*out = append(*out, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			*out = append(*out, k)
		}
	}
}
