// SPDX-License-Identifier: Apache-2.0

package ruleset

import "context"

// NewSpool returns an empty spool.
func NewSpool() *spool { return &spool{} }

// SetLimits replaces the bounds of one transaction, so that tests can see small
// plans split.
func (e *Engine) SetLimits(build, live int) { e.limits = limits{build: build, live: live} }

// ReadAhead starts to read the rules, for the first Apply.
func (e *Engine) ReadAhead(ctx context.Context) {
	if e.watcher != nil {
		e.watcher.Take()
	}
	e.Use(Read(ctx, e.exec, e.cmds, nil))
}
