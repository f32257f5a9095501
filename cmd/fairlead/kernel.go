// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/watch"
	"fairlead/nat"
	"fairlead/nat/ipset"
	"fairlead/nat/nfacct"
	"fairlead/portmap"
	"fairlead/proxier/model"
)

// nodeKernel is what this node's kernel can do for us.
type nodeKernel struct {
	variant  ruleset.Variant
	families []model.Family
	commands map[model.Family]ruleset.Commands
	// readings are those of the rules at start, as far as there are.
	readings map[model.Family]*ruleset.Reading
	// sets are missing for a family in which rules cannot use them.
	sets map[model.Family]iptables.Sets
	// metrics are those of engines, nil for none.
	metrics *ruleset.Metrics
}

// probeNode finds out which families and which iptables this node has. It
// changes nothing. A variant that is given is not looked for. Where iptables is not
// needed, a family need not have its commands.
func probeNode(ctx context.Context, v ruleset.Variant, needed bool) (*nodeKernel, error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	if v == "" {
		var err error
		v, err = ruleset.DetectVariant(ctx, ruleset.SystemHost())
		if err != nil && (needed || !errors.Is(err, ruleset.ErrNoCommand)) {
			return nil, err
		}
	}
	n := &nodeKernel{
		variant: v, commands: map[model.Family]ruleset.Commands{}, sets: map[model.Family]iptables.Sets{},
		readings: map[model.Family]*ruleset.Reading{},
	}
	for _, f := range model.Families() {
		if f == model.IPv6 && !ipv6Enabled() {
			klog.FromContext(ctx).Info("IPv6 is off in this kernel, going on with IPv4 alone")
			continue
		}
		cmds, err := ruleset.CommandsFor(ctx, ruleset.SystemExec{}, v, f == model.IPv6)
		if !needed && errors.Is(err, ruleset.ErrNoCommand) {
			klog.FromContext(ctx).Info("Without iptables commands, what iptables and IPVS mode have left stays, and so does what rules of iptables drop on its way to pods",
				"ipFamily", f, "reason", err.Error())
			n.families = append(n.families, f)
			continue
		}
		if f == model.IPv6 && errors.Is(err, ruleset.ErrNoCommand) {
			klog.FromContext(ctx).Info("Going on with IPv4 alone", "reason", err.Error())
			continue
		}
		if err != nil {
			return nil, err
		}
		n.families = append(n.families, f)
		n.commands[f] = cmds
		n.probeSets(ctx, f)
	}
	return n, nil
}

// probeSets finds out whether rules can use sets of addresses.
func (n *nodeKernel) probeSets(ctx context.Context, f model.Family) {
	sets := ipset.New(f == model.IPv6)
	if err := iptables.ProbeSets(ctx, ruleset.SystemExec{}, n.commands[f], sets); err != nil {
		klog.FromContext(ctx).Info("Session affinity knows at most 100 clients for each endpoint, as rules cannot use sets here",
			"ipFamily", f, "reason", err.Error())
		return
	}
	n.sets[f] = sets
}

// loops returns the set of endpoints that reach themselves, nil where rules cannot
// use sets. It may not be there.
func (n *nodeKernel) loops(f model.Family) iptables.Loops {
	if n.sets[f] == nil {
		return nil
	}
	return ipset.NewSet(nat.LoopBack(f == model.IPv6), ipset.HashIPPortIP, f == model.IPv6)
}

// canCompact tells whether rules can have the compact form that was asked for.
func (n *nodeKernel) canCompact(ctx context.Context, loops iptables.Loops, rules iptables.RenderConfig) bool {
	reason := ""
	switch {
	case rules.MasqueradeNeighbours:
		reason = "packets between pods on one bridge bypass the rules (bridge-nf-call-iptables), so what they send to each other is masqueraded by the endpoint"
	case loops == nil:
		reason = "rules cannot use sets here"
	default:
		if err := iptables.ProbeLoops(ctx, ruleset.SystemExec{}, n.commands[rules.Family], loops); err != nil {
			reason = err.Error()
		}
	}
	if reason != "" {
		klog.FromContext(ctx).Info("Rules have the ordinary form, --iptables-compact has no effect", "ipFamily", rules.Family, "reason", reason)
	}
	return reason == ""
}

// counter returns the name of a counter for rules of a family, made if it was not there,
// and empty where rules cannot count.
func (n *nodeKernel) counter(ctx context.Context, f model.Family, name string) string {
	err := nfacct.Create(name)
	if err == nil {
		err = iptables.ProbeCounter(ctx, ruleset.SystemExec{}, n.commands[f], name)
	}
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Rules cannot count here, a metric stays at 0", "counter", name, "ipFamily", f, "reason", err.Error())
		return ""
	}
	return name
}

// engine returns the one writer of a family's rules.
func (n *nodeKernel) engine(f model.Family, contributions ...ruleset.Contribution) *ruleset.Engine {
	return ruleset.NewEngine(ruleset.Config{
		Exec: ruleset.SystemExec{}, Commands: n.commands[f], Variant: n.variant, Metrics: n.metrics, Family: f.String(),
		Contributions: append([]ruleset.Contribution{nat.Contribution()}, contributions...),
	})
}

// watcher tells what others change of the rules, and runs until its context ends.
type watcher interface {
	ruleset.Watcher
	Run(ctx context.Context) error
}

// watcher returns one for a family's rules, those of more tables among them than all
// modes use. Where the kernel does not tell, all rules are read once in a while.
func (n *nodeKernel) watcher(ctx context.Context, f model.Family, owns func(ruleset.ChainKey) bool, more ...ruleset.Table) watcher {
	cfg := watch.Config{
		IPv6: f == model.IPv6, Tables: append([]ruleset.Table{ruleset.Filter, ruleset.NAT}, more...), Owns: owns,
	}
	var w watcher
	var err error
	if n.variant == ruleset.NFT {
		w, err = watch.NewNFT(cfg)
	} else {
		w, err = watch.NewLegacy(cfg)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot watch what others change; all rules are read again and again, which costs more", "ipFamily", f)
		return blind{}
	}
	return w
}

// watched has an engine listen to a watcher, unless that sees nothing.
func watched(engine *ruleset.Engine, w watcher) {
	if _, none := w.(blind); !none {
		engine.Watch(w)
	}
}

// readAhead starts to read a family's rules. Those of others, and of host ports, are
// told from it as long as it is new: with the legacy variant to read one chain is to
// read all.
func (n *nodeKernel) readAhead(ctx context.Context, f model.Family, w watcher) *ruleset.Reading {
	if _, none := w.(blind); !none {
		w.Take() // what comes from here on is seen or told
	}
	r := ruleset.Read(ctx, ruleset.SystemExec{}, n.commands[f], func(k ruleset.ChainKey) bool {
		return !strings.HasPrefix(k.Name, "KUBE-") || k.Name == portmap.Root || strings.HasPrefix(k.Name, portmap.Prefix)
	})
	n.readings[f] = r
	return r
}

// blind is a watcher that sees nothing, and that no engine listens to.
type blind struct{ ruleset.Watcher }

// Wake returns nil: there is never anything to take.
func (blind) Wake() <-chan struct{} { return nil }

// Run returns when ctx is done.
func (blind) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// checkPrivilege tells what is missing to program the kernel.
func checkPrivilege() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("no permission to program the kernel (CAP_NET_ADMIN is missing); run as root, or give the container that capability")
	}
	return nil
}

// ipv6Enabled tells whether the kernel has IPv6 and it is not switched off.
func ipv6Enabled() bool {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return false
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err != nil || strings.TrimSpace(string(off)) != "1"
}
