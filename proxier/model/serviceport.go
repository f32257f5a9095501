// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// ServicePortName identifies one port of one Service. The protocol is part of
// it: a Service may have the same port name for TCP and for UDP.
type ServicePortName struct {
	Service  ObjectKey
	Port     string
	Protocol Protocol
}

// String returns "namespace/name:port", or "namespace/name" for an unnamed
// port: what kube-proxy writes in comments and hashes into chain names.
func (n ServicePortName) String() string {
	if n.Port == "" {
		return n.Service.String()
	}
	return n.Service.String() + ":" + n.Port
}

// Compare orders names by namespace, name, port and protocol.
func (n ServicePortName) Compare(o ServicePortName) int {
	return cmp.Or(
		cmp.Compare(n.Service.Namespace, o.Service.Namespace),
		cmp.Compare(n.Service.Name, o.Service.Name),
		cmp.Compare(n.Port, o.Port),
		cmp.Compare(n.Protocol, o.Protocol),
	)
}

// ServicePort is what a node has to do for one port of one Service in one
// address family. Its addresses are all of that family.
type ServicePort struct {
	Name      ServicePortName
	ClusterIP netip.Addr
	Port      uint16
	// NodePort is 0 where the port has none.
	NodePort                     uint16
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// Restricted is set where LoadBalancerIPs are for SourceRanges alone.
	Restricted   bool
	SourceRanges []netip.Prefix
	// ExternalTrafficLocal and InternalTrafficLocal are set where traffic to
	// the external addresses and the node port, or to the cluster IP, goes to
	// LocalEndpoints instead of Endpoints.
	ExternalTrafficLocal, InternalTrafficLocal bool
	HealthCheckNodePort                        uint16
	// AffinityTimeout is 0 without session affinity, else whole seconds.
	AffinityTimeout time.Duration
	// Scheduler is the zero value where the Service leaves the choice to the mode.
	Scheduler Scheduler
	// Balancing is the zero value, too, where the Service leaves the choice to the mode.
	Balancing Balancing
	// SparePort is a port of the cluster IP that is none of the Service's, and
	// another one for each of its ports of one protocol. It is 0 unless a policy is
	// Local, when a mode may need one.
	SparePort uint16

	// Endpoints are those that new connections are to go to under the traffic
	// policy Cluster, without duplicates, in the order of their text form. They
	// are empty where nothing uses that policy.
	Endpoints []Endpoint
	// LocalEndpoints are those for the traffic policy Local, in the same way.
	LocalEndpoints []Endpoint
	// Usable is set where the Service has an endpoint to send connections to,
	// on this node or elsewhere: without one they are rejected; where it is set
	// and the policy leaves none, they are dropped.
	Usable bool
	// Known is how many endpoints there are, in whatever condition and on
	// whatever node.
	Known int
	// LocalReady are the distinct addresses of the ready endpoints on this
	// node. They are counted only for a HealthCheckNodePort.
	LocalReady []netip.Addr
	// Serving are the endpoints with which flows may go on, policies and
	// topology aside. They are listed only for UDP.
	Serving []netip.AddrPort
}

// ExternallyAccessible tells whether the port has an address outside the
// cluster.
func (s *ServicePort) ExternallyAccessible() bool {
	return s.NodePort != 0 || len(s.ExternalIPs)+len(s.LoadBalancerIPs) > 0
}

// UsesCluster tells whether any traffic goes to Endpoints. Where the policy is
// Local for external traffic, that of pods and of the node itself still does.
func (s *ServicePort) UsesCluster() bool {
	return !s.InternalTrafficLocal || s.ExternallyAccessible()
}

// UsesLocal tells whether any traffic goes to LocalEndpoints.
func (s *ServicePort) UsesLocal() bool {
	return s.InternalTrafficLocal || s.ExternalTrafficLocal && s.ExternallyAccessible()
}

// DropsInternal and DropsExternal tell whether traffic to the cluster IP, or to
// the external addresses, is dropped because its policy is Local and all
// endpoints are elsewhere.
func (s *ServicePort) DropsInternal() bool {
	return s.InternalTrafficLocal && s.Usable && len(s.LocalEndpoints) == 0
}

// DropsExternal is described at DropsInternal.
func (s *ServicePort) DropsExternal() bool {
	return s.ExternalTrafficLocal && s.ExternallyAccessible() && s.Usable && len(s.LocalEndpoints) == 0
}

// MayReachThemselves returns the endpoints that may reach themselves through the
// port on this node, with their own address, in order: the node's own, and where pods
// keep their address on the way to another node's address, those of other nodes, too.
func (s *ServicePort) MayReachThemselves() []netip.AddrPort {
	var out []netip.AddrPort
	foreign := s.ExternalTrafficLocal && s.ExternallyAccessible()
	for _, eps := range [][]Endpoint{s.Endpoints, s.LocalEndpoints} {
		for _, ep := range eps {
			if ep.Local || foreign {
				out = append(out, ep.AddrPort)
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out) // an endpoint may serve both policies
}

// Equal tells whether s and o ask for the same.
func (s *ServicePort) Equal(o *ServicePort) bool {
	return s.Name == o.Name && s.ClusterIP == o.ClusterIP && s.Port == o.Port && s.NodePort == o.NodePort &&
		slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) &&
		s.Restricted == o.Restricted && slices.Equal(s.SourceRanges, o.SourceRanges) &&
		s.ExternalTrafficLocal == o.ExternalTrafficLocal && s.InternalTrafficLocal == o.InternalTrafficLocal &&
		s.HealthCheckNodePort == o.HealthCheckNodePort && s.AffinityTimeout == o.AffinityTimeout &&
		s.Scheduler == o.Scheduler && s.Balancing == o.Balancing && s.SparePort == o.SparePort &&
		slices.Equal(s.Endpoints, o.Endpoints) && slices.Equal(s.LocalEndpoints, o.LocalEndpoints) &&
		s.Usable == o.Usable && s.Known == o.Known && slices.Equal(s.LocalReady, o.LocalReady) && slices.Equal(s.Serving, o.Serving)
}

// Endpoint is one endpoint of a ServicePort.
type Endpoint struct {
	AddrPort netip.AddrPort
	// Local is set where the endpoint runs on this node.
	Local bool
}
