// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"maps"
	"net/netip"
	"slices"

	"fairlead/nat/ipset"
)

// manyExempt is how many destinations are exempt by a rule each at most. Where there
// are more, and rules can use sets, they are in one: a packet is looked up in it once
// for each length of prefix.
const manyExempt = 32

// Set is a set of networks, as nat/ipset has it.
type Set interface {
	Name() string
	List() (in []ipset.Element, found bool, err error)
	Create(size int) error
	Add(...ipset.Element) error
	Remove(...ipset.Element) error
	Destroy() error
}

// SetName is the name of the set of exempt destinations of a family.
func SetName(ipv6 bool) string {
	if ipv6 {
		return "KUBE-6-NON-MASQ"
	}
	return "KUBE-NON-MASQ"
}

// Exempt keeps the set of exempt destinations of one family in step with the rules. It
// is not safe for concurrent use.
type Exempt struct {
	set Set // nil where rules cannot use sets
	in  map[ipset.Element]bool
	// known is set while it is known what is in the set.
	known bool
}

// NewExempt returns an Exempt for a set that may be there, nil where rules cannot use
// one.
func NewExempt(set Set) *Exempt { return &Exempt{set: set} }

// Use makes the set have the destinations that rules exempt, if these are many, and
// returns rules that go by it. It comes before they are in the kernel. Where the set
// cannot be had they go by a rule each, and the error says why. Of what is not exempt
// any more, nothing goes before the rest is there.
func (x *Exempt) Use(r Rules) (Rules, error) {
	list, all := r.Exempt()
	if x.set == nil || all || len(r.Pods) == 0 || len(list) <= manyExempt {
		return r, nil
	}
	if err := x.fill(list); err != nil {
		x.known = false
		return r, err
	}
	r.Set = x.set.Name()
	return r, nil
}

func (x *Exempt) fill(list []netip.Prefix) error {
	if !x.known {
		if err := x.set.Create(len(list)); err != nil {
			return err
		}
		in, _, err := x.set.List()
		if err != nil {
			return err
		}
		x.in = map[ipset.Element]bool{}
		for _, e := range in {
			x.in[e] = true
		}
	}
	want := make(map[ipset.Element]bool, len(list))
	for _, p := range list {
		want[ipset.Element{Net: p}] = true
	}
	if err := x.set.Add(beyond(want, x.in)...); err != nil {
		return err
	}
	if err := x.set.Remove(beyond(x.in, want)...); err != nil {
		return err
	}
	x.in, x.known = want, true
	return nil
}

// beyond returns what a has beyond b, in order.
func beyond(a, b map[ipset.Element]bool) []ipset.Element {
	var out []ipset.Element
	for e := range maps.Keys(a) {
		if !b[e] {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, ipset.Element.Compare)
	return out
}

// Check has the set read again with the next Use: others may have changed it.
func (x *Exempt) Check() { x.known = false }

// Drop removes the set, if it is there. It fails while a rule names it.
func (x *Exempt) Drop() error {
	if x.set == nil {
		return nil
	}
	x.known = false
	return x.set.Destroy()
}
