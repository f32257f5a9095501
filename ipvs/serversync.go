// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"fairlead/ipvs/drain"
	"fairlead/ipvs/servers"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Servers are the kernel's virtual servers, as servers.Kernel has them.
type Servers interface {
	List() ([]servers.Listed, error)
	Get(servers.Key) (servers.Listed, error)
	Create(servers.Server) error
	Update(servers.Server) error
	Delete(servers.Key) error
	AddDestination(servers.Key, ...servers.Destination) error
	UpdateDestination(servers.Key, servers.Destination) error
	DeleteDestination(servers.Key, netip.AddrPort) error
}

// serverSync keeps the kernel's virtual servers in step with what is wanted. A
// destination that is no longer wanted drains first.
type serverSync struct {
	Config
	kernel Servers
	// hold is told of one more, or one less, virtual server that nobody wants and that
	// drains: packets to it are still to be for this node, and it is still ours.
	hold func(servers.Key, int)
	// all are the virtual servers that are wanted, or there and ours. What is there
	// is known once listed is set.
	all    map[servers.Key]*serverState
	listed bool
	// dirty are those that may differ from what is wanted, and leaving those to
	// delete.
	dirty, leaving map[servers.Key]bool
	drains         *drain.Drains
	polled         time.Time
	// now is when what is read is read: what is found draining has its time from then.
	now time.Time
	// foreign are the keys of virtual servers that are not ours and in the way.
	foreign map[servers.Key]bool
	// refused are the virtual servers that the kernel does not take, and why.
	refused map[servers.Key]error
	// audit are those to look at, of those that the last looks have left.
	audit []servers.Key
	// adoptedUDP is what the first reading found.
	adoptedUDP []netip.AddrPort
}

// serverState is one virtual server.
type serverState struct {
	// want is nil where there is to be none.
	want *virtual
	// unsure is set where what is there is not known.
	unsure bool
	// exists, altered and have tell what is there.
	exists, altered bool
	have            servers.Server
	// endpoints are the destinations that take connections, as they are to be,
	// draining those with weight 0, and odd all others.
	endpoints     []model.Endpoint
	draining, odd []netip.AddrPort
	// holds is set while it keeps its address on the device.
	holds bool
}

func (st *serverState) destinations() int { return len(st.endpoints) + len(st.draining) + len(st.odd) }

func newServerSync(cfg Config, kernel Servers, hold func(servers.Key, int)) *serverSync {
	return &serverSync{
		Config: cfg, kernel: kernel, hold: hold,
		all: map[servers.Key]*serverState{}, dirty: map[servers.Key]bool{}, leaving: map[servers.Key]bool{},
		foreign: map[servers.Key]bool{}, refused: map[servers.Key]error{}, drains: drain.New(cfg.GracePeriod),
	}
}

// want says what virtual server there is to be, nil for none.
func (s *serverSync) want(key servers.Key, v *virtual) {
	st := s.all[key]
	switch {
	case st == nil && v == nil:
		return
	case st == nil:
		st = &serverState{unsure: s.listed}
		s.all[key] = st
	case st.want.equal(v):
		st.want = v // of the new snapshot, so that the old one can go
		return
	}
	st.want = v
	s.dirty[key] = true
}

// read lists all virtual servers, where they are not known, and looks at some of
// them where they are to be looked at. ours tells which are ours.
func (s *serverSync) read(verify bool, out *proxier.Report, ours func(place) bool) error {
	if s.listed && verify && !s.sample(out) {
		return nil
	}
	if s.listed && !verify {
		return nil
	}
	return s.list(out, ours)
}

