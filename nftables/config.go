// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"time"

	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// TableName is the name of the table that the mode has in each family.
const TableName = "fairlead"

// Config is what the table depends on besides the Services and the node.
type Config struct {
	Family model.Family
	// PodCIDRs and PodInterface tell the traffic of pods by its source or by the
	// interface that it arrives on, of which "*" at the end stands for any ending. With
	// neither, nobody is known to be a pod.
	PodCIDRs     []netip.Prefix
	PodInterface string
	// NodePodCIDRs takes the pod CIDRs of this node from its Node object, in the place
	// of PodCIDRs.
	NodePodCIDRs bool
	// MasqueradeAll masquerades all traffic to cluster IPs.
	MasqueradeAll bool
	// MasqueradeNeighbours masquerades what pods of this node send to each other through
	// a Service: where packets between two ports of one bridge do not pass the rules, the
	// answer would not be translated back.
	MasqueradeNeighbours bool
	// KeepInvalid forwards packets that conntrack finds invalid, which otherwise are
	// dropped.
	KeepInvalid bool
	// LocalhostNodePorts lets node ports answer on 127.0.0.1.
	LocalhostNodePorts bool
	// LocalhostHostPorts lets host ports answer on 127.0.0.1.
	LocalhostHostPorts bool
	// KeepSourcePorts has pods come to the outside from their own source ports, as far as
	// these are free, rather than from random ones.
	KeepSourcePorts bool
	// ServiceCIDRs are what cluster IPs are given out of, besides those that
	// Desired.ServiceCIDRs has. What is sent to the rest of them is refused.
	ServiceCIDRs []netip.Prefix
	// Counting has the table count what Services carry, as NewTraffic says.
	Counting bool
	// Balancing is how endpoints of Services are chosen that do not say.
	Balancing model.Balancing
}

func (c Config) table() table.Family {
	if c.Family == model.IPv6 {
		return table.IPv6
	}
	return table.IPv4
}

// protocols are the transport protocols by their number in IP.
func protocolNumber(p model.Protocol) uint8 {
	switch p {
	case model.UDP:
		return 17
	case model.SCTP:
		return 132
	}
	return 6
}

// front is a way to reach a port: by an address, or by a port of the node.
type front uint8

const (
	byAddress front = iota
	byNodePort
)

// policy tells which endpoints are meant: all, or those of this node.
type policy uint8

const (
	cluster policy = iota
	local
)

// class is a set of destinations that are served in the same way: those with so many
// endpoints. A destination is in one class for each policy that it has.
type class struct {
	front  front
	policy policy
	// slots is how many slots the endpoints have: a power of two, or of Maglev a prime.
	slots int
	// how is how a slot is chosen.
	how model.Balancing
}

// slotsFor returns the slots for a number of endpoints: of the power of two that has
// room for them more than half are filled.
func slotsFor(n int) int {
	slots := 1
	for slots < n {
		slots *= 2
	}
	return slots
}

// usage is what of the table is in use, and for how many destinations or elements: there
// is nothing in the table for other classes and timeouts, and for sets that few clusters
// have something in. So packets pay for what there is.
type usage struct {
	classes  map[class]int
	timeouts map[timeout]int
	seldom   map[string]int
}

// timeout is how long clients keep their endpoints, for one way to reach a port.
type timeout struct {
	front front
	time.Duration
}

func newUsage() usage { return usage{map[class]int{}, map[timeout]int{}, map[string]int{}} }

// count adds n to how often a set of entries is in use.
func (u usage) count(entries []entry, n int) {
	for _, e := range entries {
		switch of := e.of.(type) {
		case class:
			u.classes[of] += n
		case timeout:
			u.timeouts[of] += n
		case string:
			if seldom(of) {
				u.seldom[of] += n
			}
		}
	}
}

// nodeView is what of the node the table depends on.
type nodeView struct {
	nodePorts    proxier.NodePorts
	ip           netip.Addr
	podCIDRs     []netip.Prefix
	serviceCIDRs []netip.Prefix
}
