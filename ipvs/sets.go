// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"strings"

	"fairlead/nat/ipset"
)

// setID is one of the sets that rules match.
type setID int

// The sets, in the order in which they gain elements. They lose them in the
// opposite one, so that what keeps out comes before what lets in, and goes after.
const (
	sourceCIDRs   setID = iota // source ranges of load balancers' addresses
	sourceIPs                  // sources besides
	firewalled                 // load balancers' addresses that are for those alone
	spares                     // ports of cluster IPs that only translated packets may reach
	noLocalInside              // cluster IPs that are dropped, as their policy is Local and all endpoints are elsewhere
	noLocal                    // external addresses and node ports likewise
	noEndpoint                 // external addresses and node ports that are refused
	loopBack                   // endpoints that may reach themselves
	clusterIPs
	externalIPs
	externalIPsLocal // with the traffic policy Local
	balancers
	balancersLocal
	nodePortsTCP
	nodePortsUDP
	nodePortsSCTP
	nodePortsLocalTCP
	nodePortsLocalUDP
	nodePortsLocalSCTP
	healthPorts
	draining // what nobody wants any more and has connections; no rule names it
	vips     // all addresses on the device
	setCount
)

// oursAlone are the sets that kube-proxy does not have (pkg/proxy/ipvs/ipset.go in v1.36).
// All other names are its own.
func oursAlone() []setID { return []setID{spares, noLocalInside, noLocal, noEndpoint, draining} }

// setKinds are the names of the sets and their types.
func setKinds() [setCount]struct {
	name string
	typ  ipset.Type
} {
	return [setCount]struct {
		name string
		typ  ipset.Type
	}{
		sourceCIDRs:        {"KUBE-LOAD-BALANCER-SOURCE-CIDR", ipset.HashIPPortNet},
		sourceIPs:          {"KUBE-LOAD-BALANCER-SOURCE-IP", ipset.HashIPPortIP},
		firewalled:         {"KUBE-LOAD-BALANCER-FW", ipset.HashIPPort},
		spares:             {"KUBE-SPARE-PORT", ipset.HashIPPort},
		noLocalInside:      {"KUBE-CLUSTER-IP-NO-LOCAL", ipset.HashIPPort},
		noLocal:            {"KUBE-NO-LOCAL-ENDPOINT", ipset.HashIPPort},
		noEndpoint:         {"KUBE-NO-ENDPOINT", ipset.HashIPPort},
		loopBack:           {"KUBE-LOOP-BACK", ipset.HashIPPortIP},
		clusterIPs:         {"KUBE-CLUSTER-IP", ipset.HashIPPort},
		externalIPs:        {"KUBE-EXTERNAL-IP", ipset.HashIPPort},
		externalIPsLocal:   {"KUBE-EXTERNAL-IP-LOCAL", ipset.HashIPPort},
		balancers:          {"KUBE-LOAD-BALANCER", ipset.HashIPPort},
		balancersLocal:     {"KUBE-LOAD-BALANCER-LOCAL", ipset.HashIPPort},
		nodePortsTCP:       {"KUBE-NODE-PORT-TCP", ipset.BitmapPort},
		nodePortsUDP:       {"KUBE-NODE-PORT-UDP", ipset.BitmapPort},
		nodePortsSCTP:      {"KUBE-NODE-PORT-SCTP-HASH", ipset.HashIPPort},
		nodePortsLocalTCP:  {"KUBE-NODE-PORT-LOCAL-TCP", ipset.BitmapPort},
		nodePortsLocalUDP:  {"KUBE-NODE-PORT-LOCAL-UDP", ipset.BitmapPort},
		nodePortsLocalSCTP: {"KUBE-NODE-PORT-LOCAL-SCTP-HASH", ipset.HashIPPort},
		draining:           {"KUBE-DRAINING", ipset.HashIPPort},
		healthPorts:        {"KUBE-HEALTH-CHECK-NODE-PORT", ipset.BitmapPort},
		vips:               {"KUBE-IPVS-IPS", ipset.HashIP},
	}
}

// maxSetName is how long the name of a set may be (IPSET_MAXNAMELEN less its final
// NUL, linux/netfilter/ipset/ip_set.h).
const maxSetName = 31

// setName returns the name of a set in a family.
func setName(id setID, ipv6 bool) string {
	name := setKinds()[id].name
	if ipv6 {
		name = "KUBE-6-" + strings.TrimPrefix(name, "KUBE-")
	}
	return name[:min(len(name), maxSetName)]
}

// setMask says in which sets something is.
type setMask uint32

func in(ids ...setID) setMask {
	var m setMask
	for _, id := range ids {
		m |= 1 << id
	}
	return m
}

func (m setMask) has(id setID) bool { return m&(1<<id) != 0 }
