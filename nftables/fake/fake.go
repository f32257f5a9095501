// SPDX-License-Identifier: Apache-2.0

// Package fake is a table of nf_tables in memory, for tests: it refuses what the kernel
// refuses, and does all of a transaction or nothing.
package fake

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// Kernel is a kernel with one table, or without. The zero value has none.
type Kernel struct {
	Family table.Family
	Name   string
	// Fault, unless nil, is asked before each call, which fails with what it returns.
	// After says that the call is to take effect all the same.
	Fault func(call string) (err error, after bool)
	// Refuse, unless nil, tells whether an element is one that the kernel does not take.
	Refuse func(set string, e table.Element) bool
	// Applied counts the transactions that have taken effect, and Last is the last one.
	Applied int
	Last    []table.Step
	// Reads counts what was read.
	Reads int
	// Count, unless nil, tells what an element of a set that counts has counted.
	Count func(set string, e table.Element) (packets, bytes uint64)

	t *content
}

// content is what a table consists of.
type content struct {
	comment  string
	sets     map[string]*table.Set
	elements map[string]map[string]table.Element
	chains   map[string]*table.Chain
	order    []string // of sets and chains, as they were made
}

func (k *Kernel) fault(call string) (error, bool) {
	if k.Fault == nil {
		return nil, false
	}
	return k.Fault(call)
}

// Read is as a mode's Kernel has it.
func (k *Kernel) Read() (*table.State, error) {
	if err, _ := k.fault("read"); err != nil {
		return nil, err
	}
	k.Reads++
	if k.t == nil {
		return nil, nil
	}
	out := &table.State{Sets: map[string]string{}, Chains: map[string]table.ChainState{}}
	for name, s := range k.t.sets {
		out.Sets[name] = s.Properties()
	}
	for name, c := range k.t.chains {
		st := table.ChainState{Properties: c.Properties()}
		for _, r := range c.Rules {
			st.Rules = append(st.Rules, r.ID())
		}
		out.Chains[name] = st
	}
	return out, nil
}

// Elements is as a mode's Kernel has it.
func (k *Kernel) Elements(s *table.Set, yield func(table.Element)) error {
	if err, _ := k.fault("list"); err != nil {
		return err
	}
	k.Reads++
	if k.t == nil || k.t.sets[s.Name] == nil {
		return unix.ENOENT
	}
	for _, key := range slices.Sorted(maps.Keys(k.t.elements[s.Name])) {
		yield(k.t.elements[s.Name][key])
	}
	return nil
}

// Counts is as a mode's Counters have it.
func (k *Kernel) Counts(s *table.Set, yield func(e table.Element, packets, bytes uint64)) error {
	return k.Elements(s, func(e table.Element) {
		if k.Count == nil {
			yield(e, 0, 0)
			return
		}
		packets, bytes := k.Count(s.Name, e)
		yield(e, packets, bytes)
	})
}

// Close is as a mode's Counters have it.
func (k *Kernel) Close() error { return nil }

// Get is as a mode's Kernel has it.
func (k *Kernel) Get(s *table.Set, keys []string, yield func(table.Element)) error {
	if err, _ := k.fault("get"); err != nil {
		return err
	}
	k.Reads++
	if k.t == nil || k.t.sets[s.Name] == nil {
		return unix.ENOENT
	}
	for _, key := range keys {
		e, ok := k.t.elements[s.Name][key]
		if !ok {
			return nil
		}
		yield(e)
	}
	return nil
}

// Apply is as a mode's Kernel has it.
func (k *Kernel) Apply(steps []table.Step) error {
	err, after := k.fault("apply")
	if err != nil && !after {
		return err
	}
	next := k.t.clone()
	for i, s := range steps {
		if errno := k.step(&next, s); errno != 0 {
			return fmt.Errorf("step %d: %T: %w", i, s, errno)
		}
	}
	if next != nil {
		if errno := next.check(); errno != 0 {
			return fmt.Errorf("commit: %w", errno)
		}
	}
	k.t = next
	k.Applied++
	k.Last = steps
	return err
}

// Flush is what others do by `nft flush ruleset`.
func (k *Kernel) Flush() { k.t = nil }

// Disturb does steps as others would.
func (k *Kernel) Disturb(steps ...table.Step) error {
	fault := k.Fault
	k.Fault = nil
	defer func() { k.Fault = fault }()
	return k.Apply(steps)
}

// clone is shallow, but for what steps change.
func (c *content) clone() *content {
	if c == nil {
		return nil
	}
	out := &content{comment: c.comment, sets: maps.Clone(c.sets), chains: maps.Clone(c.chains), order: slices.Clone(c.order),
		elements: map[string]map[string]table.Element{}}
	for name, es := range c.elements {
		out.elements[name] = maps.Clone(es)
	}
	return out
}

