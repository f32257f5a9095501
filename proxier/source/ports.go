// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// Reasons for which a port is refused.
const (
	reasonProtocol   = "is not one of TCP, UDP and SCTP"
	reasonPort       = "is not a port number (1 to 65535)"
	reasonSameName   = "is the name of an earlier port of the same protocol"
	reasonSameNumber = "is the number of an earlier port of the same protocol"
)

// portList collects the ports of one object and keeps them free of
// duplicates: the first of several wins.
type portList struct {
	refused *refusals
	// uniqueNumbers tells that no two ports may have the same number and
	// protocol. In a Service each would be the same destination; in an
	// EndpointSlice two names for one number are in order.
	uniqueNumbers bool

	ports   []model.Port
	names   map[nameKey]struct{}
	numbers map[numberKey]struct{}
}

type nameKey struct {
	name     string
	protocol model.Protocol
}

type numberKey struct {
	number   uint16
	protocol model.Protocol
}

func newPortList(refused *refusals, uniqueNumbers bool, size int) *portList {
	l := &portList{refused: refused, uniqueNumbers: uniqueNumbers, ports: make([]model.Port, 0, size)}
	if size > 1 {
		l.names = make(map[nameKey]struct{}, size)
		l.numbers = make(map[numberKey]struct{}, size)
	}
	return l
}

// add takes the port at the path field ("spec.ports[0]"), or refuses it. An
// empty protocol is TCP, the API's default.
func (l *portList) add(field, name string, protocol corev1.Protocol, number int32) {
	proto := model.Protocol(protocol)
	switch proto {
	case "":
		proto = model.TCP
	case model.TCP, model.UDP, model.SCTP:
	default:
		l.refused.add(field+".protocol", string(protocol), reasonProtocol)
		return
	}
	if name != "" && !isLabel(name) {
		l.refused.add(field+".name", name, reasonLabel)
		return
	}
	if number < 1 || number > 65535 {
		l.refused.add(field+".port", strconv.Itoa(int(number)), reasonPort)
		return
	}
	port := model.Port{Name: name, Protocol: proto, Number: uint16(number)}
	if l.isDuplicate(field, port) {
		return
	}
	l.ports = append(l.ports, port)
}

// isDuplicate refuses the port where an earlier one stands in its way, and
// otherwise remembers it.
func (l *portList) isDuplicate(field string, p model.Port) bool {
	if l.names == nil {
		return false
	}
	byName := nameKey{p.Name, p.Protocol}
	if _, taken := l.names[byName]; taken {
		l.refused.add(field+".name", p.Name, reasonSameName)
		return true
	}
	byNumber := numberKey{p.Number, p.Protocol}
	if _, taken := l.numbers[byNumber]; taken && l.uniqueNumbers {
		l.refused.add(field+".port", strconv.Itoa(int(p.Number)), reasonSameNumber)
		return true
	}
	l.names[byName] = struct{}{}
	l.numbers[byNumber] = struct{}{}
	return false
}
