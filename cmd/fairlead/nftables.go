// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/ipvs"
	"fairlead/nat"
	"fairlead/nat/nft"
	"fairlead/nat/sysctl"
	"fairlead/nftables"
	"fairlead/nftables/nfnetlink"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// nftablesBackend is nftables mode.
type nftablesBackend struct {
	cfg      *agentConfig
	node     *nodeKernel
	settings *sysctl.Settings
	kernels  map[model.Family]*nfnetlink.Kernel
	watch    *nfnetlink.Watch // nil where the kernel does not tell
	// device counts the families that may have left something on IPVS mode's.
	device  atomic.Int32
	metrics *nftables.Metrics
	// counting is set where the tables count what Services carry.
	counting bool
}

// newNftablesBackend finds out whether this node can have nftables mode.
func newNftablesBackend(ctx context.Context, cfg *agentConfig, node *nodeKernel, settings *sysctl.Settings, reg prometheus.Registerer) (*nftablesBackend, error) {
	b := &nftablesBackend{cfg: cfg, node: node, settings: settings, kernels: map[model.Family]*nfnetlink.Kernel{}, counting: !cfg.counted.Empty()}
	open := func(t table.Family, name string) (nftables.Kernel, error) { return nfnetlink.New(t, name) }
	b.device.Store(int32(len(node.families)))
	var all []*nfnetlink.Kernel
	for _, f := range node.families {
		k, err := nfnetlink.New(tableFamily(f), nftables.TableName)
		if err != nil {
			return nil, err
		}
		if err := nftables.Probe(f, open); err != nil {
			return nil, err
		}
		if b.counting {
			err := nftables.ProbeCounting(f, open)
			if b.counting = err == nil; err != nil {
				klog.FromContext(ctx).Error(err, "Nothing is counted for Services, --service-metrics has no effect")
			}
		}
		b.kernels[f] = k
		all = append(all, k)
	}
	b.metrics = nftables.NewMetrics(reg, node.families)
	var err error
	if b.watch, err = nfnetlink.NewWatch(all...); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot watch what others change; the table is read again and again, which costs more")
		b.watch = nil
	}
	return b, nil
}

// invalidDropped returns what counts packets of no connection beside rules of iptables:
// the tables of nftables mode, over sockets of their own, as writing a table takes time.
func invalidDropped(mode backend) (out []func() (uint64, error)) {
	b, ok := mode.(*nftablesBackend)
	if !ok {
		return nil
	}
	for _, f := range b.node.families {
		out = append(out, func() (uint64, error) {
			k, err := nfnetlink.New(tableFamily(f), nftables.TableName)
			if err != nil {
				return 0, err
			}
			defer k.Close()
			return nftables.InvalidDropped(k)
		})
	}
	return out
}

func tableFamily(f model.Family) table.Family {
	if f == model.IPv6 {
		return table.IPv6
	}
	return table.IPv4
}

func (b *nftablesBackend) name() string { return nftablesName }

func (b *nftablesBackend) periods() (time.Duration, time.Duration) {
	return b.cfg.NFTables.MinSyncPeriod, b.cfg.NFTables.SyncPeriod
}

