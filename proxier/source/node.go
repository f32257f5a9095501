// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// TaintToBeDeleted is the taint by which the cluster autoscaler announces that
// it is about to delete a node. Load balancers should stop sending to it.
const TaintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// LabelZone names the zone that a Node is in.
const LabelZone = corev1.LabelTopologyZone

// TranslateNode returns the Node as the model has it. ok is false where its
// name is refused.
func TranslateNode(node *corev1.Node) (n *model.Node, ok bool, refused []Refusal) {
	r := newRefusals(KindNode, "", node.Name)
	if !isSubdomain(node.Name) {
		r.add("metadata.name", node.Name, reasonSubdomain)
		return nil, false, r.list
	}
	n = &model.Node{
		Name:     node.Name,
		Zone:     nodeZone(node.Labels, r),
		Addrs:    nodeAddrs(node.Status.Addresses, r),
		PodCIDRs: podCIDRs(&node.Spec, r),
		Deleting: node.DeletionTimestamp != nil,
	}
	for i := range node.Spec.Taints {
		if node.Spec.Taints[i].Key == TaintToBeDeleted {
			n.ToBeDeleted = true
		}
	}
	return n, true, r.list
}

// nodeZone returns the node's zone. One that is refused is none: the hints of
// endpoints are not for this node then.
func nodeZone(labels map[string]string, r *refusals) string {
	zone := labels[LabelZone]
	if zone == "" {
		return ""
	}
	if !isLabelValue(zone) {
		r.add(fmt.Sprintf("metadata.labels[%q]", LabelZone), zone, reasonLabelValue)
		return ""
	}
	return zone
}

// nodeAddrs returns the node's internal addresses, and its external ones of a
// family that it has no internal address of.
func nodeAddrs(in []corev1.NodeAddress, r *refusals) []netip.Addr {
	in = bounded(r, "status.addresses", in, maxNodeAddrs)
	internal := nodeAddrsOf(corev1.NodeInternalIP, in, r)
	out := internal
	for _, addr := range nodeAddrsOf(corev1.NodeExternalIP, in, r) {
		sameFamily := func(other netip.Addr) bool { return model.FamilyOf(other) == model.FamilyOf(addr) }
		if !slices.ContainsFunc(internal, sameFamily) {
			out = append(out, addr)
		}
	}
	return out
}

func nodeAddrsOf(kind corev1.NodeAddressType, in []corev1.NodeAddress, r *refusals) []netip.Addr {
	var out []netip.Addr
	for i := range in {
		if in[i].Type != kind {
			continue
		}
		addr, reason := parseUnicast(in[i].Address)
		if reason != "" {
			r.add(fmt.Sprintf("status.addresses[%d].address", i), in[i].Address, reason)
			continue
		}
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// podCIDRs returns the valid ones of spec.podCIDRs, or spec.podCIDR where that
// list is empty.
func podCIDRs(spec *corev1.NodeSpec, r *refusals) []netip.Prefix {
	if len(spec.PodCIDRs) == 0 {
		if spec.PodCIDR == "" {
			return nil
		}
		return appendPrefix(nil, "spec.podCIDR", spec.PodCIDR, r)
	}
	return prefixList("spec.podCIDRs", spec.PodCIDRs, maxNodeAddrs, r)
}