// list reads all virtual servers.
func (s *serverSync) list(out *proxier.Report, ours func(place) bool) error {
	known := s.listed
	listed, err := s.kernel.List()
	if err != nil {
		return err
	}
	found := map[servers.Key]bool{}
	s.foreign = map[servers.Key]bool{}
	for _, l := range listed {
		st := s.all[l.Key]
		mine := st != nil && known || ours(placeOf(l.Key)) && !s.excluded(l.Addr)
		if !mine {
			s.foreign[l.Key] = true
			continue
		}
		if !known && l.Protocol == servers.UDP {
			s.adoptedUDP = append(s.adoptedUDP, l.AddrPort())
		}
		found[l.Key] = true
		if st == nil {
			st = &serverState{}
			s.all[l.Key] = st
		}
		s.compare(st, l, known, out)
	}
	for key, st := range s.all {
		if !found[key] {
			if known && st.exists {
				out.Repaired = append(out.Repaired, "virtual server "+key.String())
			}
			*st = serverState{want: st.want, holds: st.holds}
			s.dirty[key] = true
		}
	}
	s.listed = true
	return nil
}

// compare takes over what is there, and notes it where it is not as known.
func (s *serverSync) compare(st *serverState, l servers.Listed, known bool, out *proxier.Report) {
	before := *st
	s.take(st, l)
	if known && !before.unsure && !before.same(st) {
		out.Repaired = append(out.Repaired, "virtual server "+l.Key.String())
	}
	s.dirty[l.Key] = true
}

// same tells whether what is there is the same.
func (st *serverState) same(o *serverState) bool {
	return st.exists == o.exists && st.altered == o.altered && st.have == o.have &&
		len(missing(st.endpoints, o.endpoints))+len(missing(o.endpoints, st.endpoints)) == 0 &&
		len(st.odd) == len(o.odd)
}

// sample looks at some of the virtual servers, others each time, and tells whether
// one is not as known.
func (s *serverSync) sample(out *proxier.Report) bool {
	const least, share = 64, 20
	if len(s.audit) == 0 {
		s.audit = slices.Collect(maps.Keys(s.all))
	}
	n := min(len(s.audit), max(least, len(s.all)/share))
	part := s.audit[:n]
	s.audit = s.audit[n:]
	for _, key := range part {
		st := s.all[key]
		if st == nil || st.unsure || s.foreign[key] {
			continue
		}
		l, err := s.kernel.Get(key)
		now := &serverState{}
		if err == nil {
			s.classify(now, l)
		}
		if !errors.Is(err, servers.ErrNoServer) && err != nil || !st.same(now) {
			return true
		}
	}
	return false
}

// take takes over what is there. Destinations with weight 0 drain.
func (s *serverSync) take(st *serverState, l servers.Listed) {
	s.classify(st, l)
	for _, a := range st.draining {
		s.drains.Start(l.Key, a, s.now)
	}
}

// classify sorts destinations by what is to be done with them.
func (s *serverSync) classify(st *serverState, l servers.Listed) {
	st.unsure, st.exists, st.altered, st.have = false, true, l.Altered, l.Server
	st.endpoints, st.draining, st.odd = nil, nil, nil
	for _, d := range l.Destinations {
		switch {
		case d.Weight == 0:
			st.draining = append(st.draining, d.Addr)
		case d.Weight == 1 && !d.Altered:
			st.endpoints = append(st.endpoints, model.Endpoint{AddrPort: d.Addr})
		default:
			st.odd = append(st.odd, d.Addr)
		}
	}
}

// add makes and changes virtual servers, and has destinations drain. What is to go
// is left to remove.
func (s *serverSync) add(sy *syncing) error {
	s.poll(sy)
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(s.dirty), servers.Key.Compare) {
		err := s.bring(sy, key)
		switch {
		case err == nil:
		case refusal(err):
			s.refused[key] = err
		default:
			errs = append(errs, err)
		}
		if st := s.all[key]; err != nil && st != nil {
			st.unsure = true
		}
	}
	return errors.Join(errs...)
}

// refusal tells whether the kernel would say the same again.
func refusal(err error) bool {
	return errors.Is(err, errForeign) || errors.Is(err, servers.ErrNoScheduler)
}

var errForeign = errors.New("there is a virtual server that is not Fairlead's")