func (k *Kernel) step(at **content, s table.Step) unix.Errno {
	c := *at
	if _, ok := s.(table.AddTable); !ok && c == nil {
		return unix.ENOENT
	}
	switch s := s.(type) {
	case table.AddTable:
		if c == nil {
			*at = &content{comment: s.Comment, sets: map[string]*table.Set{}, chains: map[string]*table.Chain{},
				elements: map[string]map[string]table.Element{}}
		}
	case table.DeleteTable:
		*at = nil
	case table.AddSet:
		if c.sets[s.Set.Name] != nil {
			return unix.EEXIST
		}
		c.sets[s.Set.Name], c.elements[s.Set.Name] = s.Set, map[string]table.Element{}
		c.order = append(c.order, s.Set.Name)
	case table.DeleteSet:
		if c.sets[s.Name] == nil {
			return unix.ENOENT
		}
		for _, ch := range c.chains {
			for _, r := range ch.Rules {
				if names(r, s.Name) {
					return unix.EBUSY
				}
			}
		}
		delete(c.sets, s.Name)
		delete(c.elements, s.Name)
		c.order = slices.DeleteFunc(c.order, func(n string) bool { return n == s.Name })
	case table.FlushSet:
		if c.sets[s.Name] == nil {
			return unix.ENOENT
		}
		c.elements[s.Name] = map[string]table.Element{}
	case table.AddChain:
		if old := c.chains[s.Chain.Name]; old != nil {
			if old.Properties() != s.Chain.Properties() {
				return unix.EEXIST
			}
			return 0
		}
		made := *s.Chain
		made.Rules = nil
		c.chains[s.Chain.Name] = &made
		c.order = append(c.order, s.Chain.Name)
	case table.SetRules:
		old := c.chains[s.Chain]
		if old == nil {
			return unix.ENOENT
		}
		changed := *old
		changed.Rules = s.Rules
		for _, r := range s.Rules {
			for _, e := range r.Exprs {
				if v, ok := e.(table.Verdict); ok && v.Chain != "" && c.chains[v.Chain] == nil {
					return unix.ENOENT
				}
				if set := setOf(e); set != "" && c.sets[set] == nil {
					return unix.ENOENT
				}
			}
		}
		c.chains[s.Chain] = &changed
	case table.DeleteChain:
		return c.deleteChain(s.Name)
	case table.AddElements:
		return k.add(c, s)
	case table.DeleteElements:
		for _, e := range s.Elements {
			if _, ok := c.elements[s.Set.Name][e.Key+e.End]; !ok {
				return unix.ENOENT
			}
			delete(c.elements[s.Set.Name], e.Key+e.End)
		}
	}
	return 0
}

func (c *content) deleteChain(name string) unix.Errno {
	if c.chains[name] == nil {
		return unix.ENOENT
	}
	for _, ch := range c.chains {
		for _, r := range ch.Rules {
			for _, e := range r.Exprs {
				if v, ok := e.(table.Verdict); ok && v.Chain == name && ch.Name != name {
					return unix.EBUSY
				}
			}
		}
	}
	delete(c.chains, name)
	c.order = slices.DeleteFunc(c.order, func(n string) bool { return n == name })
	return 0
}

// setOf returns the set that an expression names.
func setOf(e table.Expr) string {
	switch e := e.(type) {
	case table.Lookup:
		return e.Set
	case table.Update:
		return e.Set
	}
	return ""
}

func names(r table.Rule, set string) bool {
	return slices.ContainsFunc(r.Exprs, func(e table.Expr) bool { return setOf(e) == set })
}

func (k *Kernel) add(c *content, s table.AddElements) unix.Errno {
	set := c.sets[s.Set.Name]
	if set == nil {
		return unix.ENOENT
	}
	for _, e := range s.Elements {
		switch {
		case len(e.Key) != set.KeyLen() || e.End != "" && len(e.End) != len(e.Key) || (e.End != "") != set.Interval:
			return unix.EINVAL
		case len(set.Data) > 0 && len(e.Data) != set.DataLen(), k.Refuse != nil && k.Refuse(set.Name, e):
			return unix.EINVAL
		}
		old, ok := c.elements[set.Name][e.Key+e.End]
		if ok && old.Data != e.Data {
			return unix.EEXIST
		}
		if ok {
			continue
		}
		for _, o := range c.elements[set.Name] {
			if set.Interval && overlap(set, o, e) {
				return unix.EEXIST
			}
			if !set.Interval {
				break
			}
		}
		c.elements[set.Name][e.Key+e.End] = e
	}
	return 0
}

// overlap tells whether two ranges have something in common.
func overlap(s *table.Set, a, b table.Element) bool {
	at := 0
	for i, t := range s.Key {
		n := t.Len()
		if a.Key[at:at+n] > b.End[at:at+n] || b.Key[at:at+n] > a.End[at:at+n] {
			return false
		}
		if at += n; i < len(s.Key)-1 {
			at = table.Padded(at)
		}
	}
	return true
}

// check is what the kernel finds out when a transaction commits.
func (c *content) check() unix.Errno {
	for _, ch := range c.chains {
		for _, r := range ch.Rules {
			for _, e := range r.Exprs {
				if v, ok := e.(table.Verdict); ok && v.Chain != "" && c.chains[v.Chain] == nil {
					return unix.ENOENT
				}
			}
		}
	}
	return 0
}

// Table returns what there is, nil without a table.
func (k *Kernel) Table() *table.Table {
	if k.t == nil {
		return nil
	}
	out := &table.Table{Family: k.Family, Name: k.Name, Comment: k.t.comment, Elements: map[string][]table.Element{}}
	for _, name := range slices.Sorted(maps.Keys(k.t.sets)) {
		out.Sets = append(out.Sets, k.t.sets[name])
		for _, key := range slices.Sorted(maps.Keys(k.t.elements[name])) {
			out.Elements[name] = append(out.Elements[name], k.t.elements[name][key])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.t.chains)) {
		out.Chains = append(out.Chains, k.t.chains[name])
	}
	return out
}

// Save returns what there is as `nft list table` prints it.
func (k *Kernel) Save() string {
	if t := k.Table(); t != nil {
		return strings.TrimSpace(t.String()) + "\n"
	}
	return ""
}
