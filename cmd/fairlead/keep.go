// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat/nft"
	"fairlead/proxier/model"
)

// keeping returns what to remove beside kube-proxy in a mode.
func keeping(mode string, excluded []netip.Prefix) (removal, error) {
	switch mode {
	case iptablesName, ipvsName, nftablesName:
		return removal{services: true, nat: true, portmap: true, excluded: excluded, keep: mode}, nil
	}
	return removal{}, fmt.Errorf("--keep %q is no mode of kube-proxy; use %s, %s or %s", mode, iptablesName, ipvsName, nftablesName)
}

// heir is who goes on with chains.
func (r removal) heir() ruleset.Heir {
	switch r.keep {
	case iptablesName:
		return idiom.KubeProxyIPTables()
	case ipvsName:
		return idiom.KubeProxyIPVS()
	}
	return ruleset.Heir{}
}

// refuse returns an error if rules would be removed that are needed.
func (r removal) refuse(ctx context.Context) error {
	if !r.force {
		if err := refuseBeside(ctx, loopbackProxies()); err != nil {
			return err
		}
	}
	if r.keep == "" {
		return nil
	}
	if err := refuseOtherMode(ctx, r.keep, metricsAddress); err != nil {
		return err
	}
	if r.keep == nftablesName && !slices.Contains(tables(ctx), nft.KubeProxy) {
		return fmt.Errorf("--keep=%s: kube-proxy has written nothing: there is no table %s; start it first, and wait until it has its rules", r.keep, nft.KubeProxy)
	}
	return nil
}

// neighboursKept tells whether kube-proxy, or kubelet, has its rule that keeps neighbours
// from 127.0.0.1, so that routing packets there is its business.
func neighboursKept(ctx context.Context) bool {
	guard := idiom.Localnet(model.IPv4, false)
	return slices.ContainsFunc([]ruleset.Variant{ruleset.NFT, ruleset.Legacy}, func(v ruleset.Variant) bool {
		cmds, err := ruleset.CommandsFor(ctx, ruleset.SystemExec{}, v, false)
		return err == nil && slices.Contains(cmds.List(ctx, ruleset.SystemExec{}, guard.Rule.ChainKey), guard.Same)
	})
}
