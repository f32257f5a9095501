// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset"
)

// NFT watches the rules of the nft variant by the notifications of nf_tables.
//
// Each commit is a series of messages that name what it has changed, and ends
// with one that tells the generation, which every commit in the network
// namespace raises by one. The kernel queues them before it acknowledges the
// commit (nf_tables_commit in net/netfilter/nf_tables_api.c), so what a command
// has done can be received when it has ended. iptables-nft-restore makes one
// commit for each table's section that changes something, and none for others.
//
// Which commits are ours is a matter of counting: of the programs that
// committed to our tables between Begin and End, ours is the one that did so
// as often as End says. Are there several such, it is the one with the process
// ID that End names; is there none, everything in that time is suspect. Commits
// that touch other tables or families do not count.
//
// The kernel builds messages only for those who listen, which makes a restore
// take some 15 % longer: 3 µs for each rule. That is less than what not
// listening would cost, as then a single commit of somebody else meanwhile
// would make it necessary to read everything.
type NFT struct {
	cfg    Config
	family uint8
	source notifications

	mu    sync.Mutex
	found findings
	// gen is the last generation that we know of.
	gen uint32
	// open is what the commit has touched that is being received.
	open   touched
	window *window // nil outside of Begin and End
	closed bool
}

var _ ruleset.Watcher = (*NFT)(nil)

// notifications is where notifications come from.
type notifications interface {
	Wait() error
	Receive(func(datagram []byte)) error
	Generation() (uint32, error)
	Stop()
	Close() error
}

// touched is what a commit, or several, may have changed.
type touched struct {
	// ours is set where anything in our tables has changed.
	ours bool
	// all is set where it is not known which chains have.
	all    bool
	chains map[ruleset.ChainKey]struct{}
}

// window is what has happened since Begin.
type window struct {
	// first is the generation at Begin.
	first uint32
	// lost is set where messages have been lost.
	lost bool
	// by has what each sender has done. A sender is a netlink socket.
	by map[uint32]*commits
}

type commits struct {
	touched
	count int
}

// NewNFT listens to the nf_tables of the calling thread's network namespace. It
// needs CAP_NET_ADMIN. Run frees what it has opened. When it is called does not
// matter: until Listed, Take says that everything must be read.
func NewNFT(cfg Config) (*NFT, error) {
	s, err := openSocket(receiveBuffer)
	if err != nil {
		return nil, err
	}
	return newNFT(cfg, s)
}

func newNFT(cfg Config, source notifications) (*NFT, error) {
	gen, err := source.Generation()
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	w := &NFT{cfg: cfg, family: unix.NFPROTO_IPV4, source: source, found: newFindings(), gen: gen}
	if cfg.IPv6 {
		w.family = unix.NFPROTO_IPV6
	}
	return w, nil
}

// Run receives notifications until ctx is done, and then returns nil. After it
// has returned, Take says that everything must be read.
func (w *NFT) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, w.source.Stop)()
	defer w.close()
	for {
		err := w.source.Wait()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for notifications of nf_tables: %w", err)
		}
		w.mu.Lock()
		err = w.receive()
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (w *NFT) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.source.Close()
	w.closed = true
	w.found.stop()
	w.found.token()
}

// Wake implements ruleset.Watcher.
func (w *NFT) Wake() <-chan struct{} { return w.found.wake }

// Take implements ruleset.Watcher.
func (w *NFT) Take() ruleset.Suspects {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.receive() // Run returns the error
	s := w.found.take()
	if w.closed {
		s = ruleset.Suspects{All: true}
	}
	return s
}

// Listed implements ruleset.Watcher.
func (w *NFT) Listed(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.found.read(d)
}

// Begin implements ruleset.Watcher.
func (w *NFT) Begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.receive() // Run returns the error
	w.window = &window{first: w.gen, by: map[uint32]*commits{}}
}

// End implements ruleset.Watcher.
func (w *NFT) End(c ruleset.Committed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.receive() // Run returns the error
	win := w.window
	w.window = nil
	if win == nil {
		return
	}
	if win.lost {
		if !c.OK || w.gen-win.first != uint32(c.Sections) {
			w.found.reread(restSoon)
		}
		return
	}
	own := win.sender(c)
	for id, done := range win.by {
		if own == nil || id != *own {
			w.found.add(done.touched)
		}
	}
}

