// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"fairlead/nat/ipset"
)

// Kernel has the sets of a network namespace that rules only match: those of both
// families and all types. The zero value has none. It is safe for concurrent use.
// Its fields are set before it is used.
type Kernel struct {
	// Rules, where set, returns the rules that may name sets, as iptables-save
	// prints them.
	Rules func() string
	// Fault, where set, is asked before each operation, which is as in Ops without
	// the elements, "add KUBE-CLUSTER-IP" for example, and makes it fail.
	Fault func(op string) error

	mu   sync.Mutex
	sets map[string]*content
	ops  []string
}

// content is a set that is there.
type content struct {
	typ  ipset.Type
	ipv6 bool
	in   map[ipset.Element]bool
}

// Set does what ipset.Set does.
type Set struct {
	// Kernel is where the set is.
	Kernel *Kernel

	name string
	typ  ipset.Type
	ipv6 bool
}

// Set returns the set of a name, which may not be there.
func (k *Kernel) Set(name string, typ ipset.Type, ipv6 bool) *Set {
	return &Set{Kernel: k, name: name, typ: typ, ipv6: ipv6}
}

// NewSet returns a set in a kernel of its own, which is not there.
func NewSet(name string, typ ipset.Type, ipv6 bool) *Set { return (&Kernel{}).Set(name, typ, ipv6) }

// do notes an operation, and does it unless it is to fail. f runs with mu held, and
// is given the set, nil where there is none.
func (s *Set) do(op string, elements []ipset.Element, f func(*content) error) error {
	k := s.Kernel
	op += " " + s.name
	k.mu.Lock()
	if elements == nil {
		k.ops = append(k.ops, op)
	}
	for _, e := range elements {
		k.ops = append(k.ops, op+" "+e.String())
	}
	k.mu.Unlock()
	var err error
	if k.Fault != nil {
		err = k.Fault(op)
	}
	if strings.HasPrefix(op, "destroy ") && err == nil && k.Rules != nil && strings.Contains(k.Rules(), "-set "+s.name+" ") {
		err = ErrBusy
	}
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		err = f(k.sets[s.name])
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// Name returns the name of the set.
func (s *Set) Name() string { return s.name }

// List returns what is in the set; found is false where there is no set.
func (s *Set) List() (in []ipset.Element, found bool, err error) {
	err = s.do("list", nil, func(c *content) error {
		if c == nil {
			return nil
		}
		if err := s.is(c); err != nil {
			return err
		}
		in, found = slices.Collect(maps.Keys(c.in)), true
		return nil
	})
	return in, found, err
}

// is tells why a set that is there is not this one.
func (s *Set) is(c *content) error {
	if c.typ != s.typ || c.ipv6 != s.ipv6 && s.typ != ipset.BitmapPort {
		return ipset.ErrAnotherKind
	}
	return nil
}

// Create makes the set, unless it is there.
func (s *Set) Create(size int) error {
	return s.do("create", nil, func(c *content) error {
		if c != nil {
			return s.is(c)
		}
		s.Kernel.make(s.name, s.typ, s.ipv6)
		return nil
	})
}

// Add adds elements; some may be there already.
func (s *Set) Add(elements ...ipset.Element) error {
	return s.change("add", elements, func(c *content, e ipset.Element) { c.in[e] = true })
}

// Remove removes elements; some may not be there.
func (s *Set) Remove(elements ...ipset.Element) error {
	return s.change("remove", elements, func(c *content, e ipset.Element) { delete(c.in, e) })
}

func (s *Set) change(op string, elements []ipset.Element, f func(*content, ipset.Element)) error {
	if len(elements) == 0 {
		return nil
	}
	return s.do(op, elements, func(c *content) error {
		if c == nil {
			return errMissing
		}
		for _, e := range elements {
			if err := s.check(e); err != nil {
				return err
			}
			f(c, e)
		}
		return nil
	})
}

// check tells what is wrong with an element: after it, no more are changed.
func (s *Set) check(e ipset.Element) error {
	var good bool
	want := ipset.Element{Addr: e.Addr, Protocol: e.Protocol, Port: e.Port}
	switch s.typ {
	case ipset.BitmapPort:
		want, good = ipset.Element{Port: e.Port}, true
	case ipset.HashIP:
		want, good = ipset.Element{Addr: e.Addr}, s.ours(e.Addr)
	case ipset.HashIPPort:
		good = s.ours(e.Addr)
	case ipset.HashIPPortIP:
		want.Net, good = ipset.Single(e.Net.Addr()), s.ours(e.Addr) && s.ours(e.Net.Addr())
	case ipset.HashIPPortNet:
		want.Net, good = e.Net.Masked(), s.ours(e.Addr) && s.ours(e.Net.Addr()) && e.Net.Bits() > 0
	case ipset.HashNet:
		want, good = ipset.Element{Net: e.Net.Masked()}, s.ours(e.Net.Addr()) && e.Net.Bits() > 0
	}
	if !good || e != want {
		return fmt.Errorf("%s is no element of %s", e, s.typ)
	}
	return nil
}

// ours tells whether an address is of the set's family.
func (s *Set) ours(addr netip.Addr) bool { return addr.IsValid() && addr.Is6() == s.ipv6 }

// Destroy removes the set, if it is there. It fails while a rule names it.
func (s *Set) Destroy() error {
	return s.do("destroy", nil, func(*content) error { delete(s.Kernel.sets, s.name); return nil })
}

// In returns what is in the set, nil where there is none. Neither Ops nor Fault know
// of it.
func (s *Set) In() map[ipset.Element]bool {
	s.Kernel.mu.Lock()
	defer s.Kernel.mu.Unlock()
	if c := s.Kernel.sets[s.name]; c != nil {
		return maps.Clone(c.in)
	}
	return nil
}

// Missing tells whether a rule names the set and it is not there.
func (s *Set) Missing(rule string) bool {
	name, _ := named(rule)
	return name == s.name && s.Kernel.Missing(rule)
}

// Put makes a set with elements, or adds them, as somebody else would.
func (k *Kernel) Put(name string, typ ipset.Type, ipv6 bool, elements ...ipset.Element) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sets[name] == nil {
		k.make(name, typ, ipv6)
	}
	for _, e := range elements {
		k.sets[name].in[e] = true
	}
}

