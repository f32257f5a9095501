// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net/netip"
	"time"

	"fairlead/ipvs/servers"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Remains is where IPVS mode may have left something.
type Remains struct {
	// Servers is nil where there are none.
	Servers Servers
	Device  Device
	Sets    func(name string, typ ipset.Type) Set
	// ExcludeCIDRs have virtual servers to keep.
	ExcludeCIDRs []netip.Prefix
	// KeepLoops keeps the set of endpoints that may reach themselves, which another
	// mode uses, too.
	KeepLoops bool
	// GracePeriod is how long virtual servers may keep their connections, 0 for not
	// at all.
	GracePeriod time.Duration
}

// Removed is what has gone, and what has not.
type Removed struct {
	Objects int
	// Left is how many virtual servers still have connections.
	Left int
	// UDP is where clients could send UDP to by virtual servers.
	UDP []netip.AddrPort
}

// Leftovers are what IPVS mode, kube-proxy's too, has left in one family, rules apart:
// the virtual servers that are ours, the addresses on the device, and the sets. The
// rules must have gone before, so that virtual servers get no new connections. Those
// that have some stay until these end.
type Leftovers struct {
	Remains
	cfg     Config
	sets    *setSync
	there   map[setID]bool
	servers *serverSync
	addrs   []netip.Addr
	read    bool
}

// NewLeftovers returns what has been left in a family. Nothing is looked at yet.
func NewLeftovers(f model.Family, r Remains) *Leftovers {
	l := &Leftovers{Remains: r, cfg: Config{Family: f, ExcludeCIDRs: r.ExcludeCIDRs, GracePeriod: r.GracePeriod}}
	l.sets = newSetSync(l.cfg.ipv6(), r.Sets)
	return l
}

// Remove removes all that has no connections, or has had its time. It is to be called
// again while something is left, or after an error.
func (l *Leftovers) Remove(now time.Time) (Removed, error) {
	var out Removed
	if err := l.list(now, &out); err != nil {
		return out, err
	}
	busy := map[netip.Addr]bool{}
	var errs []error
	if l.servers != nil {
		before := len(l.servers.all)
		sy := &syncing{d: proxier.Desired{Prune: true}, report: &proxier.Report{}, now: now}
		errs = append(errs, l.servers.add(sy), l.servers.remove(sy))
		for key := range l.servers.all {
			busy[key.Addr] = true
		}
		out.Left = len(l.servers.all)
		out.Objects += before - out.Left
	}
	var stay []netip.Addr
	for _, a := range l.addrs {
		if !busy[a] {
			if err := l.Device.Remove(a); err == nil {
				out.Objects++
				continue
			} else {
				errs = append(errs, err)
			}
		}
		stay = append(stay, a)
	}
	l.addrs = stay
	if err := errors.Join(errs...); err != nil || out.Left > 0 {
		return out, err // by the sets a later agent knows what is ours
	}
	return out, l.destroySets(&out)
}

// list reads what there is, the first time.
func (l *Leftovers) list(now time.Time, out *Removed) error {
	if l.read {
		return nil
	}
	addrs, _, err := l.Device.List()
	if err != nil {
		return err
	}
	l.there = l.sets.list()
	onDevice := map[netip.Addr]bool{}
	l.addrs = nil
	for _, a := range addrs {
		if onDevice[a] = true; !l.cfg.excluded(a) {
			l.addrs = append(l.addrs, a)
		}
	}
	if l.Servers != nil {
		s := newServerSync(l.cfg, l.Servers, func(servers.Key, int) {})
		s.now = now
		ours := func(p place) bool { return onDevice[p.Addr] || l.sets.found(p) }
		if err := s.list(&proxier.Report{}, ours); err != nil {
			return err
		}
		l.servers, out.UDP = s, s.adoptedUDP
	}
	l.read = true
	return nil
}

func (l *Leftovers) destroySets(out *Removed) error {
	var errs []error
	for id := range l.there {
		if id == loopBack && l.KeepLoops {
			continue
		}
		if err := l.sets.sets[id].kernel.Destroy(); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(l.there, id)
		out.Objects++
	}
	return errors.Join(errs...)
}

// RemoveOwnSets removes the sets of a family that kube-proxy's IPVS mode does not have. The
// rules that name them must have gone before.
func RemoveOwnSets(f model.Family, open func(name string, typ ipset.Type) Set) error {
	ipv6 := f == model.IPv6
	var errs []error
	for _, id := range oursAlone() {
		set := open(setName(id, ipv6), setKinds()[id].typ)
		if _, found, err := set.List(); err == nil && found {
			errs = append(errs, set.Destroy())
		}
	}
	return errors.Join(errs...)
}

// list reads the sets that there are, and leaves those out that cannot be read.
func (s *setSync) list() map[setID]bool {
	there := map[setID]bool{}
	for id := range setCount {
		in, found, err := s.sets[id].kernel.List()
		if err != nil || !found {
			continue
		}
		there[id] = true
		for _, e := range in {
			s.sets[id].have[e] = true
		}
	}
	return there
}
