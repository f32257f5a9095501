// SPDX-License-Identifier: Apache-2.0

package ruleset

// NewSpool returns an empty spool.
func NewSpool() *spool { return &spool{} }

// SetLimits replaces the bounds of one transaction, so that tests can see small
// plans split.
func (e *Engine) SetLimits(build, live int) { e.limits = limits{build: build, live: live} }
