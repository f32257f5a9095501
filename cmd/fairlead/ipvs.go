// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/ipvs"
	"fairlead/ipvs/device"
	"fairlead/ipvs/servers"
	"fairlead/nat"
	"fairlead/nat/ipset"
	"fairlead/nat/nfacct"
	"fairlead/nat/sysctl"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// ipvsBackend is IPVS mode.
type ipvsBackend struct {
	cfg      *agentConfig
	node     *nodeKernel
	settings *sysctl.Settings
	servers  map[model.Family]*servers.Kernel
	reserved *reservedPorts
}

// newIPVSBackend finds out whether this node can have IPVS mode.
func newIPVSBackend(ctx context.Context, cfg *agentConfig, node *nodeKernel, settings *sysctl.Settings) (*ipvsBackend, error) {
	b := &ipvsBackend{cfg: cfg, node: node, settings: settings, reserved: newReservedPorts(sysctl.NewReservedPorts(settings))}
	var err error
	if b.servers, err = openServers(cfg, node); err != nil {
		return nil, err
	}
	sysctl.Warn(ctx, settings.IPVS(ctx, sysctl.IPVSConfig{StrictARP: cfg.IPVS.StrictARP, Families: node.families}))
	return b, b.servers[node.families[0]].SetTimeouts(servers.Timeouts{TCP: cfg.IPVS.TCPTimeout, TCPFin: cfg.IPVS.TCPFinTimeout, UDP: cfg.IPVS.UDPTimeout})
}

// openServers opens what IPVS mode needs, if the kernel has it all. What is returned with
// an error is to be closed, too.
func openServers(cfg *agentConfig, node *nodeKernel) (map[model.Family]*servers.Kernel, error) {
	out := map[model.Family]*servers.Kernel{}
	for _, f := range node.families {
		k, err := servers.New(f == model.IPv6)
		if err != nil {
			return out, err
		}
		out[f] = k
		if node.sets[f] == nil {
			return out, fmt.Errorf("rules cannot use sets here: IPVS mode needs the kernel module ip_set, and the ones for sets of its types")
		}
	}
	return out, probeScheduler(out[node.families[0]], cfg.scheduler.Name)
}

// schedulers tells which of these the kernel has.
type schedulers interface {
	Schedulers(names ...string) ([]string, error)
}

// probeScheduler makes sure that the kernel has the scheduler of Services that do not
// name one.
func probeScheduler(k schedulers, name string) error {
	if found, err := k.Schedulers(name); err != nil || len(found) > 0 {
		return err
	}
	others, err := k.Schedulers(servers.AllSchedulers()...)
	if err != nil {
		return err
	}
	return fmt.Errorf("--ipvs-scheduler %s: the kernel does not have it; it has %s", name, strings.Join(others, ", "))
}

// hasScheduler returns a function that asks the kernel once for each scheduler, when a
// Service names it: to ask loads its module. What cannot be asked is taken to be there,
// so that making the virtual server says what is wrong.
func hasScheduler(ctx context.Context, k schedulers) func(name string) bool {
	known := map[string]bool{}
	return func(name string) bool {
		has, ok := known[name]
		if ok {
			return has
		}
		found, err := k.Schedulers(name)
		if err != nil {
			klog.FromContext(ctx).Error(err, "Cannot ask the kernel for a scheduler", "scheduler", name)
			return true
		}
		known[name] = len(found) > 0
		return known[name]
	}
}

func (b *ipvsBackend) name() string { return ipvsName }

func (b *ipvsBackend) periods() (time.Duration, time.Duration) {
	return b.cfg.IPVS.MinSyncPeriod, b.cfg.IPVS.SyncPeriod
}

func (b *ipvsBackend) family(ctx context.Context, f model.Family) (served, error) {
	cfg, node, ipv6 := b.cfg, b.node, f == model.IPv6
	rules := ipvs.Config{
		Family:             f,
		PodCIDRs:           cfg.clusterCIDRs[f],
		PodInterface:       cfg.podInterface,
		NodePodCIDRs:       cfg.nodePodCIDRs,
		MasqueradeAll:      cfg.IPTables.MasqueradeAll,
		MasqueradeBit:      cfg.IPTables.MasqueradeBit,
		KeepInvalid:        b.settings.BeLiberal(),
		LocalhostNodePorts: cfg.IPTables.LocalhostNodePorts,
		LocalhostHostPorts: cfg.HostPorts.Localhost,
		Scheduler:          cfg.scheduler,
		HasScheduler:       hasScheduler(ctx, b.servers[f]),
		ExcludeCIDRs:       cfg.excludeCIDRs,
		GracePeriod:        cfg.IPVS.GracePeriod,
	}
	passes, problems := b.settings.BridgeNetfilter(ctx, f)
	sysctl.Warn(ctx, problems)
	rules.MasqueradeNeighbours = !passes
	if !rules.KeepInvalid {
		rules.InvalidCounter = node.counter(ctx, f, nfacct.InvalidDropped)
	}
	dev, err := device.New(device.Name, ipv6)
	if err != nil {
		return served{}, err
	}
	engine := node.engine(f, cfg.contributions(ctx, f, node, ipvs.Contribution(rules))...)
	engine.Stage(nat.IPVSChains(cfg.IPTables.MasqueradeBit, nat.LoopBack(ipv6)))
	w := node.watcher(ctx, f, engine.Owns, ruleset.Mangle)
	watched(engine, w)
	mode := ipvs.New(rules, ipvs.Kernel{
		Servers: b.servers[f], Device: dev, Rules: engine, Now: time.Now, Set: ipvsSets(f),
	})
	followers := []proxier.Follower{clientSets(f), b.reserved.family(f)}
	counted, err := servers.New(ipv6) // with sockets of its own, so that nobody waits for who reads metrics
	if err != nil {
		return served{}, err
	}
	return served{
		mode: mode, engine: engine, watcher: w, followers: followers, adopters: []adopter{mode}, counters: ipvs.NewTraffic(counted), roster: cfg.roster(),
	}, nil
}

