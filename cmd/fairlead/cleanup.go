// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"fairlead/config"
	"fairlead/iptables"
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/ipvs"
	"fairlead/nat"
	"fairlead/nat/egress"
	"fairlead/nat/ipset"
	"fairlead/nat/nfacct"
	"fairlead/nat/sysctl"
	"fairlead/nftables"
	"fairlead/portmap"
	"fairlead/proxier/model"
)

// The parts of what cleanup removes.
const (
	partServices = "services"
	partNAT      = "nat"
	partPortmap  = "portmap"
)

// removal is what to remove.
type removal struct {
	services, nat, portmap bool
	// excluded are networks whose virtual servers stay.
	excluded []netip.Prefix
	// force is set to remove it although a service proxy runs on the node.
	force bool
	// keep is the mode of kube-proxy whose rules stay, empty for none.
	keep string
}

// removeParts returns what to remove: the parts that are named, or if none is, all.
func removeParts(only []string, excluded []netip.Prefix) (removal, error) {
	r := removal{excluded: excluded}
	if len(only) == 0 {
		only = []string{partServices, partNAT, partPortmap}
	}
	for _, part := range only {
		switch part {
		case partServices:
			r.services = true
		case partNAT:
			r.nat = true
		case partPortmap:
			r.portmap = true
		default:
			return r, fmt.Errorf("--only %q is no part of what there is; use %s, %s or %s, or several with commas between", part, partServices, partNAT, partPortmap)
		}
	}
	return r, nil
}

