// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"fmt"
	"maps"
	"strings"
	"sync"

	"fairlead/nat/ipset"
)

// Loops does what ipset.Loops does. The zero value is a set that is not there. It
// is safe for concurrent use.
type Loops struct {
	// SetName is the name of the set.
	SetName string
	// Rules, where set, returns the rules that may name the set, as iptables-save
	// prints them.
	Rules func() string
	// Fault, where set, is asked before each operation, named "list", "create",
	// "add", "remove" or "destroy", and makes it fail.
	Fault func(op, name string) error

	mu     sync.Mutex
	exists bool
	in     map[ipset.Loop]bool
	ops    []string
}

// Name returns the name of the set.
func (l *Loops) Name() string { return l.SetName }

// do notes an operation, and does it unless it is to fail. With mu held, f tells
// what the kernel refuses.
func (l *Loops) do(op string, f func() error) error {
	l.mu.Lock()
	l.ops = append(l.ops, op)
	l.mu.Unlock()
	var err error
	if l.Fault != nil {
		err = l.Fault(op, l.SetName)
	}
	if op == "destroy" && err == nil && l.Rules != nil && strings.Contains(l.Rules(), "-set "+l.SetName+" ") {
		err = ErrBusy
	}
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		err = f()
	}
	if err != nil {
		return fmt.Errorf("%s set %s: %w", op, l.SetName, err)
	}
	return nil
}

// List returns what is in the set.
func (l *Loops) List() (in []ipset.Loop, found bool, err error) {
	err = l.do("list", func() error {
		for e := range l.in {
			in = append(in, e)
		}
		found = l.exists
		return nil
	})
	return in, found, err
}

// Create makes the set, unless it is there.
func (l *Loops) Create() error {
	return l.do("create", func() error {
		if !l.exists {
			l.exists, l.in = true, map[ipset.Loop]bool{}
		}
		return nil
	})
}

// Add adds elements.
func (l *Loops) Add(loops ...ipset.Loop) error {
	return l.do("add", func() error {
		if !l.exists {
			return errMissing
		}
		for _, e := range loops {
			l.in[e] = true
		}
		return nil
	})
}

// Remove removes elements.
func (l *Loops) Remove(loops ...ipset.Loop) error {
	return l.do("remove", func() error {
		if !l.exists {
			return errMissing
		}
		for _, e := range loops {
			delete(l.in, e)
		}
		return nil
	})
}

// Destroy removes the set. It fails while a rule names it.
func (l *Loops) Destroy() error {
	return l.do("destroy", func() error {
		l.exists, l.in = false, nil
		return nil
	})
}

// In returns what is in the set, nil where there is none.
func (l *Loops) In() map[ipset.Loop]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.in)
}

// Ops returns the operations so far that were asked for, and forgets them.
func (l *Loops) Ops() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.ops
	l.ops = nil
	return out
}

// Missing tells whether a rule names the set and it is not there.
func (l *Loops) Missing(rule string) bool {
	name, by := named(rule)
	l.mu.Lock()
	defer l.mu.Unlock()
	return by == "dst,dst,src" && (name != l.SetName || !l.exists)
}
