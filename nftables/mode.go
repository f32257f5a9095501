// SPDX-License-Identifier: Apache-2.0

// Package nftables is a mode: Services are elements of sets and maps, and a few rules,
// which do not depend on what Services there are, look them up. So a change costs the
// same however many Services there are, and the kernel validates nothing again.
//
//	ip daddr @cluster-ips → services → services-16 → endpoints
//	                       which class  one of 16    address and port
//
// Rendering is pure: a port of a Service becomes entries, and what is in use becomes the
// skeleton of sets, chains and rules. The mode keeps in mind what the kernel has, and
// hands it the difference, one transaction for one change.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// Kernel is the table in the kernel.
type Kernel interface {
	// Read returns sets and chains, nil where there is no table.
	Read() (*table.State, error)
	// Elements calls yield for all elements of a set. It takes a time that grows with
	// the square of their number, as far as the kernel's sets are hash tables.
	Elements(s *table.Set, yield func(table.Element)) error
	// Get calls yield for the elements that have the keys, up to the first that there
	// is not.
	Get(s *table.Set, keys []string, yield func(table.Element)) error
	// Apply does all steps at once, or none where it returns an error.
	Apply(steps []table.Step) error
}

// Watcher tells whether others may have changed the table.
type Watcher interface {
	// Take tells whether they may have since it was last called; at first it does.
	Take() bool
}

// Mode implements proxier.Mode.
type Mode struct {
	render  renderer
	kernel  Kernel
	watcher Watcher // nil where nothing tells
	metrics *Metrics

	// state is what sets and chains the kernel has, valid while known is set; what
	// follows then says what elements it has.
	state *table.State
	known bool
	// drawn is the skeleton that the kernel has, nil where that is not known.
	drawn *drawing
	// deep is set where reading what there should be does not tell what there is.
	deep bool
	// withheld is set while there are elements that were to be removed, and were not.
	withheld bool
	// started is set once a Sync has succeeded.
	started bool

	ports  map[model.ServicePortName]*portState
	ledger ledger
	use    usage
	shared map[id]int
	// later are destinations in classes that they have left.
	later  map[id]entry
	ofNode []entry
	annex  annex
	units  map[unit][]entry
	// forget is set while clients may be remembered to have been where they must not
	// go any more.
	forget bool
	// refused has the ports that the kernel does not take, and why.
	refused map[model.ServicePortName]refusal
	// refusedUnits has the like of what there is besides Services.
	refusedUnits map[unit]error
	adopted      []netip.AddrPort
	// roster says which ports are counted by themselves, nil where none is. recounted is set
	// while it has not been told which places these have now.
	roster    *traffic.Roster
	recounted bool
}

// portState is what there is of a port.
type portState struct {
	port  *model.ServicePort
	slots placed
	// lost are the places that others have.
	lost []place
	// counted is set where the port is counted by itself.
	counted bool
}

func (p *portState) has(pl place) bool { return !slices.Contains(p.lost, pl) }

// refusal is a port that the kernel does not take.
type refusal struct {
	port *model.ServicePort
	err  error
}

var _ proxier.Mode = (*Mode)(nil)

// New returns a Mode. The watcher may be nil, and so may be the metrics.
func New(cfg Config, k Kernel, w Watcher, metrics *Metrics) *Mode {
	m := &Mode{
		render: renderer{Config: cfg}, kernel: k, watcher: w, metrics: metrics, refused: map[model.ServicePortName]refusal{}, refusedUnits: map[unit]error{},
		annex: annex{wanted: map[unit][]entry{}, touched: map[unit]bool{}},
	}
	m.render.node = nodeView{podCIDRs: cfg.PodCIDRs, serviceCIDRs: cfg.ServiceCIDRs}
	m.reset()
	return m
}

// reset forgets what the kernel has.
func (m *Mode) reset() {
	m.ledger, m.use, m.shared, m.later = ledger{}, newUsage(), map[id]int{}, map[id]entry{}
	m.ports, m.ofNode, m.units = map[model.ServicePortName]*portState{}, nil, map[unit][]entry{}
	m.known, m.drawn, m.recounted = false, nil, true
}

// AdoptedUDP returns where clients could send UDP to by the table that the first Sync
// found: an address and port each, or a port of the node with an invalid address.
func (m *Mode) AdoptedUDP() []netip.AddrPort { return m.adopted }

