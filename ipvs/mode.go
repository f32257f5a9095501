// SPDX-License-Identifier: Apache-2.0

// Package ipvs is the mode that has IPVS spread the connections of Services over
// their endpoints.
//
// A packet to an address of a Service is for this node, as that address is on a
// device (package device), and on its way in, or out where the node sent it, it meets
// a virtual server (package servers) that sends it on. What is masqueraded, refused
// or dropped a few rules decide, which are the same whatever Services there are: they
// go by sets (package ipset). Rendering is pure; the kernel is brought to what has
// been rendered object by object.
package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/ipvs/servers"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// Kernel is what the mode writes to, of one family.
type Kernel struct {
	Servers Servers
	Device  Device
	// Set returns the set of a name and type, which may not be there.
	Set func(name string, typ ipset.Type) Set
	// Rules is made with Contribution and with nat's.
	Rules *ruleset.Engine
	// Now is the time.
	Now func() time.Time
}

// Mode is IPVS mode for one family. It implements proxier.Mode.
type Mode struct {
	render renderer
	engine *ruleset.Engine
	now    func() time.Time

	ports   map[model.ServicePortName]portState
	ledger  ledger
	portals *idiom.Portals
	servers *serverSync
	sets    *setSync
	device  *deviceSync
	// node is that of the last Sync.
	node proxier.NodeState
	// started is set once a Sync has succeeded.
	started bool
	// adopted is what AdoptedUDP returns of rules, once that is known.
	adopted []netip.AddrPort
	known   bool
	// unknown are the Services that name a scheduler that the kernel does not have.
	unknown map[model.ServicePortName]string
}

// portState is what is known of a port that has been rendered.
type portState struct {
	claims []claim
	loops  []ipset.Element
	chains map[string]*ruleset.Chain
}

var _ proxier.Mode = (*Mode)(nil)

// New returns a Mode.
func New(cfg Config, k Kernel) *Mode {
	cfg.PodCIDRs = idiom.Writable(cfg.PodCIDRs)
	m := &Mode{
		render: renderer{Config: cfg}, engine: k.Rules, now: k.Now,
		ports: map[model.ServicePortName]portState{}, ledger: ledger{map[place][]claim{}},
		portals: idiom.NewPortals(cfg.Family, portalKinds()...), unknown: map[model.ServicePortName]string{},
	}
	m.sets = newSetSync(cfg.ipv6(), k.Set)
	m.device = newDeviceSync(k.Device, m.sets, cfg.excluded)
	m.servers = newServerSync(cfg, k.Servers, m.hold)
	return m
}

// Sync implements proxier.Mode.
//
// What serves comes before what leads to it, and goes after: sets, virtual servers,
// rules, addresses. Where another mode's rules may still lead packets to endpoints,
// at the first time, these stay until all is in place.
func (m *Mode) Sync(ctx context.Context, d proxier.Desired) (proxier.Report, error) {
	staged := m.stage(d)
	var out proxier.Report
	s := &syncing{ctx: ctx, d: d, report: &out, now: m.now()}
	m.servers.now = s.now
	s.note(m.read(d.Verify, &out))
	if s.err != nil {
		m.engine.Stage(staged) // the next Sync has no reason to render it again
		return out, s.err
	}
	first := !m.started
	if !m.known {
		var err error // is left to apply, which reads the same rules
		m.adopted, err = idiom.AdoptedUDP(ctx, m.engine)
		m.known = err == nil
	}
	s.note(m.sets.add(s))
	s.note(m.servers.add(s))
	s.note(m.sets.sets[draining].add(s))
	m.engine.Stage(staged)
	if first {
		s.note(m.apply(s, false))
		s.note(m.device.add(s))
		s.note(m.sets.addVIPs(s))
	}
	s.note(m.apply(s, d.Prune))
	s.note(m.sets.addVIPs(s))
	s.note(m.device.add(s))
	steps := []func(*syncing) error{m.sets.lift}
	if d.Prune {
		// The sets go last: by them a later agent knows what is ours.
		steps = append(steps, m.device.remove, m.servers.remove, m.device.remove, m.sets.remove)
	}
	for _, step := range steps {
		if s.err == nil { // what comes later relies on what was to come before
			s.note(step(s))
		}
	}
	m.started = m.started || s.err == nil
	if first || d.Verify {
		m.forgetRoom()
	}
	m.finish(&out)
	return out, s.err
}

// syncing is one Sync.
type syncing struct {
	ctx    context.Context
	d      proxier.Desired
	report *proxier.Report
	now    time.Time
	err    error
}

func (s *syncing) note(err error) { s.err = errors.Join(s.err, err) }

// wrote counts what has been written.
func (s *syncing) wrote(n int) { s.report.Written += n }

// forgetRoom gives up the room that notes of all there is have needed. To look through
// a map takes as long as it has ever been large, for one element, too.
func (m *Mode) forgetRoom() {
	m.servers.dirty, m.servers.leaving = maps.Collect(maps.All(m.servers.dirty)), maps.Collect(maps.All(m.servers.leaving))
	m.device.dirty = maps.Collect(maps.All(m.device.dirty))
	for id := range m.sets.sets {
		st := &m.sets.sets[id]
		st.dirty = maps.Collect(maps.All(st.dirty))
	}
}

