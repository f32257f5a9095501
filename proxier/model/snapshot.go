// SPDX-License-Identifier: Apache-2.0

package model

import (
	"hash/maphash"
	"iter"
	"maps"
)

// Snapshot is the resolved state of all Services for one family. It is
// immutable: With returns a new one, which shares with the old one what did not
// change, so that a change costs the same however many Services there are. The
// zero value is empty.
type Snapshot struct {
	shards [snapshotShards]map[ServicePortName]*ServicePort
	seed   maphash.Seed
	len    int
}

// snapshotShards is how many parts a snapshot has; With copies those that it
// changes. At 10,000 Services a part holds 20.
const snapshotShards = 512

// NewSnapshot returns an empty snapshot.
func NewSnapshot() *Snapshot { return &Snapshot{seed: maphash.MakeSeed()} }

func (s *Snapshot) shard(n ServicePortName) uint64 {
	return maphash.Comparable(s.seed, n) % snapshotShards
}

// Get returns the state of one port, nil where there is none.
func (s *Snapshot) Get(n ServicePortName) *ServicePort { return s.shards[s.shard(n)][n] }

// Len returns the number of ports.
func (s *Snapshot) Len() int { return s.len }

// All returns all ports, in no order.
func (s *Snapshot) All() iter.Seq[*ServicePort] {
	return func(yield func(*ServicePort) bool) {
		for _, shard := range s.shards {
			for _, p := range shard {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// With returns a snapshot in which the ports of changes are as it says; nil
// means gone.
func (s *Snapshot) With(changes map[ServicePortName]*ServicePort) *Snapshot {
	next := *s
	copied := map[uint64]bool{}
	for name, port := range changes {
		i := next.shard(name)
		if !copied[i] {
			copied[i] = true
			if next.shards[i] = maps.Clone(next.shards[i]); next.shards[i] == nil {
				next.shards[i] = map[ServicePortName]*ServicePort{}
			}
		}
		before := len(next.shards[i])
		if port == nil {
			delete(next.shards[i], name)
		} else {
			next.shards[i][name] = port
		}
		next.len += len(next.shards[i]) - before
	}
	return &next
}