// Sync implements proxier.Mode.
//
// What is wrong with what is known of the kernel is found out by a change that fails:
// then all is read, and the difference to what there is to be is written.
func (m *Mode) Sync(ctx context.Context, d proxier.Desired) (proxier.Report, error) {
	start := time.Now()
	out, full, err := m.sync(ctx, d)
	m.metrics.synced(m.render.Family, full, err, time.Since(start))
	return out, err
}

// sync does a Sync, and tells whether it has read the table.
func (m *Mode) sync(ctx context.Context, d proxier.Desired) (_ proxier.Report, full bool, _ error) {
	var out proxier.Report
	suspect := d.Verify && (m.watcher == nil || m.watcher.Take())
	node := m.nodeView(d.Node, d.ServiceCIDRs)
	w := &writing{Mode: m, d: d, next: renderer{m.render.Config, node}, report: &out}
	if m.roster != nil {
		w.moved = m.roster.Update(d)
	}
	var err error
	if m.known && !suspect && !(m.withheld && d.Prune) {
		err = w.change()
		if m.known = err == nil; doubtful(err) {
			klog.FromContext(ctx).V(2).Info("The kernel's table is not as it was known to be, reading it", "ipFamily", m.render.Family, "reason", err.Error())
		} else {
			out, err = m.finish(out, err)
			return out, false, err
		}
	}
	for range 2 {
		if m.watcher != nil {
			m.watcher.Take() // what comes from here on is seen, or told
		}
		if err = w.reconcile(); !doubtful(err) {
			break
		}
		m.deep = true // something is where it should not be
	}
	out, err = m.finish(out, err)
	return out, true, err
}

// doubtful tells whether an error says that the kernel has something else than known.
func doubtful(err error) bool {
	for _, e := range []unix.Errno{unix.ENOENT, unix.EEXIST, unix.EBUSY, unix.ENOTEMPTY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// finish ends a Sync.
func (m *Mode) finish(out proxier.Report, err error) (proxier.Report, error) {
	if m.known = err == nil; err == nil {
		m.started, m.deep = true, false
		err = m.forgetClients()
	}
	out.Unsettled = m.use.unused() + len(m.later) + m.surplus()
	for _, name := range slices.SortedFunc(maps.Keys(m.refused), model.ServicePortName.Compare) {
		out.Refused = append(out.Refused, fmt.Sprintf("%s: %v", name, m.refused[name].err))
	}
	for _, u := range slices.SortedFunc(maps.Keys(m.refusedUnits), unit.compare) {
		out.Refused = append(out.Refused, fmt.Sprintf("%s: %v", u, m.refusedUnits[u]))
	}
	return out, err
}

// nodeView is what of the node there is to know.
func (m *Mode) nodeView(n proxier.NodeState, cidrs []netip.Prefix) nodeView {
	out := nodeView{nodePorts: n.NodePorts, ip: n.IP, podCIDRs: m.render.PodCIDRs}
	if m.render.NodePodCIDRs {
		out.podCIDRs = n.PodCIDRs
	}
	out.serviceCIDRs = append(slices.Clone(m.render.ServiceCIDRs), cidrs...)
	return out
}

// equal tells whether two views are the same.
func (n nodeView) equal(o nodeView) bool {
	return n.nodePorts.Equal(o.nodePorts) && n.ip == o.ip && slices.Equal(n.podCIDRs, o.podCIDRs) &&
		slices.Equal(n.serviceCIDRs, o.serviceCIDRs)
}

// unused counts what nothing is of any more.
func (u usage) unused() int {
	return zeros(u.classes) + zeros(u.timeouts) + zeros(u.seldom)
}

func zeros[K comparable](counts map[K]int) (n int) {
	for _, c := range counts {
		if c == 0 {
			n++
		}
	}
	return n
}

// settled returns the usage without what is unused.
func (u usage) settled() usage {
	return usage{above(u.classes), above(u.timeouts), above(u.seldom)}
}

func above[K comparable](counts map[K]int) map[K]int {
	out := maps.Clone(counts)
	maps.DeleteFunc(out, func(_ K, n int) bool { return n <= 0 })
	return out
}
