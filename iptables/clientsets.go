// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"maps"
	"slices"

	"fairlead/proxier/model"
)

// clientSets keeps the kernel's sets in step with the chains of endpoints: a set
// is made before a rule names it, and destroyed when no rule does any more.
type clientSets struct {
	// kernel is nil where rules cannot use sets.
	kernel Sets
	// have are the sets of this mode that the kernel has. It is known once
	// listed is set; making a set that is there does no harm.
	have   map[string]bool
	listed bool
	// leaving are those of have that no port wants. The value is set once the
	// kernel has been asked to destroy the set.
	leaving map[string]bool
	// refused are the ports that do without some of their sets, and why.
	refused map[model.ServicePortName]error
	// unlisted is why the sets could not be listed.
	unlisted error
	// made counts the sets made.
	made int
}

func newClientSets(kernel Sets) clientSets {
	return clientSets{
		kernel: kernel, have: map[string]bool{}, leaving: map[string]bool{},
		refused: map[model.ServicePortName]error{},
	}
}

// list reads what sets the kernel has. All that are not wanted are leaving.
func (s *clientSets) list(ports map[model.ServicePortName]portState) {
	if s.kernel == nil {
		return
	}
	names, err := s.kernel.List()
	s.listed, s.unlisted = err == nil, err
	if err != nil {
		return
	}
	old := s.leaving
	s.have, s.leaving = map[string]bool{}, map[string]bool{}
	for _, n := range names {
		if isEndpointChain(n) {
			s.have[n], s.leaving[n] = true, old[n]
		}
	}
	for _, p := range ports {
		for n := range p.sets {
			delete(s.leaving, n)
		}
	}
}

// lacking returns the ports that want sets that are not there.
func (s *clientSets) lacking(ports map[model.ServicePortName]portState) []model.ServicePortName {
	var out []model.ServicePortName
	for name, p := range ports {
		gone := func(set string) bool { return !s.have[set] }
		if s.refused[name] != nil || slices.ContainsFunc(slices.Collect(maps.Keys(p.sets)), gone) {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, model.ServicePortName.Compare)
	return out
}

// ensure makes the sets of a port, and returns those that it has then. What the
// kernel does not make is refused; the port works without.
func (s *clientSets) ensure(p *model.ServicePort) map[string]bool {
	delete(s.refused, p.Name)
	if s.kernel == nil || p.AffinityTimeout <= 0 {
		return nil
	}
	out := make(map[string]bool, len(p.Endpoints))
	for _, eps := range [][]model.Endpoint{p.Endpoints, p.LocalEndpoints} {
		for _, ep := range eps {
			n := endpointChain(p.Name, ep.AddrPort)
			if out[n] {
				continue
			}
			if err := s.make(n); err != nil {
				s.refused[p.Name] = err
				continue
			}
			out[n] = true
		}
	}
	return out
}

// make makes a set, or takes one that is there. A set that was leaving because
// its endpoint had gone has clients in it that have gone elsewhere since.
func (s *clientSets) make(name string) error {
	if !s.have[name] {
		if err := s.kernel.Create(name); err != nil {
			return err
		}
		s.made++
	} else if s.leaving[name] {
		if err := s.kernel.Flush(name); err != nil {
			return err
		}
	}
	s.have[name] = true
	delete(s.leaving, name)
	return nil
}

// leave notes which sets a port does not want any more.
func (s *clientSets) leave(old, now map[string]bool) {
	for n := range old {
		if !now[n] && s.have[n] {
			s.leaving[n] = s.leaving[n] // as it was, or not asked for yet
		}
	}
}

// destroy removes what is leaving. What rules still name, or the kernel has not
// freed yet, is tried again the next time.
func (s *clientSets) destroy() {
	for _, n := range slices.Sorted(maps.Keys(s.leaving)) {
		if err := s.kernel.Destroy(n); err != nil {
			s.leaving[n] = true
			continue
		}
		delete(s.leaving, n)
		delete(s.have, n)
	}
}

// report returns what the kernel refuses.
func (s *clientSets) report() []string {
	var out []string
	if s.unlisted != nil {
		out = append(out, s.unlisted.Error())
	}
	for name, err := range s.refused {
		out = append(out, fmt.Sprintf("%s/%s: endpoints that remember more than 100 clients: %v", name, name.Protocol.Lower(), err))
	}
	slices.Sort(out)
	return out
}