// sender returns who has made the commits that are ours, nil if that is not
// clear. A command's first netlink socket has the process ID as its address
// (netlink_autobind in net/netlink/af_netlink.c), unless that was taken.
func (win *window) sender(c ruleset.Committed) *uint32 {
	var found []uint32
	for id, done := range win.by {
		if c.OK && done.count == c.Sections {
			found = append(found, id)
		}
	}
	if i := slices.Index(found, uint32(c.PID)); i >= 0 {
		return &found[i]
	}
	if len(found) == 1 {
		return &found[0]
	}
	return nil
}

// receive takes in all notifications that are there. An error means that there
// will be no more.
func (w *NFT) receive() error {
	// What comes while we ask for the generation is received before the caller
	// goes on, unless there is no end to it.
	for try := 0; !w.closed && try < 3; try++ {
		err := w.source.Receive(w.datagram)
		if err == nil {
			return nil
		}
		w.lose()
		if !errors.Is(err, errLost) {
			return err
		}
		gen, err := w.source.Generation()
		if err != nil {
			w.found.reread(restSoon)
			return err
		}
		// What we have of a commit belongs to one up to this: the kernel raises
		// the generation before it sends messages.
		w.gen, w.open = gen, touched{}
	}
	return nil
}

// lose says that messages have been lost.
func (w *NFT) lose() {
	if w.window != nil {
		w.window.lost = true
		return
	}
	w.found.reread(restSoon)
}

func (w *NFT) datagram(b []byte) {
	for m := range messages(b) {
		switch {
		case m.err != nil:
			w.lose()
		case m.kind == unix.NFT_MSG_NEWGEN:
			w.commit(m)
		case m.family == w.family:
			w.change(m)
		}
	}
}

// commit ends a commit.
func (w *NFT) commit(m message) {
	gen, ok := m.generation()
	// A commit that we know of already ended while we asked for the generation.
	switch ahead := int32(gen - w.gen); {
	case !ok:
		w.lose()
	case ahead > 1: // some are missing, or the number has wrapped around
		w.lose()
		w.gen = gen
	case ahead > 0:
		w.gen = gen
	}
	done := w.open
	w.open = touched{}
	switch {
	case !done.ours:
	case w.window == nil:
		w.found.add(done)
	default:
		by := w.window.by[m.sender]
		if by == nil {
			by = &commits{}
			w.window.by[m.sender] = by
		}
		by.count++
		by.merge(done)
	}
}

// change notes what a message is about.
func (w *NFT) change(m message) {
	nameAt := uint16(unix.NFTA_CHAIN_NAME)
	switch m.kind {
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		nameAt = unix.NFTA_RULE_CHAIN
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
	default:
		return
	}
	// The table is the first attribute in all of them.
	table, ok := w.table(m.attrs.get(unix.NFTA_TABLE_NAME).text())
	if !m.attrs.valid() {
		w.lose()
	}
	if !ok {
		return
	}
	w.open.ours = true
	switch m.kind {
	case unix.NFT_MSG_NEWTABLE:
		return
	case unix.NFT_MSG_DELTABLE:
		w.open.all = true
		return
	}
	k := ruleset.ChainKey{Table: table, Name: string(m.attrs.get(nameAt).text())}
	if builtin(k.Name) || w.cfg.Owns(k) || w.leadsToUs(table, m) {
		w.open.add(k)
	}
	if m.kind == unix.NFT_MSG_NEWCHAIN && !builtin(k.Name) && !m.created() {
		w.open.all = true // renamed, and the old name is not told
	}
}

// table returns which of our tables has a name.
func (w *NFT) table(name []byte) (ruleset.Table, bool) {
	for _, t := range w.cfg.Tables {
		if string(t) == string(name) {
			return t, true
		}
	}
	return "", false
}

// leadsToUs tells whether a message is about a rule that leads to a chain of
// ours, or may.
func (w *NFT) leadsToUs(t ruleset.Table, m message) bool {
	if m.kind != unix.NFT_MSG_NEWRULE && m.kind != unix.NFT_MSG_DELRULE {
		return false
	}
	for name, ok := range m.targets() {
		if !ok || w.cfg.Owns(ruleset.ChainKey{Table: t, Name: string(name)}) {
			return true
		}
	}
	return false
}

// add adds a chain.
func (t *touched) add(k ruleset.ChainKey) {
	if t.chains == nil {
		t.chains = map[ruleset.ChainKey]struct{}{}
	}
	if t.chains[k] = struct{}{}; len(t.chains) > maxChains {
		t.all, t.chains = true, nil
	}
}

// merge adds what another commit has touched.
func (t *touched) merge(other touched) {
	t.ours, t.all = t.ours || other.ours, t.all || other.all
	for k := range other.chains {
		t.add(k)
	}
}