// finish reports what waits and what is refused.
func (m *Mode) finish(out *proxier.Report) {
	out.Unsettled += m.servers.drains.Len()
	out.Refused = append(out.Refused, m.servers.report()...)
	out.Refused = append(out.Refused, m.unknownSchedulers()...)
}

// read finds out what the kernel has, where that is not known or is to be looked
// at.
func (m *Mode) read(verify bool, out *proxier.Report) error {
	err := errors.Join(m.device.read(verify, out), m.sets.read(verify, out))
	if err != nil {
		return err
	}
	return m.servers.read(verify, out, func(l place) bool { return m.device.found(l.Addr) || m.sets.found(l) })
}

// apply applies the rules.
func (m *Mode) apply(s *syncing, prune bool) error {
	if s.err != nil {
		return nil // what the rules lead to may be missing
	}
	res, err := m.engine.Apply(s.ctx, ruleset.Options{Prune: prune, Verify: s.d.Verify, Settle: s.d.Settle})
	s.report.Unverified = errors.Join(s.report.Unverified, res.Unverified)
	for _, k := range res.Drift {
		s.report.Repaired = append(s.report.Repaired, k.String())
	}
	for _, n := range res.Written {
		s.wrote(n)
	}
	s.report.Refused = append(s.report.Refused, idiom.Refusals(res)...)
	s.report.Unsettled = res.Unsettled
	return err
}

// stage renders what changed, and returns the chains to hand to the engine.
func (m *Mode) stage(d proxier.Desired) map[ruleset.ChainKey]*ruleset.Chain {
	staged, roots := map[ruleset.ChainKey]*ruleset.Chain{}, map[ruleset.ChainKey]bool{}
	if !m.started {
		for _, p := range portalKinds() {
			roots[p.Root] = true
		}
	}
	if m.stageNode(d.Node, staged) {
		m.device.setHeld(d.Node.Addrs)
		for p := range d.Snapshot.All() {
			m.stagePort(p.Name, p, staged)
		}
	}
	for _, name := range d.Changed {
		m.stagePort(name, d.Snapshot.Get(name), staged)
	}
	m.portals.Stage(staged, roots, func(ruleset.ChainKey) []ruleset.Rule { return nil })
	return staged
}

// stagePort renders one port, nil where it is gone.
func (m *Mode) stagePort(name model.ServicePortName, port *model.ServicePort, staged map[ruleset.ChainKey]*ruleset.Chain) {
	old := m.ports[name]
	var now portWants
	delete(m.unknown, name)
	if port != nil {
		now = m.render.port(port)
		if !m.render.hasScheduler(port.Scheduler) {
			m.unknown[name] = port.Scheduler.Name
		}
	}
	m.ledger.replace(old.claims, now.claims, m.changed)
	m.sets.replace(loopBack, old.loops, now.loops)
	for chain, c := range now.chains {
		staged[ruleset.ChainKey{Table: ruleset.NAT, Name: chain}] = c
	}
	for chain := range old.chains {
		if key := (ruleset.ChainKey{Table: ruleset.NAT, Name: chain}); staged[key] == nil {
			staged[key] = nil
		}
	}
	if port == nil {
		delete(m.ports, name)
		return
	}
	m.ports[name] = portState{claims: now.claims, loops: now.loops, chains: now.chains}
}

// changed notes what there is to be for a place.
func (m *Mode) changed(p place, old, now *front) {
	old.elements(p, func(id setID, e ipset.Element) { m.sets.want(id, e, -1) })
	now.elements(p, func(id setID, e ipset.Element) { m.sets.want(id, e, +1) })
	var was, is []idiom.Place
	if old != nil {
		was = old.leads
	}
	if now != nil {
		is = now.leads
	}
	m.portals.Replace("", was, is)
	if !p.Addr.IsValid() {
		return
	}
	if old != nil && old.vip {
		m.device.want(p.Addr, -1)
	}
	if now != nil && now.vip {
		m.device.want(p.Addr, +1)
	}
	var v *virtual
	if now != nil {
		v = now.server
	}
	m.servers.want(p.server(), v)
}

// hold counts one more, or one less, virtual server that nobody wants and that drains.
func (m *Mode) hold(k servers.Key, delta int) {
	m.device.hold(k.Addr, delta)
	m.sets.want(draining, placeOf(k).element(draining), delta)
}

// unknownSchedulers reports the Services that name a scheduler that is not there.
func (m *Mode) unknownSchedulers() []string {
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(m.unknown), model.ServicePortName.Compare) {
		out = append(out, fmt.Sprintf("%s: the kernel has no scheduler %s, it has %s instead",
			idiom.UnitOf(name), m.unknown[name], m.render.Scheduler.Name))
	}
	return out
}

// AdoptedUDP returns where clients could send UDP to by the virtual servers, and by
// the rules, that the first Sync found, those of an earlier agent or of kube-proxy.
// Services that are gone since are known from here alone.
func (m *Mode) AdoptedUDP() []netip.AddrPort { return slices.Concat(m.servers.adoptedUDP, m.adopted) }
