// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"fairlead/config"
	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/nat/egress"
	"fairlead/nat/ipset"
	"fairlead/nat/nfacct"
	"fairlead/nat/sysctl"
	"fairlead/proxier/model"
)

func cleanupCommand() *cobra.Command {
	var exclude []string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove the rules that Fairlead or kube-proxy has left",
		Long: `Remove what Fairlead and kube-proxy have left on this node: the chains and jumps of
their iptables and IPVS modes, of both families and in both variants of iptables,
their sets, the tables of kube-proxy's nftables mode, the device kube-ipvs0, and the
virtual servers that are on its addresses or on node ports. Rules and virtual servers
of others stay as they are, and so does a chain that rules of others lead to.

Connections to Services stop working. Stop the agent first, or it will write
its rules again.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			excluded, err := parseCIDRs("--ipvs-exclude-cidrs", exclude)
			if err != nil {
				return err
			}
			return cleanup(cmd.Context(), both(excluded))
		},
	}
	cmd.Flags().StringSliceVar(&exclude, "ipvs-exclude-cidrs", nil, "CIDRs of virtual servers that are not Fairlead's, and that it does not remove.")
	verbosityFlag(cmd.Flags())
	return cmd
}

// cleanup removes what is ours from wherever it may be, virtual servers in excluded
// networks apart. One failure does not keep it from the rest.
func cleanup(ctx context.Context, excluded []netip.Prefix) error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	// Before the rule goes that keeps neighbours from 127.0.0.1.
	sysctl.Warn(ctx, sysctl.New("").ResetRouteLocalnet(ctx))
	var errs []error
	missing := 0
	for _, v := range []ruleset.Variant{ruleset.NFT, ruleset.Legacy} {
		for _, f := range model.Families() {
			cmds, err := ruleset.CommandsFor(ctx, ruleset.SystemExec{}, v, f == model.IPv6)
			if errors.Is(err, ruleset.ErrNoCommand) {
				missing++
				continue
			}
			if err == nil {
				node := &nodeKernel{variant: v, commands: map[model.Family]ruleset.Commands{f: cmds}}
				mode := iptables.Contribution(iptables.RenderConfig{Family: f})
				_, err = node.engine(f, append(besideMode(f, node.chainReader(ctx, f), switchAuto, false), mode)...).Clean(ctx)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("clean up %s, %s variant: %w", f, v, err))
			}
		}
	}
	for _, f := range model.Families() {
		errs = append(errs, removeNftables(ctx, f))
	}
	for _, f := range model.Families() {
		if err := removeIPVS(f, excluded, true); err != nil {
			errs = append(errs, fmt.Errorf("clean up IPVS, %s: %w", f, err))
		}
	}
	errs = append(errs, removeDevice())
	for _, f := range model.Families() { // which no rule of ours names any more
		ipv6 := f == model.IPv6
		if err := iptables.CleanSets(ctx, ipset.New(ipv6), ipset.NewSet(nat.LoopBack(ipv6), ipset.HashIPPortIP, ipv6)); err != nil {
			klog.FromContext(ctx).Info("Sets are not looked for", "ipFamily", f, "reason", err.Error())
		}
	}
	removeCounter(ctx)
	removeExempt(ctx)
	errs = append(errs, removeState(config.DefaultStateFile))
	if missing == 4 {
		return fmt.Errorf("no iptables command found: %w", ruleset.ErrNoCommand)
	}
	return errors.Join(errs...)
}

// removeCounter removes the counter of what was dropped as invalid, unless rules
// of others count with it.
func removeCounter(ctx context.Context) {
	if err := onceFree(func() error { return nfacct.Delete(nfacct.InvalidDropped) }); err != nil {
		klog.FromContext(ctx).V(2).Info("A counter stays", "reason", err.Error())
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
