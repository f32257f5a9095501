// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"fairlead/proxier/model"
)

// Health is told when work arrives, so that a loop that is stuck shows.
type Health interface {
	// Queued says that a change for f is waiting since t.
	Queued(f model.Family, t time.Time)
	// Synced says that what was queued for f before t is in the kernel.
	Synced(f model.Family, t time.Time)
	// SetNodeEligible says whether load balancers should send traffic here.
	SetNodeEligible(bool)
}

// TrackerConfig is what a Tracker needs.
type TrackerConfig struct {
	Families []model.Family
	Health   Health
	Metrics  *Metrics
}

// Tracker holds the objects as a source last delivered them and knows, for
// each family, which Services have changed since they were last taken. It is
// safe for concurrent use and never blocks on the kernel.
type Tracker struct {
	health  Health
	metrics *Metrics
	start   time.Time

	mu sync.Mutex
	// objects are the Services and their EndpointSlices, by Service, and slices
	// the EndpointSlices by their own key.
	objects map[model.ObjectKey]objects
	slices  map[model.ObjectKey]*model.EndpointSlice
	// clusterIPs counts the Services that have a cluster IP, and claims are the
	// Services that have an address as an external one.
	clusterIPs   map[netip.Addr]int
	claims       map[netip.Addr]map[model.ObjectKey]bool
	serviceCIDRs map[model.ObjectKey]*model.ServiceCIDR
	pods         map[model.ObjectKey]*model.Pod

	status model.SourceStatus
	node   model.Node
	addrs  model.NodeAddrs
	views  map[model.Family]*view
}

// objects are a Service and its EndpointSlices. Either may be there without the
// other.
type objects struct {
	service *model.Service
	slices  []*model.EndpointSlice
}

// view is what one family has not taken yet.
type view struct {
	wake     chan struct{} // capacity 1: holds a token while there is work
	dirty    map[model.ObjectKey]bool
	pods     map[model.ObjectKey]bool
	triggers []time.Time
	// due is set by an Update that has something for the family.
	due bool
	// services and slices count the changes of objects since the last Take.
	services, slices int
}

func (v *view) mark(service model.ObjectKey) {
	v.dirty[service] = true
	v.due = true
}

// maxTriggers bounds the memory that triggers take while nothing can be
// programmed.
const maxTriggers = 10_000

// addTriggers appends to triggers what there is room for. The oldest, which
// wait for the longest, stay.
func addTriggers(triggers []time.Time, more ...time.Time) []time.Time {
	return append(triggers, more[:min(len(more), maxTriggers-len(triggers))]...)
}

// NewTracker returns an empty Tracker.
func NewTracker(cfg TrackerConfig) *Tracker {
	t := &Tracker{
		health: cfg.Health, metrics: cfg.Metrics, start: time.Now(),
		objects: map[model.ObjectKey]objects{},
		slices:  map[model.ObjectKey]*model.EndpointSlice{},

		clusterIPs:   map[netip.Addr]int{},
		claims:       map[netip.Addr]map[model.ObjectKey]bool{},
		serviceCIDRs: map[model.ObjectKey]*model.ServiceCIDR{},
		pods:         map[model.ObjectKey]*model.Pod{},
		views:        map[model.Family]*view{},
	}
	for _, f := range cfg.Families {
		t.views[f] = &view{wake: make(chan struct{}, 1), dirty: map[model.ObjectKey]bool{}, pods: map[model.ObjectKey]bool{}}
	}
	return t
}

// Update implements source.Sink. A test says so to the compiler: an import of
// the sources would make every mode depend on Kubernetes' types.
func (t *Tracker) Update(c model.Changes) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, svc := range c.Services {
		t.setService(key, svc)
	}
	for key, slice := range c.EndpointSlices {
		t.setSlice(key, slice)
	}
	for key, cidr := range c.ServiceCIDRs {
		t.setServiceCIDR(key, cidr)
	}
	for key, pod := range c.Pods {
		t.setPod(key, pod)
	}
	if c.Node != nil {
		t.setNode(c.Node.Node)
	}
	if n := c.NodeAddrs; n != nil && !(slices.Equal(t.addrs.Addrs, n.Addrs) && slices.Equal(t.addrs.Links, n.Links)) {
		t.addrs = *n
		t.markDue()
	}
	if c.Status != nil && *c.Status != t.status {
		t.status = *c.Status
		t.markDue()
	}
	t.metrics.changed(len(c.Services), len(c.EndpointSlices))
	t.pending()
	t.queue()
}

// Poke makes every family sync: something has changed that contributors know of.
func (t *Tracker) Poke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.markDue()
	t.queue()
}

// setNode takes over the node; where there is none, nothing is known of it.
// Hints are for a zone, so another zone may change the endpoints of every
// Service.
func (t *Tracker) setNode(n *model.Node) {
	t.health.SetNodeEligible(eligible(n))
	if n == nil {
		n = &model.Node{}
	}
	old := t.node
	t.node = *n
	if !slices.Equal(old.Addrs, n.Addrs) || !slices.Equal(old.PodCIDRs, n.PodCIDRs) {
		t.markDue()
	}
	if old.Zone == n.Zone {
		return
	}
	for key, o := range t.objects {
		for f, v := range t.views {
			if hasFamily(o.service, f) {
				v.mark(key)
			}
		}
	}
}

// markDue makes every family sync, although no Service has changed.
func (t *Tracker) markDue() {
	for _, v := range t.views {
		v.due = true
	}
}