// Take removes elements, as somebody else would; without any it removes the set.
func (k *Kernel) Take(name string, elements ...ipset.Element) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(elements) == 0 {
		delete(k.sets, name)
	}
	for _, e := range elements {
		delete(k.sets[name].in, e)
	}
}

// Has tells whether an element is in a set.
func (k *Kernel) Has(name string, e ipset.Element) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sets[name] != nil && k.sets[name].in[e]
}

// Save returns all sets as ipset save prints them, in order, without what is about
// their size.
func (k *Kernel) Save() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(k.sets)) {
		c := k.sets[name]
		b.WriteString(ipset.Save(name, c.typ, c.ipv6, slices.Collect(maps.Keys(c.in))))
	}
	return b.String()
}

// Ops returns the operations so far that were asked for, and forgets them:
// "list NAME", "create NAME", "add NAME ELEMENT" for each element, "remove NAME
// ELEMENT" likewise, "destroy NAME".
func (k *Kernel) Ops() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.ops
	k.ops = nil
	return out
}

// Missing tells whether a rule names a set that is not there, which makes
// iptables-restore fail.
func (k *Kernel) Missing(rule string) bool {
	name, _ := named(rule)
	k.mu.Lock()
	defer k.mu.Unlock()
	return name != "" && k.sets[name] == nil
}

// make makes a set. mu must be held.
func (k *Kernel) make(name string, typ ipset.Type, ipv6 bool) {
	if k.sets == nil {
		k.sets = map[string]*content{}
	}
	k.sets[name] = &content{typ: typ, ipv6: ipv6, in: map[ipset.Element]bool{}}
}