func cleanupCommand() *cobra.Command {
	var exclude, only []string
	var keep string
	var force bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the rules that Fairlead or kube-proxy has left",
		Long: `Remove what Fairlead and kube-proxy have left on this node: the chains and jumps of
their iptables and IPVS modes, of both families and in both variants of iptables,
their sets, the tables of nftables mode, both Fairlead's and kube-proxy's, the device kube-ipvs0, and the
virtual servers that are on its addresses or on node ports. Rules and virtual servers
of others stay as they are, and so does a chain that rules of others lead to.

Connections to Services stop working. Stop the agent first: as long as it, or
kube-proxy, answers on port ` + proxyPort + ` of this node, nothing is removed unless --force is
given, since it would write its rules again, or they are its rules.

Where kube-proxy has taken over and has written its rules, "fairlead cleanup --keep=MODE --force"
leaves these, for the mode that it is in (iptables, ipvs or nftables), and removes all else:
what is Fairlead's alone, and what is of other modes. Connections go on.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			excluded, err := parseCIDRs("--ipvs-exclude-cidrs", exclude)
			if err != nil {
				return err
			}
			r, err := removeParts(only, both(excluded))
			if cmd.Flags().Changed("keep") {
				if len(only) > 0 {
					return errors.New("--keep and --only exclude each other: with --keep all parts are removed, but for what is kube-proxy's")
				}
				r, err = keeping(keep, both(excluded))
			}
			if err != nil {
				return err
			}
			r.force = force
			return cleanup(cmd.Context(), r)
		},
	}
	cmd.Flags().StringSliceVar(&exclude, "ipvs-exclude-cidrs", nil, "CIDRs of virtual servers that are not Fairlead's, and that it does not remove.")
	cmd.Flags().BoolVar(&force, "force", false, "Remove rules although a service proxy runs on this node.")
	cmd.Flags().StringVar(&keep, "keep", "", "What to leave: that which kube-proxy writes in this mode (iptables, ipvs or nftables), which runs again and has its rules.")
	cmd.Flags().StringSliceVar(&only, "only", nil, "What to remove: services, nat (the masquerading of what pods send to the outside), portmap (host ports), or several with commas between. Not given, it is all.")
	verbosityFlag(cmd.Flags())
	return cmd
}

// cleanup removes what is ours from wherever it may be. One failure does not keep it
// from the rest.
func cleanup(ctx context.Context, r removal) error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	if err := r.refuse(ctx); err != nil {
		return err
	}
	if r.services && !(r.keep == iptablesName && neighboursKept(ctx)) {
		// Before the rule goes that keeps neighbours from 127.0.0.1.
		sysctl.Warn(ctx, sysctl.New("").ResetRouteLocalnet(ctx))
	}
	err := errors.Join(cleanRules(ctx, r), cleanTable(ctx, nftables.Parts{Services: r.services, HostPorts: r.portmap, PodMasquerade: r.nat}))
	if r.services {
		err = errors.Join(err, cleanServices(ctx, r))
	}
	if r.nat {
		removeExempt(ctx)
	}
	return errors.Join(err, removeState(config.DefaultStateFile))
}

// cleanRules removes rules of both families, in both variants of iptables.
func cleanRules(ctx context.Context, r removal) error {
	var errs []error
	for _, v := range []ruleset.Variant{ruleset.NFT, ruleset.Legacy} {
		for _, f := range model.Families() {
			cmds, err := ruleset.CommandsFor(ctx, ruleset.SystemExec{}, v, f == model.IPv6)
			if errors.Is(err, ruleset.ErrNoCommand) {
				if err := r.leftBehind(v, f); err != nil {
					errs = append(errs, err)
				}
				continue
			}
			if err == nil {
				node := &nodeKernel{variant: v, commands: map[model.Family]ruleset.Commands{f: cmds}}
				_, err = ruleset.NewEngine(ruleset.Config{
					Exec: ruleset.SystemExec{}, Commands: cmds, Variant: v,
					Contributions: r.contributions(f, node.chainReader(ctx, f)), Heir: r.heir(),
				}).Clean(ctx)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("clean up %s, %s variant: %w", f, v, err))
			}
		}
	}
	return errors.Join(errs...)
}

// leftBehind returns an error if a family has rules to remove that it takes a command to
// remove which there is not. What the legacy variant has only its command can tell.
func (r removal) leftBehind(v ruleset.Variant, f model.Family) error {
	if v != ruleset.NFT {
		return nil
	}
	for _, k := range r.telling() {
		if has, err := (ruleset.KernelNFTables{}).HasChain(f == model.IPv6, k.Table, k.Name); err == nil && has {
			return fmt.Errorf("%s has rules to remove (chain %s), and there is no command for that: %w", f, k.Name, ruleset.ErrNoCommand)
		}
	}
	return nil
}

// telling are chains to remove of which one is there if there is something to remove.
func (r removal) telling() (out []ruleset.ChainKey) {
	if r.services {
		heir := r.heir()
		out = slices.DeleteFunc(idiom.Owned(), func(k ruleset.ChainKey) bool { return strings.HasSuffix(k.Name, "*") || heir.Has(k) })
	}
	if r.portmap {
		out = append(out, ruleset.ChainKey{Table: ruleset.NAT, Name: portmap.Root})
	}
	if r.nat {
		out = append(out, ruleset.ChainKey{Table: ruleset.NAT, Name: egress.Root})
	}
	return out
}

// contributions are those of one family whose rules are to go. The chains that mark and
// masquerade belong to Services and host ports, and go with the last of them.
func (r removal) contributions(f model.Family, chain func(name string) []ruleset.Rule) []ruleset.Contribution {
	var out []ruleset.Contribution
	if r.services {
		out = append(out, iptables.Contribution(iptables.RenderConfig{Family: f}))
	}
	if r.nat {
		out = append(out, egress.Contribution())
	}
	root := chain(portmap.Root)
	mine := !portmap.Foreign(root)
	if r.portmap && mine {
		out = append(out, portmap.Contribution(portmap.Config{Family: f}))
	}
	servicesStay := !r.services && len(chain("KUBE-SERVICES")) > 0
	portsStay := !r.portmap && mine && len(root) > 0
	if !servicesStay && !portsStay {
		out = append(out, nat.Contribution())
	}
	return out
}

// cleanServices removes what is no rule, but for what stays: tables of kube-proxy's
// nftables mode, virtual servers outside excluded networks, their device, sets, and
// counters.
func cleanServices(ctx context.Context, r removal) error {
	var errs []error
	if r.keep != nftablesName {
		for _, f := range model.Families() {
			errs = append(errs, removeNftables(ctx, f))
		}
	}
	for _, f := range model.Families() {
		if err := r.cleanIPVS(f); err != nil {
			errs = append(errs, fmt.Errorf("clean up IPVS, %s: %w", f, err))
		}
	}
	if r.keep != ipvsName {
		errs = append(errs, removeDevice())
	}
	for _, f := range model.Families() { // which no rule of ours names any more
		ipv6 := f == model.IPv6
		var loops iptables.Loops
		if r.keep != ipvsName {
			loops = ipset.NewSet(nat.LoopBack(ipv6), ipset.HashIPPortIP, ipv6)
		}
		if err := iptables.CleanSets(ctx, ipset.New(ipv6), loops); err != nil {
			klog.FromContext(ctx).Info("Sets are not looked for", "ipFamily", f, "reason", err.Error())
		}
	}
	if r.keep != iptablesName {
		removeCounters(ctx)
	}
	for _, f := range model.Families() {
		if err := onceFree(trafficSet(f).Destroy); err != nil {
			klog.FromContext(ctx).V(2).Info("A set stays", "ipFamily", f, "reason", err.Error())
		}
	}
	return errors.Join(errs...)
}

// cleanIPVS removes what IPVS mode has left in a family, rules apart.
func (r removal) cleanIPVS(f model.Family) error {
	if r.keep == ipvsName {
		return onceFree(func() error { return ipvs.RemoveOwnSets(f, ipvsSets(f)) })
	}
	return removeIPVS(f, r.excluded, r.keep != "")
}

// removeCounters removes the counters that rules have counted with, unless rules of
// others do.
func removeCounters(ctx context.Context) {
	for _, name := range []string{nfacct.InvalidDropped, nfacct.LocalhostAccepted} {
		if err := onceFree(func() error { return nfacct.Delete(name) }); err != nil {
			klog.FromContext(ctx).V(2).Info("A counter stays", "counter", name, "reason", err.Error())
		}
	}
}

// removeExempt removes the sets of destinations that are not masqueraded.
func removeExempt(ctx context.Context) {
	for _, f := range model.Families() {
		ipv6 := f == model.IPv6
		x := egress.NewExempt(ipset.NewSet(egress.SetName(ipv6), ipset.HashNet, ipv6))
		if err := onceFree(x.Drop); err != nil {
			klog.FromContext(ctx).Info("A set stays", "set", egress.SetName(ipv6), "reason", err.Error())
		}
	}
}

// onceFree removes something that rules have used, once the kernel has freed the last
// of them.
func onceFree(remove func() error) error {
	const patience = 2 * time.Second
	err := remove()
	for start := time.Now(); (errors.Is(err, unix.EBUSY) || errors.Is(err, ipset.ErrBusy)) && time.Since(start) < patience; {
		time.Sleep(10 * time.Millisecond)
		err = remove()
	}
	return err
}
