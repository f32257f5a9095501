// SPDX-License-Identifier: Apache-2.0

// Package model holds the plain data that flows through Fairlead: the objects
// as sources deliver them (Service, EndpointSlice, ServiceCIDR, Pod, Node) and what the
// resolver makes of them for one node and one address family (ServicePort,
// Snapshot).
//
// It is a leaf: no Kubernetes types, no I/O, no kernel. Every value in it has
// passed validation at the source, so consumers need not check again. Values
// are immutable once handed over; who wants a different one makes a new one.
package model

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Family is an IP address family. The zero value is no family.
type Family uint8

// The families, numbered by their IP version.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families returns both families, IPv4 first.
func Families() []Family { return []Family{IPv4, IPv6} }

// FamilyOf returns the family of a. An IPv4-mapped IPv6 address is IPv6; the
// sources never let one through.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns the family as kube-proxy's ip_family metric label spells it.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return "IP?"
}

// Protocol is a transport protocol as the Kubernetes API spells it.
type Protocol string

// The protocols a Service port can have.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Lower returns the protocol as iptables and the chain hashes spell it.
func (p Protocol) Lower() string { return strings.ToLower(string(p)) }

// ObjectKey identifies an object of one kind.
type ObjectKey struct{ Namespace, Name string }

// String returns "namespace/name".
func (k ObjectKey) String() string { return k.Namespace + "/" + k.Name }

// Port is a port of a Service or of an EndpointSlice. The two are joined by
// Name and Protocol.
type Port struct {
	// Name is empty for the only port of an object that has one port.
	Name     string
	Protocol Protocol
	// Number is never 0.
	Number uint16
	// NodePort is the port that a Service port has on every node, 0 where it
	// has none. EndpointSlices have none.
	NodePort uint16
}

// Service is a Service that has at least one cluster IP. Sources leave out
// headless and ExternalName Services and those that carry the label
// service.kubernetes.io/service-proxy-name.
type Service struct {
	Key ObjectKey
	// ClusterIPs has at most one address per family, in the order of the
	// Service's ipFamilies.
	ClusterIPs []netip.Addr
	// Ports has no two elements with the same Name and Protocol, nor with the
	// same Number and Protocol.
	Ports []Port

	// ExternalIPs and LoadBalancerIPs are of either family, without duplicates.
	// Of the load balancer's addresses they are those that packets arrive with
	// (ipMode VIP).
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// Restricted is set where the load balancer's addresses are for SourceRanges
	// alone. The ranges of a family that has none admit nobody of that family.
	Restricted   bool
	SourceRanges []netip.Prefix
	// ExternalTrafficLocal and InternalTrafficLocal keep traffic to the external
	// addresses, or to the cluster IP, on the node that it arrives on.
	ExternalTrafficLocal, InternalTrafficLocal bool
	// HealthCheckNodePort is where load balancers ask whether this node has
	// endpoints; 0 unless ExternalTrafficLocal.
	HealthCheckNodePort uint16
	// AffinityTimeout is how long, since its last connection, a client keeps its
	// endpoint; 0 without session affinity. Whole seconds.
	AffinityTimeout time.Duration
	// Scheduler is how connections are spread over endpoints, for modes that leave
	// that to IPVS.
	Scheduler Scheduler
	// Balancing is how connections are spread over endpoints, for modes that do that
	// themselves and can.
	Balancing Balancing
}

// Balancing is a way to choose an endpoint. The zero value leaves it to the mode.
type Balancing string

// The ways to choose. By Maglev all nodes choose alike, and a change of endpoints moves
// few clients: by a client's address, or by its address and port.
const (
	Random     Balancing = "random"
	Maglev     Balancing = "maglev"
	MaglevPort Balancing = "maglev-port"
)

// Scheduler is one of IPVS's schedulers. The zero value leaves the choice to the
// mode.
type Scheduler struct {
	// Name is that of the kernel: "rr", "mh".
	Name string
	// Fallback and Port are for mh and sh, which choose by the client's address: with
	// Fallback another endpoint where the client's drains, with Port by its port, too.
	Fallback, Port bool
}

