// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// The chains that Services share.
var (
	natServices    = ruleset.ChainKey{Table: ruleset.NAT, Name: services}
	natNodePorts   = ruleset.ChainKey{Table: ruleset.NAT, Name: nodePorts}
	filterServices = ruleset.ChainKey{Table: ruleset.Filter, Name: services}
	filterExternal = ruleset.ChainKey{Table: ruleset.Filter, Name: externalServices}
	filterFirewall = ruleset.ChainKey{Table: ruleset.Filter, Name: proxyFirewall}
	filterHealth   = ruleset.ChainKey{Table: ruleset.Filter, Name: nodePorts}
)

// The portals, in the order in which those of one chain are in it.
const (
	translatedAddrs  = iota // addresses that are translated
	translatedPorts         // node ports that are
	refusedClusterIP        // cluster IPs that are rejected or dropped
	refusedExternal         // external addresses that are
	refusedPorts            // node ports that are
	guardedAddrs            // load balancers' addresses with source ranges
	healthPorts             // health check node ports
)

// portals returns the portals, none of which has anything yet.
func portals(f model.Family) *idiom.Portals {
	return idiom.NewPortals(f, portalKinds()...)
}

// portalKinds returns what the portals are. The names of the chains below the root
// start as chains do that kube-proxy removes in its clean-up, in table nat.
func portalKinds() []idiom.Portal {
	return []idiom.Portal{
		translatedAddrs:  {Root: natServices, Prefix: servicePrefix},
		translatedPorts:  {Root: natNodePorts, Prefix: servicePrefix, Ports: true},
		refusedClusterIP: {Root: filterServices, Prefix: servicePrefix},
		refusedExternal:  {Root: filterExternal, Prefix: externalPrefix},
		refusedPorts:     {Root: filterExternal, Prefix: externalPrefix, Ports: true, Match: idiom.ToNode},
		guardedAddrs:     {Root: filterFirewall, Prefix: firewallPrefix},
		healthPorts:      {Root: filterHealth, Prefix: healthPrefix, Ports: true},
	}
}