func (b *nftablesBackend) family(ctx context.Context, f model.Family) (served, error) {
	cfg, node := b.cfg, b.node
	passes, problems := b.settings.BridgeNetfilter(ctx, f)
	sysctl.Warn(ctx, problems)
	rules := nftables.Config{
		Family:               f,
		PodCIDRs:             cfg.clusterCIDRs[f],
		PodInterface:         interfaceGlob(cfg.podInterface),
		NodePodCIDRs:         cfg.nodePodCIDRs,
		MasqueradeAll:        cfg.NFTables.MasqueradeAll,
		MasqueradeNeighbours: !passes,
		KeepInvalid:          b.settings.BeLiberal(),
		LocalhostNodePorts:   cfg.IPTables.LocalhostNodePorts,
		LocalhostHostPorts:   cfg.HostPorts.Localhost,
		KeepSourcePorts:      !cfg.PodMasquerade.RandomFully,
		ServiceCIDRs:         ofFamily(cfg.policy.ServiceCIDRs, f),
		Balancing:            cfg.balancing,
		Counting:             b.counting,
	}
	w := &tableWatcher{watcher: blind{}}
	out := served{watcher: w}
	var suspect nftables.Watcher
	if b.watch != nil {
		table := b.watch.Of(b.kernels[f])
		suspect, out.table = table, table.Wake()
		if f == b.node.families[0] { // it listens for all of them
			w.run = b.watch.Run
		}
	}
	mode := &nftablesMode{Mode: nftables.New(rules, b.kernels[f], suspect, b.metrics)}
	out.mode, out.adopters, out.annex = mode, []adopter{mode}, mode.Mode
	if b.counting {
		out.roster = cfg.roster()
		out.counters = nftables.NewTraffic(mode.Mode, out.roster, func() (nftables.Counters, error) { return nfnetlink.New(tableFamily(f), nftables.TableName) })
	}
	if _, ok := node.commands[f]; ok {
		out.engine = node.engine(f, cfg.contributions(ctx, f, node, formerModes(f))...)
		out.engine.Stage(nat.Chains(cfg.NFTables.MasqueradeBit, ""))
		mode.engine = out.engine
		w.watcher = node.watcher(ctx, f, out.engine.Owns, ruleset.Mangle)
		watched(out.engine, w.watcher)
		left := &ipvsLeftovers{family: f, device: &b.device, exclude: cfg.excludeCIDRs, grace: cfg.IPVS.GracePeriod}
		out.followers, out.moved = append(out.followers, left, clientSets(f)), left.moved
	}
	return out, nil
}

// interfaceGlob returns the name of an interface as nft has it: of "+" at the end, which
// stands for any ending, it has "*".
func interfaceGlob(name string) string {
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		return prefix + "*"
	}
	return name
}

