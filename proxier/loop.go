// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
)

// LoopConfig is what a Loop needs.
type LoopConfig struct {
	Family model.Family
	Mode   Mode
	// Contributors are called in order before each Sync.
	Contributors []Contributor
	// Followers are called in order after each Sync that succeeded.
	Followers []Follower
	Tracker   *Tracker
	Health    Health
	Metrics   *Metrics
	// Warner is told of what users of Services should know; it may be nil.
	Warner Warner
	// NodeName tells which endpoints are local.
	NodeName string
	// NodePortAddresses says where node ports answer.
	NodePortAddresses NodePortAddresses
	// NodeIP is the node's own address, in the place of that of its family in
	// the Node object. It may be invalid.
	NodeIP netip.Addr
	// MinSyncPeriod is the least time between the starts of two syncs. Whatever
	// it is, a sync that took t is followed by a rest of t, and of up to 3t while
	// there is always something to do; but not the first one, and not one that
	// only compares, as these come seldom however many changes there are.
	MinSyncPeriod time.Duration
	// Foreign has a token once others may have changed what the mode has
	// written; it may be nil.
	Foreign <-chan struct{}
	// ForeignTable tells the same of what a mode has beside rules.
	ForeignTable <-chan struct{}
	// SyncPeriod is how often the kernel is compared with what is wanted.
	SyncPeriod time.Duration
}

// Loop brings one family of the kernel to what the Tracker holds, again and
// again. It reacts at once when it is idle; what arrives during a sync, and in
// the rest after it, is done together in the next one.
type Loop struct {
	LoopConfig
	snapshot *model.Snapshot
	// ports are those that each Service has in snapshot.
	ports map[model.ObjectKey][]*model.ServicePort
	// changed are the names that no successful sync has carried yet.
	changed map[model.ServicePortName]bool
	// pods are the changed ones that no successful sync has carried yet.
	pods     map[model.ObjectKey]*model.Pod
	triggers []time.Time
	prune    bool
	failures int
	// dropped counts the ports in snapshot whose traffic is dropped.
	dropped dropped
	// strain counts the syncs in a row after which there was work already.
	strain int
	// synced is set once a sync has succeeded.
	synced bool
	// unsettled is set while the mode has something left for Desired.Settle.
	unsettled bool
	// refused is what the last sync reported, so that it is logged once.
	refused []string
	// refusedAddrs are what was told of Services' external addresses.
	refusedAddrs map[model.ObjectKey][]RefusedAddr
}

// The bounds of the time between a failed sync and the next one.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// maxStrain bounds Loop.strain. In the long run of changes that never end, syncs
// take a quarter of one core: each is followed by a rest of three times what it
// took. A change that finds the loop at rest for the first time waits for one.
const maxStrain = 2

// NewLoop returns a Loop.
func NewLoop(cfg LoopConfig) *Loop {
	return &Loop{
		LoopConfig: cfg,
		snapshot:   model.NewSnapshot(),
		ports:      map[model.ObjectKey][]*model.ServicePort{},
		changed:    map[model.ServicePortName]bool{},
		pods:       map[model.ObjectKey]*model.Pod{},

		refusedAddrs: map[model.ObjectKey][]RefusedAddr{},
	}
}

// Run syncs until ctx is done, and then returns nil. What is in the kernel
// stays there.
func (l *Loop) Run(ctx context.Context) error {
	wake := l.Tracker.Wake(l.Family)
	select { // nothing is programmed before there is something to rely on
	case <-ctx.Done():
		return nil
	case <-wake:
	}
	a := alarms{wake: wake, foreign: l.Foreign, table: l.ForeignTable, period: time.NewTicker(l.SyncPeriod)}
	defer a.period.Stop()
	for ask := (request{}); ctx.Err() == nil; {
		if !sleep(ctx, l.sync(ctx, ask)) {
			return nil
		}
		a.settleLater(l.unsettled)
		if len(wake) == 0 {
			l.strain = 0
		} else if l.strain < maxStrain {
			l.strain++
		}
		if l.failures == 0 {
			ask = request{}
			if !a.wait(ctx, &ask) {
				return nil
			}
		}
		// The next sync takes all that waits, and no other is needed for it.
		// What was asked of one that failed is still owed.
		a.collect(&ask)
	}
	return nil
}

