// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"fairlead/ipvs/drain"
	"fairlead/ipvs/servers"
	"fairlead/proxier/model"
)

// retire has destinations go: those that drain when they have no connections.
func (s *serverSync) retire(sy *syncing, key servers.Key, st *serverState, gone []netip.AddrPort) error {
	gone = append(gone, st.odd...)
	if len(gone) == 0 {
		return nil
	}
	for _, a := range gone {
		if !drain.Worth(key.Protocol) {
			if err := s.drop(sy, key, st, a); err != nil {
				return err
			}
			continue
		}
		if err := s.kernel.UpdateDestination(key, servers.Destination{Addr: a}); err != nil {
			return err
		}
		sy.wrote(1)
		s.drains.Start(key, a, sy.now)
		st.lose(a)
		st.draining = append(st.draining, a)
	}
	if len(st.draining) == 0 {
		return nil
	}
	return s.look(sy, key, st)
}

// drop deletes a destination.
func (s *serverSync) drop(sy *syncing, key servers.Key, st *serverState, a netip.AddrPort) error {
	if err := s.kernel.DeleteDestination(key, a); err != nil {
		return err
	}
	sy.wrote(1)
	s.drains.Stop(key, a)
	st.lose(a)
	return nil
}

// lose forgets a destination.
func (st *serverState) lose(a netip.AddrPort) {
	st.endpoints = slices.DeleteFunc(slices.Clone(st.endpoints), func(e model.Endpoint) bool { return e.AddrPort == a })
	st.draining, st.odd = without(st.draining, a), without(st.odd, a)
}

// look deletes the destinations of a virtual server that have drained.
func (s *serverSync) look(sy *syncing, key servers.Key, st *serverState) error {
	l, err := s.kernel.Get(key)
	if err != nil {
		return err
	}
	for _, a := range s.drains.Done(l, sy.now) {
		if err := s.drop(sy, key, st, a); err != nil {
			return err
		}
	}
	return nil
}

// retireAll has a virtual server go that nobody wants, when its destinations have.
func (s *serverSync) retireAll(sy *syncing, key servers.Key, st *serverState) error {
	switch {
	case !st.exists:
		delete(s.all, key)
		delete(s.dirty, key)
		return nil
	case !sy.d.Prune:
		return nil
	}
	if key.Protocol == servers.UDP { // nothing to drain, so all can go at once
		s.leaving[key] = true
		return nil
	}
	if err := s.retire(sy, key, st, missing(st.endpoints, nil)); err != nil {
		return err
	}
	if st.destinations() == 0 {
		s.leaving[key] = true
		return nil
	}
	s.keep(key, st, true)
	delete(s.dirty, key) // poll comes back to it
	return nil
}

// keep says whether a virtual server that nobody wants keeps its address.
func (s *serverSync) keep(key servers.Key, st *serverState, on bool) {
	if st.holds == on {
		return
	}
	st.holds = on
	if on {
		s.hold(key, +1)
	} else {
		s.hold(key, -1)
	}
}

// poll looks at what drains, once in a while.
func (s *serverSync) poll(sy *syncing) {
	if sy.now.Sub(s.polled) < drain.Interval {
		return
	}
	s.polled = sy.now
	for _, key := range s.drains.Servers() {
		st := s.all[key]
		if st == nil {
			s.drains.Forget(key)
			continue
		}
		if s.dirty[key] {
			continue
		}
		if err := s.look(sy, key, st); err != nil {
			st.unsure = true
			s.dirty[key] = true
			continue
		}
		if st.want == nil && st.destinations() == 0 {
			s.dirty[key] = true
		}
	}
}

// remove deletes the virtual servers that are to go.
func (s *serverSync) remove(sy *syncing) error {
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(s.leaving), servers.Key.Compare) {
		st := s.all[key]
		if st == nil || st.want != nil {
			delete(s.leaving, key)
			continue
		}
		if err := s.kernel.Delete(key); err != nil && !errors.Is(err, servers.ErrNoServer) {
			st.unsure = true
			errs = append(errs, err)
			continue
		}
		sy.wrote(1)
		s.keep(key, st, false)
		s.drains.Forget(key)
		delete(s.leaving, key)
		delete(s.dirty, key)
		delete(s.all, key)
	}
	return errors.Join(errs...)
}

// without returns the addresses but one.
func without(list []netip.AddrPort, a netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(list, func(b netip.AddrPort) bool { return a == b })
}
