// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"testing"

	"fairlead/proxier"
)

// TestPodsOf: whose packets are masqueraded is as local detection tells pods, and to
// which pods none are is all that is known of the cluster.
func TestPodsOf(t *testing.T) {
	cidrs := func(list ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	const cluster, node, other = "10.244.0.0/16", "10.244.1.0/24", "10.245.1.0/24"
	for _, tt := range []struct {
		name     string
		egress   podEgress
		node     []netip.Prefix
		own, all []netip.Prefix
	}{
		{"nothing is known", podEgress{when: switchAuto}, nil, nil, nil},
		{"the cluster's", podEgress{when: switchAuto, clusterCIDRs: cidrs(cluster)}, cidrs(node), cidrs(cluster), cidrs(cluster, node)},
		{"the node's, besides the cluster's", podEgress{when: switchAuto, clusterCIDRs: cidrs(cluster)}, cidrs(other), cidrs(cluster), cidrs(cluster, other)},
		{"this node's alone", podEgress{when: switchAuto, clusterCIDRs: cidrs(cluster), nodePodCIDRs: true}, cidrs(node), cidrs(node), cidrs(cluster, node)},
		{"this node's alone, others' not known", podEgress{when: switchAuto, nodePodCIDRs: true}, cidrs(node), nil, cidrs(node)},
		{"the same, by all means", podEgress{when: switchOn}, cidrs(node), cidrs(node), cidrs(node)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			own, all := tt.egress.pods(proxier.Desired{Node: proxier.NodeState{PodCIDRs: tt.node}})
			if fmt.Sprint(own, all) != fmt.Sprint(tt.own, tt.all) {
				t.Errorf("got %v and %v, want %v and %v", own, all, tt.own, tt.all)
			}
		})
	}
}
