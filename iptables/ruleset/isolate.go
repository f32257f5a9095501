// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"cmp"
	"context"
	"maps"
	"slices"
)

// Refused is a unit, or a rule of a shared chain, that the kernel does not
// accept.
type Refused struct {
	Chain ChainKey // zero for a unit
	Unit  string   // empty for a rule
	Rule  Rule
	Err   error
}

// refusals are remembered so that a change of something else need not find
// them again. A unit is tried anew when it is staged anew, and everything on
// Options.Verify.
type refusals struct {
	units map[string]error
	rules map[ChainKey]map[Rule]error
}

func newRefusals() refusals {
	return refusals{units: map[string]error{}, rules: map[ChainKey]map[Rule]error{}}
}

func (r refusals) empty() bool { return len(r.units)+len(r.rules) == 0 }

// keepRules forgets what was refused of a shared chain and is not wanted any
// more.
func (r refusals) keepRules(k ChainKey, wanted []Rule) {
	for rule := range r.rules[k] {
		if !slices.Contains(wanted, rule) {
			delete(r.rules[k], rule)
		}
	}
	if len(r.rules[k]) == 0 {
		delete(r.rules, k)
	}
}

func (r refusals) addRule(k ChainKey, rule Rule, err error) {
	if r.rules[k] == nil {
		r.rules[k] = map[Rule]error{}
	}
	r.rules[k][rule] = err
}

func (r refusals) list() []Refused {
	var out []Refused
	for unit, err := range r.units {
		out = append(out, Refused{Unit: unit, Err: err})
	}
	for k, rules := range r.rules {
		for rule, err := range rules {
			out = append(out, Refused{Chain: k, Rule: rule, Err: err})
		}
	}
	slices.SortFunc(out, func(a, b Refused) int {
		return cmp.Or(compareKeys(a.Chain, b.Chain), cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Rule, b.Rule))
	})
	return out
}

// tryAgain forgets that a unit was refused. The rules of shared chains that
// lead to it may have been left out.
func (e *Engine) tryAgain(unit string) {
	if e.refused.units[unit] == nil {
		return
	}
	delete(e.refused.units, unit)
	for k, c := range e.desired {
		if c.Unit == "" {
			e.dirty[k] = true
		}
	}
}

// wanted returns the chain that is to be there, given what was refused: of a
// refused unit what the kernel has, and of a shared chain what does not lead
// to chains that are not there.
func (e *Engine) wanted(k ChainKey) (*Chain, bool) {
	c, ok := e.desired[k]
	if !ok || e.refused.empty() {
		return c, ok
	}
	if c.Unit != "" {
		if e.refused.units[c.Unit] == nil {
			return c, true
		}
		have, exists := e.kernel.chains[k]
		return have, exists
	}
	out := &Chain{}
	for _, r := range c.Rules {
		if e.refused.rules[k][r] == nil && e.leads(ChainKey{k.Table, r.Target()}) {
			out.Rules = append(out.Rules, r)
		}
	}
	return out, true
}

// leads tells whether a jump to target can be written.
func (e *Engine) leads(target ChainKey) bool {
	c, ok := e.desired[target]
	if !ok || e.refused.units[c.Unit] == nil {
		return true
	}
	_, exists := e.kernel.chains[target]
	return exists
}

// isolate is called after the kernel has refused a commit. It finds the units
// and rules at fault by halves, notes them as refused, and does all the rest.
func (e *Engine) isolate(ctx context.Context, o Options, res *Result) error {
	e.alive = false
	if err := e.load(ctx, res); err != nil {
		return err
	}
	e.trims = false // a rule that cannot be deleted can be written over
	defer func() { e.trims = e.variant == NFT }()
	p := e.plan(o)
	if err := e.declareShared(ctx, p, res); err != nil {
		return err
	}
	for _, t := range append([]Table{Filter}, p.otherTables()...) {
		build, live := p.units(t, &e.kernel)
		var units [][]chainWrite
		for _, write := range [][]chainWrite{build, live} {
			for from, to := range eachUnit(write) {
				units = append(units, write[from:to])
			}
		}
		err := e.bisect(ctx, len(units), res, func(lo, hi int) transaction {
			return transaction{{table: t, write: slices.Concat(units[lo:hi]...)}}
		}, func(i int, err error) {
			e.refused.units[e.desired[ChainKey{t, units[i][0].name}].Unit] = err
		})
		if err != nil {
			return err
		}
	}
	if err := e.isolateRules(ctx, p, res); err != nil {
		return err
	}
	return e.commit(ctx, e.plan(o), res)
}

