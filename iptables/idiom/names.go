// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"crypto/sha256"
	"encoding/base32"

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

	// MarkOutside has no counterpart in kube-proxy, which takes one pod CIDR
	// per family.
	MarkOutside = "KUBE-MARK-MASQ-OUTSIDE"
)

// HashName returns a chain name: the prefix and 16 characters of the hash.
func HashName(prefix, input string) string {
	sum := sha256.Sum256([]byte(input))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
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
