// SPDX-License-Identifier: Apache-2.0

// Package fake keeps sets of client addresses in memory, for tests, and refuses
// what the kernel would refuse.
package fake

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Sets does what ipset.Sets does. The zero value is a kernel without sets. It
// is safe for concurrent use.
type Sets struct {
	// Rules, where set, returns the rules that may name sets, as iptables-save
	// prints them.
	Rules func() string
	// Fault, where set, is asked before each operation, named "list", "create",
	// "flush" or "destroy", and makes it fail.
	Fault func(op, name string) error

	mu   sync.Mutex
	sets map[string]map[string]bool // the addresses in each
	ops  []string
}

// ErrBusy is why a set that a rule names is not destroyed.
var ErrBusy = errors.New("busy")

var errMissing = errors.New("no such set")

// begin notes an operation, and asks whether it is to fail.
func (s *Sets) begin(op, name string) error {
	s.mu.Lock()
	s.ops = append(s.ops, strings.TrimSpace(op+" "+name))
	s.mu.Unlock()
	if s.Fault != nil {
		return s.Fault(op, name)
	}
	return nil
}

// List returns the names of all sets.
func (s *Sets) List() ([]string, error) {
	if err := s.begin("list", ""); err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	return s.Names(), nil
}

// Create makes a set, unless it is there.
func (s *Sets) Create(name string) error {
	if err := s.begin("create", name); err != nil {
		return fmt.Errorf("create set %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sets == nil {
		s.sets = map[string]map[string]bool{}
	}
	if s.sets[name] == nil {
		s.sets[name] = map[string]bool{}
	}
	return nil
}

// Flush empties a set.
func (s *Sets) Flush(name string) error {
	err := s.begin("flush", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.sets[name] == nil {
		err = errMissing
	}
	if err != nil {
		return fmt.Errorf("flush set %s: %w", name, err)
	}
	clear(s.sets[name])
	return nil
}

// Destroy removes a set. It fails while a rule names the set.
func (s *Sets) Destroy(name string) error {
	err := s.begin("destroy", name)
	if err == nil && s.Rules != nil && strings.Contains(s.Rules(), "-set "+name+" ") {
		err = ErrBusy
	}
	if err != nil {
		return fmt.Errorf("destroy set %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sets, name)
	return nil
}

// Add puts an address into a set that is there, as a rule would.
func (s *Sets) Add(name, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets[name][addr] = true
}

// Has tells whether an address is in a set.
func (s *Sets) Has(name, addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sets[name][addr]
}

// Names returns the names of all sets, sorted.
func (s *Sets) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.sets))
}

// Ops returns the operations so far that were asked for, and forgets them.
func (s *Sets) Ops() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.ops
	s.ops = nil
	return out
}

// Missing tells whether a rule names a set of clients that is not there, which
// makes iptables-restore fail.
func (s *Sets) Missing(rule string) bool {
	name, by := named(rule)
	s.mu.Lock()
	defer s.mu.Unlock()
	return by == "src" && s.sets[name] == nil
}

// named returns the set that a rule names, if it does, and by what of a packet.
func named(rule string) (name, by string) {
	for _, option := range []string{"--match-set ", "--add-set "} {
		if _, rest, ok := strings.Cut(rule, option); ok {
			name, rest, _ = strings.Cut(rest, " ")
			by, _, _ = strings.Cut(rest, " ")
			return name, by
		}
	}
	return "", ""
}
