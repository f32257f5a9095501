// SPDX-License-Identifier: Apache-2.0

package ipset

import "errors"

// MinMaxElem is how many elements a set is made for, if it need not be more. It is
// the number of kube-proxy's sets, which can so be taken over, and handed back. The
// kernel's table starts small and grows as elements come; this is but its bound.
const MinMaxElem = 65536

// Set is a set of one family whose elements its owner adds and removes, in the
// network namespace of the thread that calls its methods.
type Set struct {
	name   string
	typ    Type
	family uint8
}

// NewSet returns the set of a name, which may not be there.
func NewSet(name string, typ Type, ipv6 bool) *Set {
	return &Set{name: name, typ: typ, family: New(ipv6).family}
}

// Name returns the name of the set.
func (s *Set) Name() string { return s.name }

// List returns what is in the set; found is false where there is no set. It fails
// with ErrAnotherKind where a set of another type or family has the name.
func (s *Set) List() (in []Element, found bool, err error) { return nil, false, errors.ErrUnsupported }

// Create makes the set, with room for at least as many elements as size says. One
// that is there and of the same kind stays as it is, whatever its size.
func (s *Set) Create(size int) error { return errors.ErrUnsupported }

// Add adds elements, many in one message; some may be there already. After an
// error some may be. Where the set has no room for them all, one with more takes its
// name, and its place in the rules that name it, in one step.
func (s *Set) Add(elements ...Element) error { return errors.ErrUnsupported }

// Remove removes elements, many in one message; some may not be there. After an
// error some may be.
func (s *Set) Remove(elements ...Element) error { return errors.ErrUnsupported }

// Destroy removes the set, if it is there. It fails as Sets.Destroy does.
func (s *Set) Destroy() error { return errors.ErrUnsupported }