// ClusterIP returns the Service's cluster IP of family f; ok is false where it
// has none.
func (s *Service) ClusterIP(f Family) (ip netip.Addr, ok bool) {
	for _, ip := range s.ClusterIPs {
		if FamilyOf(ip) == f {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// EndpointSlice is a part of the endpoints of one Service, of one family.
// Sources leave out FQDN slices and those of headless Services.
type EndpointSlice struct {
	Key     ObjectKey
	Service ObjectKey
	Family  Family
	// Ports has no two elements with the same Name and Protocol.
	Ports     []Port
	Endpoints []SliceEndpoint
	// TriggerTime is when the change that led to this version of the slice
	// happened (annotation endpoints.kubernetes.io/last-change-trigger-time);
	// zero where unknown.
	TriggerTime time.Time
}

// SliceEndpoint is an endpoint of an EndpointSlice: its first address and its
// conditions, with the API's defaults for absent ones filled in.
type SliceEndpoint struct {
	Addr netip.Addr
	// NodeName is the node that the endpoint runs on, empty where unknown.
	NodeName                    string
	Ready, Serving, Terminating bool
	// Hints say whose clients should come here.
	Hints Hints
}

// ServiceCIDR is a range that cluster IPs are given out of.
type ServiceCIDR struct {
	Key ObjectKey // without a namespace
	// CIDRs have the bits of the host cleared.
	CIDRs []netip.Prefix
}

// Contains reports whether addr may be given out as a cluster IP.
func (c *ServiceCIDR) Contains(addr netip.Addr) bool {
	return slices.ContainsFunc(c.CIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Node is the node that this agent runs on.
type Node struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone, empty where there is none.
	Zone string
	// Addrs are the node's internal addresses, else its external ones, in the
	// order of its status.
	Addrs []netip.Addr
	// PodCIDRs are where the node's own pods have their addresses.
	PodCIDRs []netip.Prefix
	// Deleting is set once the Node has a deletion timestamp.
	Deleting bool
	// ToBeDeleted is set while the Node has the taint
	// ToBeDeletedByClusterAutoscaler.
	ToBeDeleted bool
}

// Pod is a pod of the agent's own node that has host ports, from when it has an
// address until all its containers have ended. Sources leave out all others, and
// those in the node's own network.
type Pod struct {
	Key ObjectKey
	// UID tells the pod from others that have had its name.
	UID string
	// IPs has at most one address per family.
	IPs []netip.Addr
	// HostPorts has no two elements with the same HostIP, Protocol and HostPort.
	HostPorts []HostPort
	// Started is when the node took the pod on, and Wired when its network was last
	// made, as far as is known: after a restart of the node a pod may show an address
	// that is another's by now.
	Started, Wired time.Time
}

// IP returns the pod's address of family f, invalid where it has none.
func (p *Pod) IP(f Family) netip.Addr {
	for _, ip := range p.IPs {
		if FamilyOf(ip) == f {
			return ip
		}
	}
	return netip.Addr{}
}

// HostPort is a port of the node that leads to one of a pod.
type HostPort struct {
	Protocol Protocol
	// HostPort and ContainerPort are never 0.
	HostPort, ContainerPort uint16
	// HostIP is the address of the node that the port is on: invalid for all of
	// every family that the pod has, unspecified for all of one.
	HostIP netip.Addr
}

// Warning is something that is wrong with a Service or a Pod, for those who use it.
type Warning struct {
	// Field is the path of the value that it is about, like "spec.ports[0]". Of
	// two with the same field and reason, about the same version of a Service, the
	// second says nothing new.
	Field string
	// Reason is one word, and Message a sentence.
	Reason, Message string
}

// Changes is one step of a source: everything in it takes effect at once. A
// nil object means that it is gone.
type Changes struct {
	Services       map[ObjectKey]*Service
	EndpointSlices map[ObjectKey]*EndpointSlice
	ServiceCIDRs   map[ObjectKey]*ServiceCIDR
	Pods           map[ObjectKey]*Pod
	// Node is nil where the step says nothing of the node.
	Node *NodeChange
	// NodeAddrs is nil where the step says nothing of the addresses that the
	// node's interfaces have.
	NodeAddrs *NodeAddrs
	// Status is nil where the source's status stays as it was.
	Status *SourceStatus
}

// NodeAddrs are the addresses that the node's interfaces have, sorted.
type NodeAddrs struct {
	Addrs []netip.Addr
	// Links are the networks that the node has an address in: who has another of
	// one is a neighbour. They have the bits of the host cleared.
	Links []netip.Prefix
}

// NodeChange tells what became of the agent's own Node object.
type NodeChange struct {
	// Node is nil where there is no such Node object.
	Node *Node
}

// SourceStatus tells how much a source's objects can be relied on.
type SourceStatus struct {
	// Listed is set once Services and EndpointSlices have both been listed.
	// Before, nothing may be programmed and nothing removed. It stays set.
	Listed bool
	// Complete is set while no object can be missing for the reason that the
	// source could not read it. While it is not, nothing may be removed.
	Complete bool
}
