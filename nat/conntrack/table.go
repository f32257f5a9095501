// SPDX-License-Identifier: Apache-2.0

// Package conntrack cuts the UDP flows that the rules have left behind.
//
// The kernel translates the first packet of a flow by the rules and all others
// as it did the first. A TCP connection ends when its endpoint does; a UDP flow
// goes on for as long as the client sends from the same port, be it to an
// endpoint that is gone, or to nowhere because it began before there was one.
// What is cut is chosen flow by flow; the rules decide anew on the client's next
// packet. No other flow is touched, and none that is not UDP.
package conntrack

import (
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// Frontend is where clients send to.
type Frontend struct {
	// Addr is zero for a port of the node's own addresses.
	Addr netip.Addr
	Port uint16
}

// Table says which UDP frontends there are in one family and with which
// endpoints their flows may go on, and remembers what of that has changed since
// flows were last looked at. It is for one goroutine at a time.
type Table struct {
	entries map[string]*entry
	// frontends has more than one entry where several claim the same one; a
	// flow may then go on with the endpoints of any.
	frontends map[Frontend][]*entry
	nodeAddrs []netip.Addr
	// gone are the frontends that were there when flows were last looked at.
	gone map[Frontend]bool
	// moved are those to which flows were translated by something that has gone.
	moved map[Frontend]bool
	// due is set if there can be flows to cut since something has changed, and
	// once while flows have been looked at no more than once since. Then recheck
	// is set if they are to be looked at again.
	due, once, recheck bool
}

// entry is what one owner has. It does not change.
type entry struct {
	frontends []Frontend
	serving   []netip.AddrPort // sorted
}

// NewTable returns an empty Table. As nothing is known of the flows that there
// are, they are due to be looked at.
func NewTable() *Table {
	return &Table{
		entries:   map[string]*entry{},
		frontends: map[Frontend][]*entry{},
		gone:      map[Frontend]bool{},
		moved:     map[Frontend]bool{},
		due:       true,
	}
}

// SetService makes the table have one port of a Service as it is now; p is nil
// where it is gone. Ports that are not UDP are ignored.
func (t *Table) SetService(name model.ServicePortName, p *model.ServicePort) {
	if name.Protocol != model.UDP {
		return
	}
	owner := "service " + name.String()
	if p == nil {
		t.Set(owner, nil, nil)
		return
	}
	var frontends []Frontend
	for _, ip := range slices.Concat([]netip.Addr{p.ClusterIP}, p.ExternalIPs, p.LoadBalancerIPs) {
		frontends = append(frontends, Frontend{ip, p.Port})
	}
	if p.NodePort != 0 {
		frontends = append(frontends, Frontend{Port: p.NodePort})
	}
	t.Set(owner, frontends, p.Serving)
}

// Set makes owner have these frontends, with these endpoints for each, and no
// others. Without frontends it is forgotten. Owner is any name.
func (t *Table) Set(owner string, frontends []Frontend, serving []netip.AddrPort) {
	old, now := t.entries[owner], newEntry(frontends, serving)
	if old.equal(now) {
		return
	}
	t.due = t.due || leavesFlows(old, now)
	if old != nil {
		delete(t.entries, owner)
		t.unlink(old)
	}
	if now == nil {
		return
	}
	t.entries[owner] = now
	for _, f := range now.frontends {
		t.frontends[f] = append(t.frontends[f], now)
		delete(t.gone, f)
	}
}

// unlink takes an entry's frontends away. Those that nobody else has are gone.
func (t *Table) unlink(e *entry) {
	for _, f := range e.frontends {
		rest := slices.DeleteFunc(t.frontends[f], func(other *entry) bool { return other == e })
		if len(rest) > 0 {
			t.frontends[f] = rest
			continue
		}
		delete(t.frontends, f)
		t.gone[f] = true
	}
}

// leavesFlows tells whether there can be flows that are stale under now and were
// not under old; one of the two may be nil. Another endpoint beside those that
// there were makes none.
func leavesFlows(old, now *entry) bool {
	if old == nil || now == nil || !slices.Equal(old.frontends, now.frontends) {
		return true
	}
	if len(old.serving) == 0 {
		return len(now.serving) > 0
	}
	return slices.ContainsFunc(old.serving, func(ep netip.AddrPort) bool { return !now.serves(ep) })
}

// SetNodeAddrs says which addresses of the node its ports answer on. 127.0.0.1
// stands for all of 127.0.0.0/8.
func (t *Table) SetNodeAddrs(addrs []netip.Addr) {
	addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	if slices.Equal(addrs, t.nodeAddrs) {
		return
	}
	for f := range t.frontends {
		if f.Addr.IsValid() {
			continue
		}
		t.due = true
		for _, a := range t.nodeAddrs {
			if !slices.Contains(addrs, a) {
				t.gone[Frontend{a, f.Port}] = true
			}
		}
	}
	t.nodeAddrs = addrs
}

// Adopt tells of frontends that there were before this table, those of the
// rules found at start for instance. Those that the table does not come to have
// before flows are looked at are gone.
func (t *Table) Adopt(frontends ...Frontend) {
	for _, f := range frontends {
		if t.frontends[f] == nil {
			t.gone[f], t.due = true, true
		}
	}
}

// Moved tells of frontends to which something else than rules has translated flows, and
// does so no more: IPVS. No rule is asked about packets of these flows, even if they
// went where they would go now.
func (t *Table) Moved(frontends ...Frontend) {
	for _, f := range frontends {
		t.moved[f], t.due = true, true
	}
}

// Recheck makes flows due to be looked at a second time since something has
// changed: a packet that was on its way while the rules changed may have begun
// a flow by the old ones after flows were looked at.
func (t *Table) Recheck() { t.recheck = t.once }

// Due tells whether there can be flows to cut.
func (t *Table) Due() bool {
	return (t.due || t.recheck) && len(t.frontends)+len(t.gone)+len(t.moved) > 0
}

// settled notes that no flow is stale any more.
func (t *Table) settled() {
	switch {
	case t.due:
		t.once = true
	case t.recheck:
		t.once = false
	}
	t.due, t.recheck = false, false
	clear(t.gone)
	clear(t.moved)
}

// newEntry returns nil where there are no frontends.
func newEntry(frontends []Frontend, serving []netip.AddrPort) *entry {
	if len(frontends) == 0 {
		return nil
	}
	e := &entry{serving: slices.SortedFunc(slices.Values(serving), netip.AddrPort.Compare)}
	for _, f := range frontends {
		if !slices.Contains(e.frontends, f) {
			e.frontends = append(e.frontends, f)
		}
	}
	return e
}

func (e *entry) equal(o *entry) bool {
	if e == nil || o == nil {
		return e == o
	}
	return slices.Equal(e.frontends, o.frontends) && slices.Equal(e.serving, o.serving)
}

func (e *entry) serves(endpoint netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(e.serving, endpoint, netip.AddrPort.Compare)
	return found
}
