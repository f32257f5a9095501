// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"
)

// Watch has w tell which chains are to be looked at on Options.Verify, which
// otherwise looks at all. It is to be called before the first Apply.
func (e *Engine) Watch(w Watcher) { e.watcher = w }

// Owns tells whether a chain is one that the engine may write.
func (e *Engine) Owns(k ChainKey) bool { return e.owners.owns(k) }

// maxListed is how many chains are read one by one at most. Each takes 4 ms, and
// all of 10,000 Services 3 s.
const maxListed = 500

// verify looks at what others may have changed, and has refused things tried
// again.
func (e *Engine) verify(ctx context.Context, res *Result) error {
	if e.watcher == nil {
		return e.load(ctx, res)
	}
	s := e.watcher.Take()
	if s.All || len(s.Chains) > maxListed || e.heldByNobody() {
		klog.FromContext(ctx).V(2).Info("Reading all rules", "command", e.cmds.Save, "anyChainMayHaveChanged", s.All, "chains", len(s.Chains))
		return e.load(ctx, res)
	}
	for i, k := range s.Chains {
		differs, err := e.reread(ctx, k)
		if err != nil { // it may be gone, which is told by listing all
			return e.load(ctx, res)
		}
		if differs {
			res.Drift = append(res.Drift, s.Chains[i])
			e.dirty[k] = true
		}
	}
	e.tryAllAgain()
	return nil
}

// heldByNobody tells whether a chain is kept for rules of others that may be
// gone.
func (e *Engine) heldByNobody() bool {
	if !e.stalePins {
		return false
	}
	for k := range e.dirty {
		if e.desired[k] == nil && e.kernel.pinned[k] {
			return true
		}
	}
	return false
}

// reread reads one chain, and tells whether it is another than before.
func (e *Engine) reread(ctx context.Context, k ChainKey) (differs bool, err error) {
	r := e.reader()
	for name := range e.kernel.hosts {
		r.kernel.hosts[name] = &host{}
	}
	if err := e.cmds.list(ctx, e.exec, k, r); err != nil {
		return false, err
	}
	r.endChain()
	if e.owners.owns(k) {
		before, after := e.kernel.chains[k], r.kernel.chains[k]
		e.kernel.chains[k] = after
		return before == nil || !before.same(after), nil
	}
	for pinned := range r.kernel.pinned {
		e.kernel.pinned[pinned] = true
	}
	e.stalePins = true // whether others hold on to what they held is not known
	differs = !slices.Equal(e.kernel.jumps[k], r.kernel.jumps[k])
	if e.kernel.jumps[k] = r.kernel.jumps[k]; len(e.kernel.jumps[k]) == 0 {
		delete(e.kernel.jumps, k)
	}
	return e.kernel.rehost(k, &r.kernel) || differs, nil
}

// rehost takes over what a chain that was read anew means for guests, and tells
// whether that is something else than before.
func (k *kernel) rehost(chain ChainKey, read *kernel) (differs bool) {
	for name, h := range k.hosts {
		now := read.hosts[name]
		if name == chain {
			differs = differs || h.same != now.same || h.rules != now.rules
			h.same, h.rules = now.same, now.rules
			continue
		}
		here := func(j Jump) bool { return j.ChainKey == chain }
		was := slices.DeleteFunc(slices.Clone(h.jumps), func(j Jump) bool { return !here(j) })
		differs = differs || !slices.Equal(was, now.jumps)
		h.jumps = append(slices.DeleteFunc(h.jumps, here), now.jumps...)
	}
	return differs
}

// tryAllAgain forgets what was refused.
func (e *Engine) tryAllAgain() {
	if e.refused.empty() {
		return
	}
	for k, c := range e.desired {
		if c.Unit == "" || e.refused.units[c.Unit] != nil {
			e.dirty[k] = true
		}
	}
	e.refused = newRefusals()
}

// readAll streams all rules, and tells the watcher.
func (e *Engine) readAll(ctx context.Context, v visitor) error {
	if a := e.takeAhead(ctx); a != nil {
		if err := parse(&a.text, v); err != nil {
			return err
		}
		if e.watcher != nil {
			e.watcher.Listed(a.took)
		}
		return nil
	}
	start := time.Now()
	if e.watcher != nil {
		e.watcher.Take() // what comes from here on is seen or told
	}
	if err := e.cmds.save(ctx, e.exec, v); err != nil {
		return err
	}
	if e.watcher != nil {
		e.watcher.Listed(time.Since(start))
	}
	return nil
}

// list reads one chain as the save format has it.
func (c Commands) list(ctx context.Context, x Exec, k ChainKey, v visitor) error {
	var out bytes.Buffer
	args := []string{"-w", lockWait, "-t", string(k.Table), "-S", k.Name}
	if err := x.Run(ctx, Command{Name: c.tool(), Args: args, Stdout: &out}); err != nil {
		return err
	}
	p := parser{v: v, table: k.Table}
	lines := bufio.NewScanner(&out)
	lines.Buffer(nil, maxRuleText)
	for lines.Scan() {
		line := lines.Bytes()
		switch {
		case bytes.HasPrefix(line, []byte("-N ")):
			v.chain(k, "-")
		case bytes.HasPrefix(line, []byte("-P ")):
			_, policy, _ := bytes.Cut(line[3:], []byte(" "))
			v.chain(k, string(policy))
		default: // one with a line break in a comment is an error
			if err := p.parseRule(line); err != nil {
				return fmt.Errorf("list chain %s: %w", k, err)
			}
		}
	}
	return lines.Err()
}