// setService takes over a Service, which concerns the families in which it has
// or had a cluster IP.
func (t *Tracker) setService(key model.ObjectKey, svc *model.Service) {
	o := t.objects[key]
	old := o.service
	for f, v := range t.views {
		if hasFamily(old, f) || hasFamily(svc, f) {
			v.mark(key)
			v.services++
		}
	}
	o.service = svc
	t.setObjects(key, o)
	t.setClaims(key, old, svc)
}

// setPod takes over a Pod, which concerns the families in which it has or had an
// address.
func (t *Tracker) setPod(key model.ObjectKey, pod *model.Pod) {
	old := t.pods[key]
	for f, v := range t.views {
		if old != nil && old.IP(f).IsValid() || pod != nil && pod.IP(f).IsValid() {
			v.pods[key] = true
			v.due = true
		}
	}
	if pod == nil {
		delete(t.pods, key)
	} else {
		t.pods[key] = pod
	}
}

// setObjects makes a Service and its slices what o says.
func (t *Tracker) setObjects(service model.ObjectKey, o objects) {
	if o.service == nil && len(o.slices) == 0 {
		delete(t.objects, service)
	} else {
		t.objects[service] = o
	}
}

func hasFamily(svc *model.Service, f model.Family) bool {
	if svc == nil {
		return false
	}
	_, ok := svc.ClusterIP(f)
	return ok
}

// setSlice takes over a slice, which concerns its family; it may have been
// another Service's, or of another family, before.
func (t *Tracker) setSlice(key model.ObjectKey, slice *model.EndpointSlice) {
	old := t.slices[key]
	for f, v := range t.views {
		before, after := old != nil && old.Family == f, slice != nil && slice.Family == f
		if before {
			v.mark(old.Service)
		}
		if after {
			v.mark(slice.Service)
			if slice.TriggerTime.After(t.start) && (old == nil || !old.TriggerTime.Equal(slice.TriggerTime)) {
				v.triggers = addTriggers(v.triggers, slice.TriggerTime)
			}
		}
		if before || after {
			v.slices++
		}
	}
	t.place(key, old, slice)
}

// place puts a slice where it belongs.
func (t *Tracker) place(key model.ObjectKey, old, slice *model.EndpointSlice) {
	if old != nil {
		o := t.objects[old.Service]
		o.slices = slices.DeleteFunc(o.slices, func(s *model.EndpointSlice) bool { return s == old })
		t.setObjects(old.Service, o)
	}
	if slice == nil {
		delete(t.slices, key)
		return
	}
	o := t.objects[slice.Service]
	o.slices = append(o.slices, slice)
	t.setObjects(slice.Service, o)
	t.slices[key] = slice
}

// pending publishes how many changes the family that is furthest behind has not
// taken.
func (t *Tracker) pending() {
	var services, slices int
	for _, v := range t.views {
		services, slices = max(services, v.services), max(slices, v.slices)
	}
	t.metrics.pending(services, slices)
}

// eligible tells whether load balancers may send traffic to a node: not where
// it is gone or about to go (KEP-3836).
func eligible(n *model.Node) bool { return n != nil && !n.Deleting && !n.ToBeDeleted }

// queue wakes the loops of the families that an Update has something for, once
// there is something to rely on.
func (t *Tracker) queue() {
	now := time.Now()
	for f, v := range t.views {
		due := v.due
		if v.due = false; !due || !t.status.Listed {
			continue
		}
		t.health.Queued(f, now)
		t.metrics.queued(f, now)
		select {
		case v.wake <- struct{}{}:
		default:
		}
	}
}

// Wake returns a channel in which there is a token once there is something new
// to take for family f.
func (t *Tracker) Wake(f model.Family) <-chan struct{} { return t.views[f].wake }

// Batch is the work that a family takes from the tracker.
type Batch struct {
	// Services are the changed ones, by key, with all that Resolve needs.
	Services map[model.ObjectKey]ServiceState
	// Pods are the changed ones, nil where one is gone.
	Pods map[model.ObjectKey]*model.Pod
	// Node is the agent's own node, as far as it is known.
	Node model.Node
	// NodeAddrs are the addresses of the node's interfaces.
	NodeAddrs model.NodeAddrs
	// ServiceCIDRs are those of all ServiceCIDR objects, of both families, sorted.
	ServiceCIDRs []netip.Prefix
	// Status is the source's; before it is listed a batch is empty.
	Status model.SourceStatus
	// Triggers are when the changes happened, as far as their objects say.
	Triggers []time.Time
}

// ServiceState is a Service with its EndpointSlices.
type ServiceState struct {
	Service *model.Service // nil where there is no such Service
	Slices  []*model.EndpointSlice
	// Refused are external addresses of the family that were left out of Service.
	Refused []RefusedAddr
}

// Take returns what has changed for family f since the last Take, and takes the
// token of Wake, which has nothing more to say.
func (t *Tracker) Take(f model.Family) Batch {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[f]
	if !t.status.Listed {
		return Batch{}
	}
	b := Batch{
		Services: make(map[model.ObjectKey]ServiceState, len(v.dirty)),
		Pods:     make(map[model.ObjectKey]*model.Pod, len(v.pods)),
		Node:     t.node, NodeAddrs: t.addrs, ServiceCIDRs: t.allServiceCIDRs(),
		Status:   t.status,
		Triggers: v.triggers,
	}
	for key := range v.dirty {
		st := ServiceState{}
		o := t.objects[key]
		st.Service, st.Refused = t.withoutRefused(o.service, f)
		st.Slices = slices.Clone(o.slices)
		b.Services[key] = st
	}
	for key := range v.pods {
		b.Pods[key] = t.pods[key]
	}
	v.dirty, v.triggers, v.pods = map[model.ObjectKey]bool{}, nil, map[model.ObjectKey]bool{}
	v.services, v.slices = 0, 0
	received(v.wake)
	t.pending()
	return b
}