// bring brings one virtual server to what is wanted.
func (s *serverSync) bring(sy *syncing, key servers.Key) error {
	st := s.all[key]
	if st == nil {
		delete(s.dirty, key)
		return nil
	}
	delete(s.refused, key)
	if err := s.know(key, st); err != nil {
		return err
	}
	s.keep(key, st, false)
	if st.want == nil {
		return s.retireAll(sy, key, st)
	}
	delete(s.leaving, key)
	if s.foreign[key] {
		return errForeign
	}
	if err := s.serve(sy, key, st); err != nil {
		return err
	}
	if err := s.fill(sy, key, st); err != nil {
		return err
	}
	surplus := missing(st.endpoints, st.want.endpoints)
	if len(surplus) > 0 || len(st.odd) > 0 {
		if !sy.d.Prune {
			return nil // it stays dirty
		}
		if err := s.retire(sy, key, st, surplus); err != nil {
			return err
		}
	}
	st.endpoints = st.want.endpoints // which are in memory once
	delete(s.dirty, key)
	return nil
}

// know reads what is there, where that is not known.
func (s *serverSync) know(key servers.Key, st *serverState) error {
	if !st.unsure {
		return nil
	}
	l, err := s.kernel.Get(key)
	switch {
	case errors.Is(err, servers.ErrNoServer):
		*st = serverState{want: st.want, holds: st.holds}
		s.drains.Forget(key)
		delete(s.foreign, key)
		return nil
	case err != nil:
		return err
	}
	s.take(st, l)
	return nil
}

// serve makes the virtual server, or gives it the scheduler that is wanted.
func (s *serverSync) serve(sy *syncing, key servers.Key, st *serverState) error {
	want := servers.Server{
		Key: key, Scheduler: st.want.scheduler.Name, Flags: flagsOf(st.want.scheduler), Persistence: st.want.persistence,
	}
	var err error
	switch {
	case !st.exists:
		err = s.kernel.Create(want)
	case st.have != want || st.altered:
		err = s.kernel.Update(want)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	st.exists, st.altered, st.have = true, false, want
	sy.wrote(1)
	return nil
}

// fill adds the destinations that are missing, all at once; those that drain come back.
func (s *serverSync) fill(sy *syncing, key servers.Key, st *serverState) error {
	lacks := missing(st.want.endpoints, st.endpoints)
	if len(lacks) == 0 {
		return nil
	}
	var fresh []servers.Destination
	var added []model.Endpoint
	for _, a := range lacks {
		added = append(added, model.Endpoint{AddrPort: a})
		d := servers.Destination{Addr: a, Weight: 1}
		if !slices.Contains(st.draining, a) && !slices.Contains(st.odd, a) {
			fresh = append(fresh, d)
			continue
		}
		if err := s.kernel.UpdateDestination(key, d); err != nil {
			return err
		}
		s.drains.Stop(key, a)
		st.draining, st.odd = without(st.draining, a), without(st.odd, a)
	}
	if len(fresh) > 0 {
		if err := s.kernel.AddDestination(key, fresh...); err != nil {
			return err
		}
	}
	sy.wrote(len(lacks))
	st.endpoints = append(slices.Clip(st.endpoints), added...)
	return nil
}

// report returns what the kernel refuses.
func (s *serverSync) report() []string {
	var out []string
	for _, key := range slices.SortedFunc(maps.Keys(s.refused), servers.Key.Compare) {
		out = append(out, fmt.Sprintf("virtual server %s: %v", key, s.refused[key]))
	}
	return out
}

// missing returns the addresses of those in a that are not in b.
func missing(a, b []model.Endpoint) []netip.AddrPort {
	if len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) {
		return nil
	}
	there := make(map[netip.AddrPort]bool, len(b))
	for _, e := range b {
		there[e.AddrPort] = true
	}
	var out []netip.AddrPort
	for _, e := range a {
		if !there[e.AddrPort] {
			out = append(out, e.AddrPort)
		}
	}
	return out
}
