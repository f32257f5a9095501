// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"fairlead/nat/ipset"
	"fairlead/proxier"
)

// Device is the device that has the addresses of virtual servers, as device.Device
// is.
type Device interface {
	Ensure() error
	List() (addrs []netip.Addr, found bool, err error)
	Add(...netip.Addr) error
	Remove(netip.Addr) error
	Destroy() error
}

// deviceSync keeps the addresses on the device, and the set of them, in step with
// what is wanted.
type deviceSync struct {
	kernel Device
	sets   *setSync
	// wanted counts the places that want an address there, and draining the virtual
	// servers that drain and are wanted by nobody.
	wanted, draining map[netip.Addr]int
	// held are the addresses that the node has by itself.
	held map[netip.Addr]bool
	// on are the addresses that are to be on the device, and have those that are,
	// which are known once listed is set.
	on, have map[netip.Addr]bool
	listed   bool
	// keeps tells which addresses to leave where they are, unless they have been
	// wanted.
	keeps func(netip.Addr) bool
	// dirty are the addresses of which the two may differ.
	dirty map[netip.Addr]bool
}

func newDeviceSync(kernel Device, sets *setSync, keeps func(netip.Addr) bool) *deviceSync {
	return &deviceSync{
		kernel: kernel, sets: sets, keeps: keeps, wanted: map[netip.Addr]int{}, draining: map[netip.Addr]int{},
		held: map[netip.Addr]bool{}, on: map[netip.Addr]bool{}, have: map[netip.Addr]bool{}, dirty: map[netip.Addr]bool{},
	}
}

// want counts one more, or one less, who wants an address.
func (s *deviceSync) want(a netip.Addr, delta int) { s.count(s.wanted, a, delta) }

// hold counts one more, or one less, virtual server that drains.
func (s *deviceSync) hold(a netip.Addr, delta int) { s.count(s.draining, a, delta) }

func (s *deviceSync) count(in map[netip.Addr]int, a netip.Addr, delta int) {
	if in[a] += delta; in[a] == 0 {
		delete(in, a)
	}
	s.settle(a)
}

// setHeld takes over the addresses that the node has by itself.
func (s *deviceSync) setHeld(addrs []netip.Addr) {
	old := s.held
	s.held = map[netip.Addr]bool{}
	for _, a := range addrs {
		s.held[a] = true
	}
	for a := range old {
		s.settle(a)
	}
	for a := range s.held {
		s.settle(a)
	}
}

// settle decides whether an address is to be on the device.
func (s *deviceSync) settle(a netip.Addr) {
	on := s.wanted[a]+s.draining[a] > 0 && !s.held[a]
	if on == s.on[a] {
		return
	}
	s.dirty[a] = true
	if on {
		s.on[a] = true
		s.sets.want(vips, ipset.Element{Addr: a}, +1)
	} else {
		delete(s.on, a)
		s.sets.want(vips, ipset.Element{Addr: a}, -1)
	}
}

// found tells whether an address was on the device when it was read.
func (s *deviceSync) found(a netip.Addr) bool { return s.have[a] }

// read lists the addresses, where they are not known or to be looked at, and makes
// the device if it is missing.
func (s *deviceSync) read(verify bool, out *proxier.Report) error {
	if s.listed && !verify {
		return nil
	}
	known := s.listed
	s.listed = false
	if err := s.kernel.Ensure(); err != nil {
		return err
	}
	addrs, _, err := s.kernel.List()
	if err != nil {
		return err
	}
	before := s.have
	s.have = make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		s.have[a] = s.on[a] || before[a] || !s.keeps(a)
	}
	maps.DeleteFunc(s.have, func(_ netip.Addr, ours bool) bool { return !ours })
	s.listed = true
	repaired := false
	differ := func(a netip.Addr) {
		if s.have[a] != s.on[a] {
			s.dirty[a] = true
			repaired = repaired || known && before[a] != s.have[a]
		}
	}
	for a := range s.have {
		differ(a)
	}
	for a := range s.on {
		differ(a)
	}
	if repaired {
		out.Repaired = append(out.Repaired, "addresses of the device")
	}
	return nil
}

// add puts addresses on the device, all at once.
func (s *deviceSync) add(sy *syncing) error {
	todo := s.differing(true)
	if len(todo) == 0 {
		return nil
	}
	if err := s.kernel.Add(todo...); err != nil {
		s.listed = false
		return err
	}
	for _, a := range todo {
		s.have[a] = true
		delete(s.dirty, a)
	}
	sy.wrote(len(todo))
	return nil
}

// remove takes addresses off.
func (s *deviceSync) remove(sy *syncing) error {
	var errs []error
	for _, a := range s.differing(false) {
		if err := s.kernel.Remove(a); err != nil {
			s.listed = false
			errs = append(errs, err)
			continue
		}
		delete(s.have, a)
		delete(s.dirty, a)
		sy.wrote(1)
	}
	return errors.Join(errs...)
}

// differing returns the dirty addresses that are to be on the device or not and are
// not as they should be, in order, and forgets those that are.
func (s *deviceSync) differing(on bool) []netip.Addr {
	var out []netip.Addr
	for a := range s.dirty {
		switch {
		case s.have[a] == s.on[a]:
			delete(s.dirty, a)
		case s.on[a] == on:
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