func ofFamily(list []netip.Prefix, f model.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if model.FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

// formerModes declares the chains of the other modes, of which none is wanted.
func formerModes(f model.Family) ruleset.Contribution {
	former := idiom.Former()
	former = append(former, iptables.Contribution(iptables.RenderConfig{Family: f}).Jumps...)
	former = append(former, ipvs.Contribution(ipvs.Config{Family: f}).Jumps...)
	return ruleset.Contribution{
		Name: nftablesName, Owns: idiom.Owned(), Former: former, Jumps: policyJumps(),
		Guests: []ruleset.Guest{idiom.Localnet(f, false)}, Relics: idiom.Relics(),
	}
}

// policyJumps lead to what iptables is to let through where its policy is to drop, which
// the table cannot overrule: below all that others decide.
func policyJumps() []ruleset.Jump {
	forward := idiom.Jump(ruleset.Filter, "FORWARD", "", "kubernetes forwarding rules", idiom.Forward)
	health := idiom.Jump(ruleset.Filter, "INPUT", "", "kubernetes health check service ports", idiom.NodePorts)
	forward.Last, health.Last = true, true
	return []ruleset.Jump{forward, health}
}

// nftablesMode is the mode and, where the node has iptables, the rules beside it. Those
// of other modes go once the table is complete.
type nftablesMode struct {
	*nftables.Mode
	engine *ruleset.Engine
	// health are the health check node ports, nil before they have been staged.
	health map[model.ServicePortName]uint16
	// adopted is where clients could send UDP to by the rules of another mode, valid once
	// known is set.
	adopted []netip.AddrPort
	known   bool
}

var (
	_ proxier.Mode = (*nftablesMode)(nil)
	_ adopter      = (*nftablesMode)(nil)
)

// AdoptedUDP implements adopter: by the table, and by the rules of another mode.
func (m *nftablesMode) AdoptedUDP() []netip.AddrPort {
	return slices.Concat(m.Mode.AdoptedUDP(), m.adopted)
}

// Sync implements proxier.Mode.
func (m *nftablesMode) Sync(ctx context.Context, d proxier.Desired) (proxier.Report, error) {
	out, err := m.Mode.Sync(ctx, d)
	if err != nil || m.engine == nil {
		return out, err
	}
	if !m.known {
		m.adopted, err = idiom.AdoptedUDP(ctx, m.engine)
		m.known = err == nil // else the engine's reading, which comes now, says what is wrong
	}
	m.stage(d)
	res, err := m.engine.Apply(ctx, ruleset.Options{Prune: d.Prune, Verify: d.Verify, Settle: d.Settle})
	out.Unverified = errors.Join(out.Unverified, res.Unverified)
	for _, k := range res.Drift {
		out.Repaired = append(out.Repaired, k.String())
	}
	for _, n := range res.Written {
		out.Written += n
	}
	out.Refused = append(out.Refused, idiom.Refusals(res)...)
	out.Unsettled += res.Unsettled
	return out, err
}

// stage hands what is let through to the engine, where that has changed.
func (m *nftablesMode) stage(d proxier.Desired) {
	first := m.health == nil
	if first {
		m.health = map[model.ServicePortName]uint16{}
		m.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{
			{Table: ruleset.Filter, Name: idiom.Forward}: {Rules: []ruleset.Rule{
				idiom.Spec{Comment: "kubernetes forwarding rules", More: "-m conntrack --ctstate DNAT "}.Jump("ACCEPT").Rule(),
				idiom.Spec{Comment: "kubernetes forwarding conntrack rule", More: "-m conntrack --ctstate RELATED,ESTABLISHED "}.Jump("ACCEPT").Rule(),
			}},
		})
	}
	changed := first
	for _, name := range d.Changed {
		now := uint16(0)
		if p := d.Snapshot.Get(name); p != nil {
			now = p.HealthCheckNodePort
		}
		changed = changed || m.health[name] != now
		if m.health[name] = now; now == 0 {
			delete(m.health, name)
		}
	}
	if !changed {
		return
	}
	var rules []ruleset.Rule
	for _, port := range slices.Compact(slices.Sorted(maps.Values(m.health))) {
		rules = append(rules, idiom.Spec{
			Proto: "tcp", Comment: "health check node port", More: fmt.Sprintf("-m tcp --dport %d ", port),
		}.Jump("ACCEPT").Rule())
	}
	m.engine.Stage(map[ruleset.ChainKey]*ruleset.Chain{{Table: ruleset.Filter, Name: idiom.NodePorts}: {Rules: rules}})
}

// tableWatcher tells what others change of the rules beside the table, and runs what
// tells of the table, too.
type tableWatcher struct {
	watcher
	run func(context.Context) error // nil where another one runs it
}

// Run runs until ctx is done.
func (w *tableWatcher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.watcher.Run(ctx) })
	if w.run != nil {
		g.Go(func() error { return w.run(ctx) })
	}
	return g.Wait()
}

// cleanTable removes parts of the tables of nftables mode.
func cleanTable(ctx context.Context, parts nftables.Parts) error {
	if !slices.Contains(tables(ctx), nftables.TableName) {
		return nil
	}
	var errs []error
	for _, f := range model.Families() {
		k, err := nfnetlink.New(tableFamily(f), nftables.TableName)
		if err != nil {
			return err
		}
		defer k.Close()
		removed, err := nftables.Remove(f, k, parts)
		if removed {
			klog.FromContext(ctx).Info("Removed what nftables mode has left", "ipFamily", f)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeTable removes the table of nftables mode from a family, once another mode serves.
func removeTable(ctx context.Context, f model.Family) error {
	deleted, err := nft.Delete(f, nftables.TableName)
	if deleted {
		klog.FromContext(ctx).Info("Removed the table of nftables mode", "ipFamily", f)
	}
	if err != nil {
		return fmt.Errorf("remove the table of nftables mode: %w", err)
	}
	return nil
}
