// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"slices"
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
// address family.
type ServicePort struct {
	Name      ServicePortName
	ClusterIP netip.Addr
	Port      uint16
	// Endpoints are those that new connections are to go to, without
	// duplicates, in the order of their text form.
	Endpoints []Endpoint
}

// Equal tells whether s and o ask for the same.
func (s *ServicePort) Equal(o *ServicePort) bool {
	return s.Name == o.Name && s.ClusterIP == o.ClusterIP && s.Port == o.Port &&
		slices.Equal(s.Endpoints, o.Endpoints)
}

// Endpoint is one endpoint of a ServicePort.
type Endpoint struct {
	AddrPort netip.AddrPort
	// Local is set where the endpoint runs on this node.
	Local bool
}