// ipvsSets opens the sets of a family.
func ipvsSets(f model.Family) func(string, ipset.Type) ipvs.Set {
	return func(name string, typ ipset.Type) ipvs.Set { return ipset.NewSet(name, typ, f == model.IPv6) }
}

// clientSets removes the sets of clients that iptables mode has left in one family.
func clientSets(f model.Family) *once {
	return &once{do: func(ctx context.Context) error { return iptables.CleanSets(ctx, ipset.New(f == model.IPv6), nil) }}
}

// ipvsLeftovers removes what IPVS mode has left in one family, ours or kube-proxy's,
// once another mode serves.
type ipvsLeftovers struct {
	family model.Family
	// device counts the families of which there may be something on the device.
	device    *atomic.Int32
	exclude   []netip.Prefix
	keepLoops bool
	// grace is how long connections by IPVS may go on.
	grace time.Duration
	done  bool
	// left is what there still is, once that is known.
	left   *ipvs.Leftovers
	closed func()
	// udp is where clients could send UDP to by virtual servers that have gone.
	udp []netip.AddrPort
}

var _ proxier.Follower = (*ipvsLeftovers)(nil)

// moved returns where clients could send UDP to by the virtual servers that have gone
// since it was called last.
func (l *ipvsLeftovers) moved() []netip.AddrPort {
	udp := l.udp
	l.udp = nil
	return udp
}

// Follow implements proxier.Follower.
func (l *ipvsLeftovers) Follow(ctx context.Context, d proxier.Desired) (err error) {
	if l.done || !d.Prune {
		return nil
	}
	if l.left == nil {
		if l.left, l.closed, err = openIPVS(l.family, ipvs.Remains{ExcludeCIDRs: l.exclude, KeepLoops: l.keepLoops, GracePeriod: l.grace}); err != nil {
			return err
		}
	}
	removed, err := l.left.Remove(time.Now())
	l.udp = append(l.udp, removed.UDP...)
	if removed.Objects > 0 {
		klog.FromContext(ctx).Info("Removed what IPVS mode had left", "ipFamily", l.family, "objects", removed.Objects, "withConnections", removed.Left)
	}
	if err != nil || removed.Left > 0 {
		return err
	}
	l.done = true
	l.closed()
	if l.device.Add(-1) == 0 {
		err = removeDevice()
	}
	return err
}

// removeIPVS removes virtual servers, addresses and sets of IPVS mode from a family. With
// patience virtual servers that have connections stay, which is an error.
func removeIPVS(f model.Family, exclude []netip.Prefix, patient bool) error {
	var grace time.Duration
	if patient {
		grace = math.MaxInt64
	}
	left, closed, err := openIPVS(f, ipvs.Remains{ExcludeCIDRs: exclude, KeepLoops: true, GracePeriod: grace})
	if err != nil {
		return err
	}
	defer closed()
	removed, err := left.Remove(time.Now())
	if err == nil && removed.Left > 0 {
		err = fmt.Errorf("%d virtual servers have connections and stay, with their addresses and sets; run this again when these have ended (ipvsadm -Ln)", removed.Left)
	}
	return err
}

// openIPVS opens what IPVS mode may have left in a family, until closed is called.
// Where IPVS is not loaded, there are no virtual servers.
func openIPVS(f model.Family, k ipvs.Remains) (_ *ipvs.Leftovers, closed func(), err error) {
	k.Sets, closed = ipvsSets(f), func() {}
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil {
		s, err := servers.New(f == model.IPv6)
		if err != nil && !errors.Is(err, servers.ErrNotSupported) {
			return nil, nil, err
		}
		if err == nil {
			k.Servers, closed = s, func() { s.Close() }
		}
	}
	dev, err := device.New(device.Name, f == model.IPv6)
	if err != nil {
		return nil, nil, err
	}
	k.Device = dev
	closeServers := closed
	return ipvs.NewLeftovers(f, k), func() { closeServers(); dev.Close() }, nil
}

// removeDevice removes the device, which both families have had, unless there are
// addresses to keep.
func removeDevice() error {
	for _, f := range model.Families() {
		dev, err := device.New(device.Name, f == model.IPv6)
		if err != nil {
			return err
		}
		defer dev.Close()
		left, found, err := dev.List()
		if err != nil || len(left) > 0 || !found {
			return err
		}
		if f == model.IPv6 {
			return dev.Destroy()
		}
	}
	return nil
}