// sleep returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sync does one sync and returns how long to wait before the next.
func (l *Loop) sync(ctx context.Context, ask request) time.Duration {
	start := time.Now()
	batch := l.Tracker.Take(l.Family)
	l.resolve(batch)
	maps.Copy(l.pods, batch.Pods)
	l.warnRefused(ctx, batch)
	d := Desired{
		Snapshot: l.snapshot,
		Changed:  slices.SortedFunc(maps.Keys(l.changed), model.ServicePortName.Compare),
		Pods:     l.pods,
		Node:     l.nodeState(batch), ServiceCIDRs: rangesOfFamily(batch.ServiceCIDRs, l.Family),
		Prune:  l.prune,
		Verify: ask.verify,
		Settle: ask.settle,
	}
	for _, c := range l.Contributors {
		c.Contribute(ctx, d)
	}
	report, err := l.Mode.Sync(ctx, d)
	l.unsettled = report.Unsettled > 0
	took := time.Since(start)
	rest := took * time.Duration(1+l.strain)
	if err == nil && (!l.synced || d.Verify && len(d.Changed) == 0) {
		rest = 0
	}
	rest = max(rest, l.MinSyncPeriod-took)
	if err != nil && ctx.Err() != nil { // told to stop, which is no failure
		return rest
	}
	l.Metrics.synced(l.Family, took, report, err)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Sync failed, the rules in place stay; will retry",
			"ipFamily", l.Family, "failures", l.failures+1, "took", took)
		l.failures++
		l.Metrics.consecutiveFailure.WithLabelValues(l.Family.String()).Set(float64(l.failures))
		rest = max(rest, backoff(l.failures))
		l.Metrics.backoff.WithLabelValues(l.Family.String()).Set(rest.Seconds())
		return rest
	}
	l.done(start)
	l.follow(ctx, d)
	clear(l.pods)
	l.log(ctx, report, d, took)
	return rest
}

// follow does what comes after the rules.
func (l *Loop) follow(ctx context.Context, d Desired) {
	for _, f := range l.Followers {
		if err := f.Follow(ctx, d); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "The rules are in place, but not all that follows them; will retry", "ipFamily", l.Family)
		}
	}
}

// nodeState returns what a batch says of the node, in the loop's family.
func (l *Loop) nodeState(b Batch) NodeState {
	n := NodeState{
		Addrs:    ofFamily(b.NodeAddrs.Addrs, l.Family),
		Links:    rangesOfFamily(b.NodeAddrs.Links, l.Family),
		IP:       l.nodeIP(b.Node.Addrs),
		PodCIDRs: rangesOfFamily(b.Node.PodCIDRs, l.Family),
	}
	n.NodePorts = l.NodePortAddresses.resolve(l.Family, n.Addrs, n.IP)
	return n
}

// nodeIP returns the node's own address, given those of its Node object.
func (l *Loop) nodeIP(addrs []netip.Addr) netip.Addr {
	if l.NodeIP.IsValid() {
		addrs = slices.Concat([]netip.Addr{l.NodeIP}, addrs)
	}
	if own := ofFamily(addrs, l.Family); len(own) > 0 {
		return own[0]
	}
	return netip.Addr{}
}

// done notes that all that was taken is in the kernel.
func (l *Loop) done(start time.Time) {
	l.failures, l.synced = 0, true
	l.changed = map[model.ServicePortName]bool{} // clear would keep the room for the first list
	now := time.Now()
	l.Metrics.consecutiveFailure.WithLabelValues(l.Family.String()).Set(0)
	l.Metrics.backoff.WithLabelValues(l.Family.String()).Set(0)
	l.Metrics.lastSync.WithLabelValues(l.Family.String()).Set(seconds(now))
	l.Metrics.drops(l.Family, l.dropped)
	for _, t := range l.triggers { // by a clock that may be ahead of this one
		l.Metrics.programming.WithLabelValues(l.Family.String()).Observe(max(now.Sub(t), 0).Seconds())
	}
	l.triggers = nil
	l.Health.Synced(l.Family, start)
}

// resolve brings the snapshot up to date with a batch.
func (l *Loop) resolve(b Batch) {
	l.prune = b.Status.Complete
	l.triggers = addTriggers(l.triggers, b.Triggers...)
	at := Locality{Node: l.NodeName, Zone: b.Node.Zone}
	changes := map[model.ServicePortName]*model.ServicePort{}
	for key, st := range b.Services {
		for _, port := range l.ports[key] {
			changes[port.Name] = nil
		}
		ports := Resolve(st.Service, st.Slices, at, l.Family)
		for i, port := range ports {
			if old := l.snapshot.Get(port.Name); old != nil && old.Equal(port) {
				ports[i] = old // so that there are not two
			}
			changes[port.Name] = ports[i]
		}
		if len(ports) == 0 {
			delete(l.ports, key)
		} else {
			l.ports[key] = ports
		}
	}
	for name, port := range changes {
		old := l.snapshot.Get(name)
		if old == port {
			delete(changes, name)
			continue
		}
		l.changed[name] = true
		l.dropped.add(old, -1)
		l.dropped.add(port, +1)
	}
	l.snapshot = l.snapshot.With(changes)
}

