// SPDX-License-Identifier: Apache-2.0

// Package proxier is the brain of Fairlead, which every mode shares: the
// tracker that knows which objects changed, the resolver that decides which
// endpoints a Service has on this node, and the loop that hands the result to
// a Mode. It knows nothing of iptables, IPVS or nftables.
//
//	source ──Changes──▶ Tracker ──dirty keys──▶ Resolve ──▶ Snapshot + changed ──▶ Mode
//
// There is one Tracker, and one Loop with one Mode for each address family.
package proxier

import (
	"context"
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// Mode programs the kernel for one address family.
type Mode interface {
	// Sync makes the kernel do what d says. It may be called again with the
	// same d, and then writes nothing where nothing is missing. After an error
	// what was in place is still in place, apart from what was already brought
	// up to date; the next call carries the keys of the failed one again.
	// Sync is never called concurrently. It puts into the kernel what
	// contributors have handed to its engine, too, whatever d says.
	Sync(ctx context.Context, d Desired) (Report, error)
}

// Contributor has rules beside the mode's, which the mode puts into the kernel with
// its own.
type Contributor interface {
	// Contribute is called before each Sync, with what is going to be handed to
	// it. It hands what has changed of its rules to the engine that the Sync has
	// write them, and goes on with what there was where it cannot.
	Contribute(ctx context.Context, d Desired)
}

// Follower does what has to come after the rules.
type Follower interface {
	// Follow is called after each Sync that succeeded, with what was handed to
	// it. What an error has left undone is done on the next call.
	Follow(ctx context.Context, d Desired) error
}

// Desired is what a Mode is to bring about.
type Desired struct {
	Snapshot *model.Snapshot
	// Changed names every port in which Snapshot differs from the snapshot of
	// the last Sync that succeeded, those that are gone included. On the first
	// Sync these are all ports.
	Changed []model.ServicePortName
	// Pods are the pods of this node that have an address of the family, or had, and
	// may have changed since the last Sync that succeeded, nil where one is gone. On
	// the first Sync these are all.
	Pods map[model.ObjectKey]*model.Pod
	// Node is what the rules need to know of this node.
	Node NodeState
	// ServiceCIDRs are what cluster IPs of the family are given out of, as objects say,
	// sorted.
	ServiceCIDRs []netip.Prefix
	// Prune allows removals. While it is false, objects may be missing from
	// Snapshot for no reason of theirs, and what the kernel does for them must
	// go on.
	Prune bool
	// Verify asks to look at the kernel instead of trusting what is known of
	// it, and to repair what others have changed.
	Verify bool
	// Settle asks to finish what Report.Unsettled counted.
	Settle bool
}

// NodeState is what a Mode needs to know of the node, in its family.
type NodeState struct {
	// NodePorts tells where node ports answer.
	NodePorts NodePorts
	// Addrs are the addresses that the node's interfaces have, and Links the
	// networks that these are in.
	Addrs []netip.Addr
	Links []netip.Prefix
	// IP is the node's own address; invalid where that is not known.
	IP netip.Addr
	// PodCIDRs are where the node's own pods have their addresses, as its Node
	// object has them.
	PodCIDRs []netip.Prefix
}

// NodePorts tells on which of the node's addresses node ports answer.
type NodePorts struct {
	// All is set for all addresses that the node has, now and later.
	All bool
	// Addrs are the addresses otherwise, sorted.
	Addrs []netip.Addr
}

// Equal tells whether n and o are the same.
func (n NodePorts) Equal(o NodePorts) bool {
	return n.All == o.All && slices.Equal(n.Addrs, o.Addrs)
}

// Report tells what a Sync did, for logs and metrics.
type Report struct {
	// Written is the number of kernel objects (rules, servers, elements) that
	// were written.
	Written int
	// Repaired names the kernel objects that others had changed.
	Repaired []string
	// Unverified is why the kernel could not be looked at although Verify asked
	// for it. What was to be changed was changed all the same.
	Unverified error
	// Unsettled is the number of kernel objects that do what they are for, but
	// have not got their final form, as that would cost more than it is worth
	// right now: they get it with a later change, or on Desired.Settle.
	Unsettled int
	// Refused names what the kernel does not accept. All else is in place.
	Refused []string
}
