// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"crypto/sha256"
	"encoding/base32"
	"slices"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// The names of chains are kube-proxy's.
const (
	Services         = "KUBE-SERVICES"
	ExternalServices = "KUBE-EXTERNAL-SERVICES"
	NodePorts        = "KUBE-NODEPORTS"
	Forward          = "KUBE-FORWARD"
	ProxyFirewall    = "KUBE-PROXY-FIREWALL"

	ServicePrefix  = "KUBE-SVC-"
	ExternalPrefix = "KUBE-EXT-"
	LocalPrefix    = "KUBE-SVL-"
	FirewallPrefix = "KUBE-FW-"
	EndpointPrefix = "KUBE-SEP-"

	// Those of IPVS mode alone.
	NodePort      = "KUBE-NODE-PORT"
	IPVSFilter    = "KUBE-IPVS-FILTER"
	IPVSOutFilter = "KUBE-IPVS-OUT-FILTER"
	SourceRanges  = "KUBE-SOURCE-RANGES-FIREWALL"
	loadBalancer  = "KUBE-LOAD-BALANCER" // of kube-proxy's alone
	// Those are not among kube-proxy's.
	External   = "KUBE-EXTERNAL"
	IPVSAccept = "KUBE-IPVS-ACCEPT"
	Neighbours = "KUBE-NEIGHBOURS"
	// Traffic counts packets to Services, in table mangle.
	Traffic = "KUBE-TRAFFIC"
	// AddressPrefix is of chains that translate external IPs.
	AddressPrefix = "KUBE-XIP-"
	// IPVSAccess is the comment of what leads to the two filters.
	IPVSAccess = "kubernetes ipvs access filter"

	// MarkOutside has no counterpart in kube-proxy, which takes one pod CIDR
	// per family.
	MarkOutside = "KUBE-MARK-MASQ-OUTSIDE"
)

// Owned lists all chains that a mode of ours, or kube-proxy's with iptables or IPVS,
// may ever write: a mode takes over what another one has left.
func Owned() []ruleset.ChainKey {
	return slices.Concat(
		keys(ruleset.NAT,
			Services, NodePorts, MarkOutside, ServicePrefix+"*", LocalPrefix+"*",
			ExternalPrefix+"*", FirewallPrefix+"*", EndpointPrefix+"*",
			NodePort, External, AddressPrefix+"*", loadBalancer, Neighbours),
		keys(ruleset.Filter,
			Services, ExternalServices, NodePorts, Forward, ProxyFirewall,
			ServicePrefix+"*", ExternalPrefix+"*", FirewallPrefix+"*", "KUBE-HC-*",
			NodePort, IPVSFilter, IPVSOutFilter, IPVSAccept, SourceRanges),
		keys(ruleset.Mangle, ProxyFirewall, SourceRanges, Traffic))
}

// NewOnly matches the first packet of a connection.
const NewOnly = "-m conntrack --ctstate NEW "

// Jump returns a jump from a built-in chain to one of a mode's, told by its comment.
func Jump(t ruleset.Table, from, match, comment, to string) ruleset.Jump {
	return ruleset.Jump{
		ChainKey: ruleset.ChainKey{Table: t, Name: from},
		Rule:     ruleset.Rule(match + Commented(comment) + "-j " + to),
	}
}

// Former lists the jumps to chains of Owned that modes make, or have made.
func Former() []ruleset.Jump {
	const newOnly = NewOnly
	var out []ruleset.Jump
	jump := func(t ruleset.Table, match, comment, to string, from ...string) {
		for _, f := range from {
			out = append(out, Jump(t, f, match, comment, to))
		}
	}
	// Those of iptables mode.
	const firewall = "kubernetes load balancer firewall"
	jump(ruleset.Filter, newOnly, firewall, ProxyFirewall, "INPUT", "FORWARD", "OUTPUT")
	jump(ruleset.Filter, "", "kubernetes health check service ports", NodePorts, "INPUT")
	jump(ruleset.Filter, newOnly, "kubernetes service portals", Services, "FORWARD", "OUTPUT")
	jump(ruleset.Filter, newOnly, "kubernetes externally-visible service portals", ExternalServices, "INPUT", "FORWARD")
	out = append(out, CountTraffic()...)
	// Those of IPVS mode, kube-proxy's among them.
	jump(ruleset.Mangle, newOnly, firewall, ProxyFirewall, "PREROUTING", "OUTPUT")
	jump(ruleset.Filter, "", "kubernetes health check rules", NodePort, "INPUT")
	jump(ruleset.Filter, "", "kube-proxy firewall rules", ProxyFirewall, "INPUT", "FORWARD")
	for _, match := range []string{"", newOnly} {
		jump(ruleset.Filter, match, IPVSAccess, IPVSFilter, "INPUT")
		jump(ruleset.Filter, match, IPVSAccess, IPVSOutFilter, "OUTPUT")
	}
	return append(out, AcceptIPVS(), ViaIPVS("KUBE-LOOP-BACK"), ViaIPVS("KUBE-6-LOOP-BACK"))
}

// CountTraffic lists the jumps to what counts packets to Services.
func CountTraffic() (out []ruleset.Jump) {
	for _, from := range []string{"PREROUTING", "OUTPUT"} {
		out = append(out, Jump(ruleset.Mangle, from, "", "kubernetes service traffic", Traffic))
	}
	return out
}

// AcceptIPVS is the jump to what accepts the packets that IPVS is to have, where
// nobody has dropped them.
func AcceptIPVS() ruleset.Jump {
	j := Jump(ruleset.Filter, "INPUT", "", "kubernetes ipvs forwarding rules", IPVSAccept)
	j.Last = true
	return j
}

// ViaIPVS is the jump to what masquerades packets that IPVS has sent to an endpoint in
// a set of those that may reach themselves, which are the node's own.
func ViaIPVS(set string) ruleset.Jump {
	more := "-m ipvs --ipvs -m set --match-set " + set + " dst,dst,dst "
	return ruleset.Jump{
		ChainKey: ruleset.ChainKey{Table: ruleset.NAT, Name: "POSTROUTING"},
		Rule:     Spec{Comment: "kubernetes pods on one bridge", More: more}.Jump(Neighbours).Rule(),
	}
}

// Relics lists kube-proxy's chains that mean nothing to us. While kube-proxy
// runs beside us, as in a rolling replacement, it takes the loss of one for the
// loss of all its rules.
func Relics() []ruleset.ChainKey {
	const canary = "KUBE-PROXY-CANARY"
	return []ruleset.ChainKey{{Table: ruleset.Mangle, Name: canary}, {Table: ruleset.NAT, Name: canary}, {Table: ruleset.Filter, Name: canary}}
}

// HashName returns a chain name: the prefix and 16 characters of the hash.
func HashName(prefix, input string) string {
	sum := sha256.Sum256([]byte(input))
	var text [16]byte
	base32.StdEncoding.Encode(text[:], sum[:10])
	return prefix + string(text[:])
}

// PortChain returns the name of a chain of one port.
func PortChain(prefix string, n model.ServicePortName) string {
	return HashName(prefix, n.String()+n.Protocol.Lower())
}

// UnitOf returns the name of what belongs to a port, in the engine.
func UnitOf(n model.ServicePortName) string { return n.String() + "/" + n.Protocol.Lower() }

// ProtocolNumber returns a protocol's number in IP.
func ProtocolNumber(p model.Protocol) uint8 {
	return map[model.Protocol]uint8{model.TCP: 6, model.UDP: 17, model.SCTP: 132}[p]
}
