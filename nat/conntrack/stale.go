// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"iter"
	"net/netip"
	"slices"
)

// Flow is a UDP flow as the kernel tracks it: the addresses that the client
// sends from and to, and those that the answers have before they are translated
// back, so that ReplySrc is who answers.
type Flow struct {
	Src, Dst, ReplySrc, ReplyDst netip.AddrPort
	Ref                          Ref
}

// Ref is what the kernel tells flows apart by beside their addresses.
type Ref struct {
	// ID is the kernel's own.
	ID uint32
	// Zone is the flow's zone, OrigZone and ReplyZone one that only the packets
	// of a direction are in. Mostly all are 0.
	Zone, OrigZone, ReplyZone uint16
}

// inZone tells whether the flow is in another zone than the default one.
func (r Ref) inZone() bool { return r.Zone|r.OrigZone|r.ReplyZone != 0 }

// translated tells whether the flow goes elsewhere than the client sends to.
func (f *Flow) translated() bool { return f.ReplySrc != f.Dst }

// Stale returns the flows that are not as the rules would have them now:
//
//   - to a frontend that has endpoints, and answered by none of them, which
//     may be because it was never translated,
//   - to a frontend that has no endpoints, or that is gone, and translated,
//   - translated, but by something that has gone.
func Stale(flows iter.Seq[Flow], t *Table) []Flow {
	var out []Flow
	for f := range flows {
		if t.stale(&f) {
			out = append(out, f)
		}
	}
	return out
}

func (t *Table) stale(f *Flow) bool {
	at := Frontend{f.Dst.Addr(), f.Dst.Port()}
	if t.moved[at] && f.translated() {
		return true
	}
	entries := t.frontends[at]
	node := t.isNodeAddr(at.Addr)
	if entries == nil && node { // rules for an address and port come before those for node ports
		entries = t.frontends[Frontend{Port: at.Port}]
	}
	if entries == nil {
		return f.translated() && len(t.gone) > 0 && (t.gone[at] || node && t.gone[Frontend{Port: at.Port}])
	}
	some := false
	for _, e := range entries {
		if e.serves(f.ReplySrc) {
			return false
		}
		some = some || len(e.serving) > 0
	}
	// A packet may pass other zones than that of our rules, untranslated there:
	// those of Open vSwitch for instance.
	return f.translated() || some && !f.Ref.inZone()
}

func (t *Table) isNodeAddr(a netip.Addr) bool {
	if a.Is4() && a.IsLoopback() {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	_, found := slices.BinarySearchFunc(t.nodeAddrs, a, netip.Addr.Compare)
	return found
}