// Warner tells the users of a Service what is wrong with it, by Events say. It
// does not block.
type Warner interface {
	Warn(service model.ObjectKey, w model.Warning)
}

// warnRefused tells which external addresses of a Service are left out, each
// time that these are others than before.
func (l *Loop) warnRefused(ctx context.Context, b Batch) {
	for key, st := range b.Services {
		told := l.refusedAddrs[key]
		if slices.Equal(told, st.Refused) {
			continue
		}
		if len(st.Refused) == 0 {
			delete(l.refusedAddrs, key)
			if st.Service != nil {
				klog.FromContext(ctx).Info("No external address of the Service is refused any more", "service", key)
			}
			continue
		}
		l.refusedAddrs[key] = st.Refused
		fresh := slices.DeleteFunc(slices.Clone(st.Refused), func(r RefusedAddr) bool { return slices.Contains(told, r) })
		l.Metrics.refusedExternal.WithLabelValues(l.Family.String()).Add(float64(len(fresh)))
		klog.FromContext(ctx).Error(nil, "Refused external addresses, the rest of the Service is used", "service", key, "refused", inWords(st.Refused))
		for _, r := range fresh[:min(len(fresh), maxWarnings)] {
			if l.Warner != nil {
				l.Warner.Warn(key, model.Warning{
					Field: fmt.Sprintf("%s{%s}", r.Field, r.Addr), Reason: "FairleadRefused",
					Message: fmt.Sprintf("External address %s and is left out", r),
				})
			}
		}
	}
}

// maxWarnings bounds how many addresses of a Service its users hear of at once.
const maxWarnings = 3

func inWords(refused []RefusedAddr) string {
	var what []string
	for i, r := range refused {
		if i == maxListed {
			what = append(what, fmt.Sprintf("and %d more", len(refused)-i))
			break
		}
		what = append(what, r.String())
	}
	return strings.Join(what, ", ")
}

// backoff returns the pause after a number of failures in a row: doubled each
// time, with up to a quarter more, so that nodes do not move in step.
func backoff(failures int) time.Duration {
	d := minBackoff << min(failures-1, 16)
	return min(d+rand.N(d/4), maxBackoff)
}

// log writes one line for a sync that succeeded, and one for what is unusual.
func (l *Loop) log(ctx context.Context, r Report, d Desired, took time.Duration) {
	log := klog.FromContext(ctx).WithValues("ipFamily", l.Family)
	if r.Unverified != nil {
		log.Error(r.Unverified, "Cannot check what others may have changed of the rules; will check again", "after", l.SyncPeriod)
	}
	if n := len(r.Repaired); n > 0 {
		log.Info("Repaired what others had changed", "count", n, "objects", r.Repaired[:min(n, maxListed)])
	}
	l.logRefused(log, r.Refused)
	log.V(2).Info("Synced", "servicePorts", l.snapshot.Len(), "changed", len(d.Changed), "written", r.Written, "took", took)
}

// maxListed bounds how much is told one by one.
const maxListed = 10

// logRefused logs what the kernel refuses when that has changed.
func (l *Loop) logRefused(log klog.Logger, refused []string) {
	if slices.Equal(refused, l.refused) {
		return
	}
	if len(refused) == 0 {
		log.Info("The kernel refuses nothing any more")
	}
	l.refused = refused
	for i, what := range refused {
		if i == maxListed {
			log.Info("The kernel refuses more than is listed", "more", len(refused)-i)
			break
		}
		log.Info("The kernel refuses this, all else is in place", "refused", what)
	}
}

func (m *Metrics) synced(f model.Family, took time.Duration, r Report, err error) {
	m.syncDuration.WithLabelValues(f.String()).Observe(took.Seconds())
	m.repaired.WithLabelValues(f.String()).Add(float64(len(r.Repaired)))
	if err != nil {
		m.syncFailures.WithLabelValues(f.String()).Inc()
		return
	}
	m.refused.WithLabelValues(f.String()).Set(float64(len(r.Refused)))
	if r.Unverified != nil {
		m.checkFailures.WithLabelValues(f.String()).Inc()
	}
}
