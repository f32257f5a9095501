// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"sync"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// Counters are what elements of the table have counted.
type Counters interface {
	// Counts calls yield for each element of a set that counts. An error of unix.EINTR
	// says that it was disturbed.
	Counts(s *table.Set, yield func(e table.Element, packets, bytes uint64)) error
	// Close ends the use.
	Close() error
}

// Traffic tells what the ports of Services have carried: those on the roster one by one,
// and all others, under no name, together. It is safe for concurrent use, but for Follow,
// which is called after Syncs of the mode.
type Traffic struct {
	mode   *Mode
	family table.Family
	sets   []*table.Set
	open   func() (Counters, error)
	seed   maphash.Seed

	mu sync.Mutex
	// places are those of the ports that are counted by themselves.
	places map[place]model.ServicePortName
}

var (
	_ traffic.Source   = (*Traffic)(nil)
	_ proxier.Follower = (*Traffic)(nil)
)

// NewTraffic has a mode count the ports on the roster one by one, which has to be before its
// first Sync; its Config.Counting must be set. Each reading opens the table anew, as what
// writes it may have it for long.
func NewTraffic(m *Mode, roster *traffic.Roster, open func() (Counters, error)) *Traffic {
	m.roster = roster
	return &Traffic{mode: m, family: m.render.table(), sets: m.render.countingSets(), open: open, seed: maphash.MakeSeed()}
}

// Follow implements proxier.Follower.
func (t *Traffic) Follow(context.Context, proxier.Desired) error {
	if t.mode.recounted {
		places := t.mode.countedPlaces()
		t.mode.recounted = false
		t.mu.Lock()
		defer t.mu.Unlock()
		t.places = places
	}
	return nil
}

// countedPlaces returns which places are of which ports that are counted by themselves.
func (m *Mode) countedPlaces() map[place]model.ServicePortName {
	out := map[place]model.ServicePortName{}
	for name, st := range m.ports {
		if !st.counted {
			continue
		}
		for _, pl := range places(st.port) {
			if st.has(pl) {
				out[pl] = name
			}
		}
	}
	return out
}

// counted is what an element has counted.
type counted struct {
	table.Element
	packets, bytes uint64
}

// Read implements traffic.Source.
func (t *Traffic) Read(_ context.Context, yield func(traffic.Sample)) (err error) {
	k, err := t.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	all := map[string][]counted{}
	for _, s := range t.sets {
		all[s.Name], err = readAgain(func() (out []counted, err error) {
			err = k.Counts(s, func(e table.Element, packets, bytes uint64) { out = append(out, counted{e, packets, bytes}) })
			return out, err
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // there is none while nothing is in it
			return err
		}
	}
	t.mu.Lock()
	places := maps.Clone(t.places)
	t.mu.Unlock()
	for _, s := range t.sets {
		for _, c := range all[s.Name] {
			if sample, ok := t.sample(s.Name, c, places); ok {
				yield(sample)
			}
		}
	}
	return nil
}

// sample returns what an element says, each by itself: one that begins anew is not to make
// others do so. One whose comment has another port than it is known to be of has just been
// made, and is of a port that the next reading knows.
func (t *Traffic) sample(set string, c counted, places map[place]model.ServicePortName) (out traffic.Sample, ok bool) {
	if set != countOthers && set != countOthersNew {
		f := byAddress
		if set == countPacketsNP || set == countConnectionsNP {
			f = byNodePort
		}
		pl, _ := placeOf(c.Key, f, t.family)
		if out.Port, ok = places[pl]; !ok || c.Comment != table.Shorten(out.Port.String()) {
			return out, false
		}
	}
	out.ID = maphash.Comparable(t.seed, struct {
		set, key string
		port     model.ServicePortName
	}{set, c.Key, out.Port})
	switch set {
	case countConnections, countConnectionsNP, countOthersNew:
		out.Connections = c.packets
	default:
		if isReply(c.Key) {
			out.PacketsOut, out.BytesOut = c.packets, c.bytes
		} else {
			out.PacketsIn, out.BytesIn = c.packets, c.bytes
		}
	}
	return out, true
}
