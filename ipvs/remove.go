// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"net/netip"

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
}

// Removed is what has gone.
type Removed struct {
	Objects int
	// UDP is where clients could send UDP to by virtual servers.
	UDP []netip.AddrPort
}

// Remove removes what IPVS mode, kube-proxy's too, has left in one family, rules apart,
// which must have gone before: the virtual servers that are ours, the addresses on
// the device, and the sets.
func Remove(f model.Family, r Remains) (Removed, error) {
	cfg := Config{Family: f, ExcludeCIDRs: r.ExcludeCIDRs}
	addrs, _, err := r.Device.List()
	if err != nil {
		return Removed{}, err
	}
	sets := newSetSync(cfg.ipv6(), r.Sets)
	removed, errs := Removed{}, []error(nil)
	count := func(err error) {
		if errs = append(errs, err); err == nil {
			removed.Objects++
		}
	}
	there := sets.list()
	onDevice := map[netip.Addr]bool{}
	for _, a := range addrs {
		if onDevice[a] = true; cfg.excluded(a) {
			continue
		}
		count(r.Device.Remove(a))
	}
	if r.Servers != nil {
		s := newServerSync(cfg, r.Servers, nil)
		ours := func(p place) bool { return onDevice[p.Addr] || sets.found(p) }
		errs = append(errs, s.list(&proxier.Report{}, ours))
		removed.UDP = s.adoptedUDP
		for key := range s.all {
			if err := r.Servers.Delete(key); !errors.Is(err, servers.ErrNoServer) {
				count(err)
			}
		}
	}
	for id := range there {
		if id != loopBack || !r.KeepLoops {
			count(sets.sets[id].kernel.Destroy())
		}
	}
	return removed, errors.Join(errs...)
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
