// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"

	"fairlead/iptables/idiom"
	"fairlead/proxier/model"
)

// Chain names are kube-proxy's, so that people and tools that know those find
// their way, and so that taking over from kube-proxy, and handing back, is a
// matter of small differences.
const (
	services         = idiom.Services
	externalServices = idiom.ExternalServices
	nodePorts        = idiom.NodePorts
	forward          = idiom.Forward
	proxyFirewall    = idiom.ProxyFirewall

	servicePrefix  = idiom.ServicePrefix
	localPrefix    = idiom.LocalPrefix
	externalPrefix = idiom.ExternalPrefix
	firewallPrefix = idiom.FirewallPrefix
	endpointPrefix = idiom.EndpointPrefix
	healthPrefix   = "KUBE-HC-" // not among kube-proxy's
)

// serviceChain returns the name of the chain that chooses an endpoint under the
// traffic policy Cluster.
func serviceChain(n model.ServicePortName) string { return idiom.PortChain(servicePrefix, n) }

// localChain returns the name of the chain that chooses an endpoint under the
// traffic policy Local.
func localChain(n model.ServicePortName) string { return idiom.PortChain(localPrefix, n) }

// externalChain returns the name of the chain for traffic from outside.
func externalChain(n model.ServicePortName) string { return idiom.PortChain(externalPrefix, n) }

// firewallChain returns the name of the chain that admits source ranges.
func firewallChain(n model.ServicePortName) string { return idiom.PortChain(firewallPrefix, n) }

// endpointChain returns the name of the chain that translates to an endpoint.
func endpointChain(n model.ServicePortName, ep netip.AddrPort) string {
	return idiom.HashName(endpointPrefix, n.String()+n.Protocol.Lower()+ep.String())
}
