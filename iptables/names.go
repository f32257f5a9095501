// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// Chain names are kube-proxy's, so that people and tools that know those find
// their way, and so that taking over from kube-proxy, and handing back, is a
// matter of small differences.
const (
	services         = "KUBE-SERVICES"
	externalServices = "KUBE-EXTERNAL-SERVICES"
	nodePorts        = "KUBE-NODEPORTS"
	forward          = "KUBE-FORWARD"
	proxyFirewall    = "KUBE-PROXY-FIREWALL"
	canary           = "KUBE-PROXY-CANARY"
	kubeFirewall     = "KUBE-FIREWALL" // kubelet's too

	servicePrefix  = "KUBE-SVC-"
	localPrefix    = "KUBE-SVL-"
	externalPrefix = "KUBE-EXT-"
	firewallPrefix = "KUBE-FW-"
	endpointPrefix = "KUBE-SEP-"
	healthPrefix   = "KUBE-HC-" // not among kube-proxy's

	// markOutside has no counterpart in kube-proxy, which takes one pod CIDR
	// per family.
	markOutside = "KUBE-MARK-MASQ-OUTSIDE"
)

// hashName returns a chain name: the prefix and 16 characters of the hash.
func hashName(prefix, input string) string {
	sum := sha256.Sum256([]byte(input))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func portChain(prefix string, n model.ServicePortName) string {
	return hashName(prefix, n.String()+n.Protocol.Lower())
}

// serviceChain returns the name of the chain that chooses an endpoint under the
// traffic policy Cluster.
func serviceChain(n model.ServicePortName) string { return portChain(servicePrefix, n) }

// localChain returns the name of the chain that chooses an endpoint under the
// traffic policy Local.
func localChain(n model.ServicePortName) string { return portChain(localPrefix, n) }

// externalChain returns the name of the chain for traffic from outside.
func externalChain(n model.ServicePortName) string { return portChain(externalPrefix, n) }

// firewallChain returns the name of the chain that admits source ranges.
func firewallChain(n model.ServicePortName) string { return portChain(firewallPrefix, n) }

// endpointChain returns the name of the chain that translates to an endpoint.
func endpointChain(n model.ServicePortName, ep netip.AddrPort) string {
	return hashName(endpointPrefix, n.String()+n.Protocol.Lower()+ep.String())
}

// relics lists kube-proxy's chains that mean nothing to us. While kube-proxy
// runs beside us, as in a rolling replacement, it takes the loss of one for the
// loss of all its rules.
func relics() []ruleset.ChainKey {
	return []ruleset.ChainKey{{Table: ruleset.Mangle, Name: canary}, {Table: ruleset.NAT, Name: canary}, {Table: ruleset.Filter, Name: canary}}
}

// owned lists all chains that this mode may ever write.
func owned() []ruleset.ChainKey {
	var keys []ruleset.ChainKey
	for table, names := range map[ruleset.Table][]string{
		ruleset.NAT: {
			services, nodePorts, markOutside, servicePrefix + "*", localPrefix + "*",
			externalPrefix + "*", firewallPrefix + "*", endpointPrefix + "*",
		},
		ruleset.Filter: {
			services, externalServices, nodePorts, forward, proxyFirewall,
			servicePrefix + "*", externalPrefix + "*", firewallPrefix + "*", healthPrefix + "*",
		},
	} {
		for _, name := range names {
			keys = append(keys, ruleset.ChainKey{Table: table, Name: name})
		}
	}
	return keys
}
