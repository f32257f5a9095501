// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Loops is the kernel's set of endpoints that may reach themselves, of one
// family.
type Loops interface {
	// Name returns the name of the set.
	Name() string
	// List returns what is in the set; found is false where there is none.
	List() (in []ipset.Element, found bool, err error)
	// Create makes the set, for as many elements as size says or more. One that is
	// there stays as it is.
	Create(size int) error
	// Add adds elements, some of which may be there.
	Add(...ipset.Element) error
	// Remove removes elements, some of which may not be there.
	Remove(...ipset.Element) error
	// Destroy removes the set. It fails while a rule names it, and for a moment
	// after.
	Destroy() error
}

// ProbeLoops tells why rules cannot use the set of endpoints that reach
// themselves. A set that it has made and that rules can use it leaves.
func ProbeLoops(ctx context.Context, exec ruleset.Exec, cmds ruleset.Commands, l Loops) error {
	if _, _, err := l.List(); err != nil {
		return err
	}
	if err := l.Create(0); err != nil {
		return err
	}
	if err := probe(ctx, exec, cmds, "PROBE", idiom.Spec{More: nat.ReachesItself(l.Name())}.Jump("ACCEPT").Rule()); err != nil {
		return errors.Join(err, l.Destroy())
	}
	return nil
}

// loopSet keeps the kernel's set of endpoints that may reach themselves in step
// with the ports of the compact form: an element is there before the rules that
// lead to its endpoint, and goes after them. What is in it too long does no harm:
// translated packets from an address to itself are to be masqueraded, always.
type loopSet struct {
	// kernel is nil where rules cannot use the set.
	kernel Loops
	// wanted is unset where no rule is to name the set, which then goes.
	wanted bool
	// exists and have are known once listed is set. Of a set that is not wanted
	// only exists counts.
	listed, exists bool
	have           map[ipset.Element]bool
	// uses counts the ports that want an element, and leaving are those of have
	// that none wants.
	uses    map[ipset.Element]int
	leaving map[ipset.Element]bool
	// refused are the ports that have the ordinary form, and why.
	refused map[model.ServicePortName]error
	// problem is why the set could not be read or made.
	problem error
	// added counts the elements added, and repaired is set where others had
	// taken some away.
	added    int
	repaired bool
}

func newLoopSet(kernel Loops, wanted bool) loopSet {
	return loopSet{
		kernel: kernel, wanted: wanted, have: map[ipset.Element]bool{}, uses: map[ipset.Element]int{},
		leaving: map[ipset.Element]bool{}, refused: map[model.ServicePortName]error{},
	}
}

// check reads the set, where what is in it is not known or is to be verified, and
// puts back what others have taken. It returns the ports to try again.
func (s *loopSet) check(verify bool) []model.ServicePortName {
	s.added, s.repaired = 0, false
	if s.kernel == nil || s.listed && !verify {
		return nil
	}
	known := s.listed
	err := s.read()
	if !s.wanted { // one of another kind is not ours to remove
		s.listed = err == nil || errors.Is(err, ipset.ErrAnotherKind)
		return nil
	}
	s.problem = err
	if s.listed = err == nil; !s.listed {
		return nil
	}
	if !s.exists {
		if s.problem = s.kernel.Create(len(s.uses)); s.problem != nil {
			s.listed = false
			return nil
		}
		s.exists = true
	}
	var gone []ipset.Element
	for e := range s.uses {
		if !s.have[e] {
			gone = append(gone, e)
		}
	}
	s.problem = s.add(gone)
	s.listed, s.repaired = s.problem == nil, known && len(gone) > 0
	return slices.SortedFunc(maps.Keys(s.refused), model.ServicePortName.Compare)
}

// read reads what there is. What no port wants is leaving.
func (s *loopSet) read() error {
	in, found, err := s.kernel.List()
	if err != nil {
		s.exists = false
		return err
	}
	s.exists, s.have, s.leaving = found, make(map[ipset.Element]bool, len(in)), map[ipset.Element]bool{}
	for _, e := range in {
		if !e.IsLoop() { // which somebody else must have added
			continue
		}
		s.have[e] = true
		if s.uses[e] == 0 {
			s.leaving[e] = true
		}
	}
	return nil
}

// add adds elements that are not there.
func (s *loopSet) add(loops []ipset.Element) error {
	if len(loops) == 0 {
		return nil
	}
	if err := s.kernel.Add(loops...); err != nil {
		return err
	}
	for _, e := range loops {
		s.have[e] = true
	}
	s.added += len(loops)
	return nil
}

// ensure adds what a port needs and is not there, and returns what it needs then.
// ok is false where the kernel refuses: the port is to have the ordinary form.
func (s *loopSet) ensure(p *model.ServicePort) (_ []ipset.Element, ok bool) {
	loops := loopsOf(p)
	if err := s.add(s.lacks(loops)); err != nil {
		s.refused[p.Name] = err
		return nil, false
	}
	return loops, true
}

// lacks returns those of loops that are not in the set.
func (s *loopSet) lacks(loops []ipset.Element) []ipset.Element {
	return slices.DeleteFunc(slices.Clone(loops), func(e ipset.Element) bool { return s.have[e] })
}

// replace notes what a port wants in the place of what it wanted.
func (s *loopSet) replace(old, now []ipset.Element) {
	for _, e := range now {
		s.uses[e]++
		delete(s.leaving, e)
	}
	for _, e := range old {
		if s.uses[e]--; s.uses[e] > 0 {
			continue
		}
		delete(s.uses, e)
		if s.have[e] {
			s.leaving[e] = true
		}
	}
}

// clear removes what no port wants any more; what cannot be removed is tried
// again the next time. No rule may lead there any more.
func (s *loopSet) clear() {
	if s.kernel == nil || !s.exists {
		return
	}
	if !s.wanted {
		s.exists = s.kernel.Destroy() != nil
		return
	}
	leaving := slices.Collect(maps.Keys(s.leaving))
	if len(leaving) == 0 || s.kernel.Remove(leaving...) != nil {
		return
	}
	for _, e := range leaving {
		delete(s.have, e)
	}
	clear(s.leaving)
}

// report adds to what a Sync reports.
func (s *loopSet) report(out *proxier.Report) {
	out.Written += s.added
	if s.repaired {
		out.Repaired = append(out.Repaired, "set "+s.kernel.Name())
	}
	if s.problem != nil {
		out.Refused = append(out.Refused, s.problem.Error())
	}
	for _, name := range slices.SortedFunc(maps.Keys(s.refused), model.ServicePortName.Compare) {
		out.Refused = append(out.Refused, fmt.Sprintf("%s/%s: compact rules: %v", name, name.Protocol.Lower(), s.refused[name]))
	}
}

// loopsOf returns the endpoints of a port that may reach themselves, as elements.
func loopsOf(p *model.ServicePort) []ipset.Element {
	var out []ipset.Element
	for _, ep := range p.MayReachThemselves() {
		out = append(out, ipset.Loop(idiom.ProtocolNumber(p.Name.Protocol), ep))
	}
	return slices.Clip(out)
}
