// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"sync"
	"time"

	"fairlead/iptables/ruleset"
)

// Legacy watches the rules of the legacy variant by what the kernel tells of a
// table without listing it: how many entries it has, their size, and where its
// chains begin. It cannot tell which chains have changed, nor see a rule that
// took the place of another one of the same size.
//
// A change is a reason to read everything, but not at once. Where no table has
// fewer entries than it had after our last commit, others have added rules,
// which seldom concerns us, and some programs do so every second: reading then
// takes a hundredth of the time. Where there are fewer, rules of ours may be
// gone, and reading may take a tenth of it.
type Legacy struct {
	cfg    Config
	source counters

	mu    sync.Mutex
	found findings
	// known is what the tables were like when last asked about.
	known map[ruleset.Table]info
	// floor is the number of entries after our last commit or the last listing.
	floor  map[ruleset.Table]int
	window bool // between Begin and End
	closed bool
}

var _ ruleset.Watcher = (*Legacy)(nil)

// counters is where the kernel tells what tables are like.
type counters interface {
	// Infos returns all tables that there are.
	Infos() (map[ruleset.Table]info, error)
	Close() error
}

const (
	// interval is the time between two looks.
	interval = time.Second
	// restAudit is for changes that cannot be seen: a thousandth of a core. But
	// each is found within auditMost, and a table that is read in no time is
	// left unread for auditLeast.
	restAudit  = 1000
	auditLeast = 10 * time.Minute
	auditMost  = time.Hour
	// chainEntries is how many entries a chain of ours has that are not rules:
	// one that has its name, and one that returns.
	chainEntries = 2
)

// NewLegacy watches the tables of the calling thread's network namespace. It
// needs CAP_NET_ADMIN. Run frees what it has opened.
func NewLegacy(cfg Config) (*Legacy, error) {
	x, err := openXTables(cfg)
	if err != nil {
		return nil, err
	}
	return newLegacy(cfg, x), nil
}

func newLegacy(cfg Config, source counters) *Legacy {
	return &Legacy{cfg: cfg, source: source, found: newFindings(), floor: map[ruleset.Table]int{}}
}

// Run looks every second until ctx is done, and then returns nil. After it has
// returned, Take says that everything must be read.
func (w *Legacy) Run(ctx context.Context) error {
	defer w.close()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		w.mu.Lock()
		if !w.window {
			w.look(nil)
		}
		w.mu.Unlock()
	}
}

func (w *Legacy) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.source.Close()
	w.closed = true
	w.found.stop()
	w.found.token()
}

// Wake implements ruleset.Watcher.
func (w *Legacy) Wake() <-chan struct{} { return w.found.wake }

// Take implements ruleset.Watcher.
func (w *Legacy) Take() ruleset.Suspects {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.look(nil)
	s := w.found.take()
	if w.closed {
		s = ruleset.Suspects{All: true}
	}
	return s
}

// Listed implements ruleset.Watcher.
func (w *Legacy) Listed(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setFloor()
	w.found.read(d)
	w.found.readBy(time.Now().Add(min(max(restAudit*d, auditLeast), auditMost)))
}

// Begin implements ruleset.Watcher.
func (w *Legacy) Begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.look(nil)
	w.window = true
}

// End implements ruleset.Watcher.
func (w *Legacy) End(c ruleset.Committed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.look(&c)
	w.setFloor()
	w.window = false
	if !c.OK {
		w.found.reread(restSoon)
	}
}

func (w *Legacy) setFloor() {
	clear(w.floor)
	for t, i := range w.known {
		w.floor[t] = int(i.Entries)
	}
}

// look compares the tables with what they were like. What ours has done is
// expected, if it is not nil.
func (w *Legacy) look(ours *ruleset.Committed) {
	if w.closed {
		return
	}
	now, err := w.source.Infos()
	if err != nil {
		w.found.reread(restLate)
		return
	}
	for _, t := range w.cfg.Tables {
		was, is := w.known[t], now[t]
		least := w.floor[t]
		if ours != nil {
			least = expected(was, is, ours, t)
		}
		switch n := int(is.Entries); {
		case ours == nil && was == is || ours != nil && n == least:
		case n < least:
			w.found.reread(restSoon)
		default:
			w.found.reread(restLate)
		}
	}
	w.known = now
}

// expected returns how many entries a table has after a restore of ours, if
// nobody else has changed it. Where that is not known it is what it has.
func expected(was, is info, ours *ruleset.Committed, t ruleset.Table) int {
	if ours.Growth == nil || was.Entries == 0 {
		return int(is.Entries)
	}
	g := ours.Growth[t]
	return int(was.Entries) + g.Rules + chainEntries*g.Chains
}
