// SPDX-License-Identifier: Apache-2.0

package ruleset

import "time"

// Watcher tells which chains others may have changed in the kernel, so that
// only these need be read. What it does not name is as it was.
type Watcher interface {
	// Wake has a token while there may be something to Take.
	Wake() <-chan struct{}
	// Begin says that a restore of ours starts, and End that it has ended.
	// What was changed in between is ours, as far as it is no more than End
	// says.
	Begin()
	End(Committed)
	// Take returns what others may have changed since the last Take, which is
	// the caller's business from then on. If all is to be read, Take says so
	// until Listed.
	Take() Suspects
	// Listed says that everything has been read, which took d, and that Take
	// was called just before the reading began.
	Listed(d time.Duration)
}

// Suspects are chains that others may have changed.
type Suspects struct {
	// All is set where it is not known which: everything must be read.
	All bool
	// Chains are chains of ours, built-in chains, and chains of others in which
	// a rule that leads to a chain of ours has come or gone. They need not
	// exist any more.
	Chains []ChainKey
}

// Committed is what a restore has done.
type Committed struct {
	// OK is set where all of the restore was committed. Where it is not, it is
	// not known how much was.
	OK bool
	// Sections is the number of tables' sections that changed something. What
	// only declares chains that are there and empty changes nothing.
	Sections int
	// PID is the command's process, 0 if not known. It helps to tell its commits
	// from those of others at the same time.
	PID int
	// Growth is by how much each table has grown, or shrunk. It may be nil;
	// then it is not seen if somebody else changed a table of the legacy
	// variant during the restore.
	Growth map[Table]Growth
}

// Growth is how many chains and rules there are more than before.
type Growth struct{ Chains, Rules int }
