// SPDX-License-Identifier: Apache-2.0

package ruleset

import "context"

// List returns the rules of one chain, whoever has made it, none where it is not
// there or cannot be read.
func (c Commands) List(ctx context.Context, x Exec, k ChainKey) []Rule {
	var v listed
	if err := c.list(ctx, x, k, &v); err != nil {
		return nil
	}
	return v.rules
}

// listed is a visitor that keeps all rules.
type listed struct{ rules []Rule }

func (*listed) unreadable(Table) error { return nil }

func (*listed) table(Table) {}

func (*listed) chain(ChainKey, string) {}

func (l *listed) rule(_ ChainKey, text []byte) { l.rules = append(l.rules, Rule(text)) }

// Adopt wants chains as the kernel has them, those that are there, until they are
// staged.
func (e *Engine) Adopt(ctx context.Context, keys ...ChainKey) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.loaded {
		if err := e.load(ctx, &Result{}); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if have := e.kernel.chains[k]; have != nil && e.desired[k] == nil {
			e.desired[k] = have
			e.rules[k.Table] += len(have.Rules)
			e.dirty[k] = true
		}
	}
	return nil
}
