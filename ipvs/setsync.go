// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"slices"

	"fairlead/nat/ipset"
	"fairlead/proxier"
)

// Set is one of the kernel's sets, as ipset.Set is.
type Set interface {
	Name() string
	List() (in []ipset.Element, found bool, err error)
	Create(size int) error
	Add(...ipset.Element) error
	Remove(...ipset.Element) error
	Destroy() error
}

// setSync keeps the kernel's sets in step with what is wanted of them.
type setSync struct {
	sets [setCount]setState
}

// setState is one set.
type setState struct {
	kernel Set
	// wanted counts who wants an element, and have are those in the kernel, which
	// are known once listed is set.
	wanted map[ipset.Element]int
	have   map[ipset.Element]bool
	listed bool
	// dirty are the elements of which the two may differ.
	dirty map[ipset.Element]bool
}

func newSetSync(ipv6 bool, open func(string, ipset.Type) Set) *setSync {
	s := &setSync{}
	for id := range setCount {
		s.sets[id] = setState{
			kernel: open(setName(id, ipv6), setKinds()[id].typ),
			wanted: map[ipset.Element]int{}, have: map[ipset.Element]bool{}, dirty: map[ipset.Element]bool{},
		}
	}
	return s
}

// want counts one more, or one less, who wants an element.
func (s *setSync) want(id setID, e ipset.Element, delta int) {
	st := &s.sets[id]
	if st.wanted[e] += delta; st.wanted[e] == 0 {
		delete(st.wanted, e)
	}
	st.dirty[e] = true
}

// replace puts elements in the place of others.
func (s *setSync) replace(id setID, old, now []ipset.Element) {
	if slices.Equal(old, now) {
		return
	}
	for _, e := range old {
		s.want(id, e, -1)
	}
	for _, e := range now {
		s.want(id, e, +1)
	}
}

// found tells whether a place was in a set when the sets were read.
func (s *setSync) found(p place) bool {
	for id := range setCount {
		there := s.sets[id].have[p.element(id)]
		switch setKinds()[id].typ {
		case ipset.HashIPPort:
			if there {
				return true
			}
		case ipset.BitmapPort:
			if there && p.byNodePort(id) {
				return true
			}
		}
	}
	return false
}

// read lists the sets that are not known, or all, and makes those that are missing:
// rules name them all.
func (s *setSync) read(verify bool, out *proxier.Report) error {
	var errs []error
	for id := range setCount {
		if st := &s.sets[id]; !st.listed || verify {
			errs = append(errs, st.read(out))
		}
	}
	return errors.Join(errs...)
}

func (st *setState) read(out *proxier.Report) error {
	known := st.listed
	st.listed = false
	in, found, err := st.kernel.List()
	if err != nil {
		return err
	}
	if !found {
		if err := st.kernel.Create(len(st.wanted)); err != nil {
			return err
		}
		out.Written++
	}
	before := st.have
	st.have = make(map[ipset.Element]bool, len(in))
	for _, e := range in {
		st.have[e] = true
	}
	st.listed = true
	repaired := known && !found
	differ := func(e ipset.Element) {
		if st.have[e] != (st.wanted[e] > 0) {
			repaired = repaired || known && before[e] != st.have[e]
			st.dirty[e] = true
		}
	}
	for e := range st.have {
		differ(e)
	}
	for e := range st.wanted {
		differ(e)
	}
	if repaired {
		out.Repaired = append(out.Repaired, "set "+st.kernel.Name())
	}
	return nil
}

// add adds what is missing, addresses on the device apart. While nothing may be
// removed, nothing is refused that may be served.
func (s *setSync) add(sy *syncing) error {
	var errs []error
	for id := range setCount {
		if id == vips || id == draining || !sy.d.Prune && (id == noLocalInside || id == noLocal || id == noEndpoint) {
			continue
		}
		errs = append(errs, s.sets[id].add(sy))
	}
	return errors.Join(errs...)
}

// addVIPs adds the addresses on the device.
func (s *setSync) addVIPs(sy *syncing) error { return s.sets[vips].add(sy) }

// lift ends the refusal of what is served now.
func (s *setSync) lift(sy *syncing) error {
	return errors.Join(s.sets[noEndpoint].remove(sy), s.sets[noLocal].remove(sy), s.sets[noLocalInside].remove(sy))
}

// remove removes what is not wanted, in the opposite order.
func (s *setSync) remove(sy *syncing) error {
	var errs []error
	for id := setCount - 1; id >= 0; id-- {
		errs = append(errs, s.sets[id].remove(sy))
	}
	return errors.Join(errs...)
}

// differing returns the dirty elements that are wanted or not and that the kernel
// has not or has, in order, and forgets those that are as they should be.
func (st *setState) differing(wanted bool) []ipset.Element {
	var out []ipset.Element
	for e := range st.dirty {
		switch {
		case st.have[e] == (st.wanted[e] > 0):
			delete(st.dirty, e)
		case st.wanted[e] > 0 == wanted:
			out = append(out, e)
		}
	}
	slices.SortFunc(out, ipset.Element.Compare)
	return out
}

func (st *setState) add(sy *syncing) error {
	lacks := st.differing(true)
	if len(lacks) == 0 {
		return nil
	}
	if err := st.kernel.Add(lacks...); err != nil {
		st.listed = false
		return err
	}
	for _, e := range lacks {
		st.have[e] = true
		delete(st.dirty, e)
	}
	sy.wrote(len(lacks))
	return nil
}

func (st *setState) remove(sy *syncing) error {
	surplus := st.differing(false)
	if len(surplus) == 0 {
		return nil
	}
	if err := st.kernel.Remove(surplus...); err != nil {
		st.listed = false
		return err
	}
	for _, e := range surplus {
		delete(st.have, e)
		delete(st.dirty, e)
	}
	sy.wrote(len(surplus))
	return nil
}