// declareShared makes the shared chains that are missing, empty, so that
// units can refer to them.
func (e *Engine) declareShared(ctx context.Context, p *plan, res *Result) error {
	byTable := map[Table]*section{}
	for k, c := range p.write {
		if _, exists := e.kernel.chains[k]; exists || c.Unit != "" {
			continue
		}
		if byTable[k.Table] == nil {
			byTable[k.Table] = &section{table: k.Table}
		}
		byTable[k.Table].write = append(byTable[k.Table].write, chainWrite{k.Name, &Chain{}})
	}
	for _, t := range slices.Sorted(maps.Keys(byTable)) {
		if err := e.run(ctx, transaction{*byTable[t]}, res); err != nil {
			return err
		}
	}
	return nil
}

// isolateRules tries the new rules of each shared chain of the plan, beside
// those that the chain has.
func (e *Engine) isolateRules(ctx context.Context, p *plan, res *Result) error {
	for _, k := range slices.SortedFunc(maps.Keys(p.write), compareKeys) {
		c, ok := e.wanted(k)
		if !ok || c.Unit != "" {
			continue
		}
		var fresh []Rule
		have := setOf(e.kernel.rules(k))
		for _, r := range c.Rules {
			if !have[r] {
				fresh = append(fresh, r)
			}
		}
		err := e.bisect(ctx, len(fresh), res, func(lo, hi int) transaction {
			rules := union(e.kernel.rules(k), fresh[lo:hi])
			return transaction{{table: k.Table, write: []chainWrite{{k.Name, &Chain{Rules: rules}}}}}
		}, func(i int, err error) { e.refused.addRule(k, fresh[i], err) })
		if err != nil {
			return err
		}
	}
	return nil
}

// probe returns an error if no restore succeeds, whatever it says: if not even
// a chain can be written as it is. Nothing is to blame then but the kernel.
func (e *Engine) probe(ctx context.Context, t Table, res *Result) error {
	if e.alive {
		return nil
	}
	var least *chainWrite
	for k, c := range e.kernel.chains {
		if k.Table == t && (least == nil || len(c.Rules) < len(least.chain.Rules)) {
			least = &chainWrite{k.Name, c}
		}
	}
	if least == nil {
		return nil
	}
	return e.run(ctx, transaction{{table: t, write: []chainWrite{*least}}}, res)
}

// bisect commits n things, in halves where the kernel refuses the whole, and
// calls refuse for each that it refuses alone.
func (e *Engine) bisect(ctx context.Context, n int, res *Result, build func(lo, hi int) transaction, refuse func(i int, err error)) error {
	var try func(lo, hi int) error
	try = func(lo, hi int) error {
		if lo == hi {
			return nil
		}
		err := e.run(ctx, build(lo, hi), res)
		if err == nil {
			return nil
		}
		if e.variant.transient(err) || ctx.Err() != nil {
			return err
		}
		e.loaded = true // one table only: refused as a whole
		if hi-lo == 1 {
			t := build(lo, hi)
			if perr := e.probe(ctx, t[0].table, res); perr != nil {
				return perr
			}
			if err = e.run(ctx, t, res); err == nil || e.variant.transient(err) {
				return err
			}
			e.loaded = true
			refuse(lo, err)
			return nil
		}
		mid := (lo + hi) / 2
		if err := try(lo, mid); err != nil {
			return err
		}
		return try(mid, hi)
	}
	return try(0, n)
}
