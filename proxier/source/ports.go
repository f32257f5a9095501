// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
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
	reasonSameNode   = "is the node port of an earlier port of the same protocol"
)

// portList collects the ports of one object and keeps them free of
// duplicates: the first of several wins.
type portList struct {
	refused *refusals
	// field is the path of the list in the object ("spec.ports").
	field string
	// uniqueNumbers tells that no two ports may have the same number and
	// protocol. In a Service each would be the same destination; in an
	// EndpointSlice two names for one number are in order.
	uniqueNumbers bool

	ports     []model.Port
	names     map[nameKey]struct{}
	numbers   map[numberKey]struct{}
	nodePorts map[numberKey]struct{}
}

type nameKey struct {
	name     string
	protocol model.Protocol
}

type numberKey struct {
	number   uint16
	protocol model.Protocol
}

// rawPort is a port as the object has it.
type rawPort struct {
	name             string
	protocol         corev1.Protocol
	number, nodePort int32
}

func newPortList(refused *refusals, field string, uniqueNumbers bool, size int) *portList {
	l := &portList{refused: refused, field: field, uniqueNumbers: uniqueNumbers, ports: make([]model.Port, 0, size)}
	if size > 1 {
		l.names = make(map[nameKey]struct{}, size)
		if uniqueNumbers {
			l.numbers = make(map[numberKey]struct{}, size)
		}
	}
	return l
}

// add takes the i-th port of the list, or refuses it. An empty protocol is TCP,
// the API's default.
func (l *portList) add(i int, in rawPort) {
	proto := model.Protocol(in.protocol)
	switch proto {
	case "":
		proto = model.TCP
	case model.TCP, model.UDP, model.SCTP:
	default:
		l.refuse(i, "protocol", string(in.protocol), reasonProtocol)
		return
	}
	if in.name != "" && !isLabel(in.name) {
		l.refuse(i, "name", in.name, reasonLabel)
		return
	}
	if in.number < 1 || in.number > 65535 {
		l.refuse(i, "port", strconv.Itoa(int(in.number)), reasonPort)
		return
	}
	port := model.Port{Name: intern(in.name), Protocol: model.Protocol(intern(string(proto))), Number: uint16(in.number)}
	if l.isDuplicate(i, port) {
		return
	}
	port.NodePort = l.nodePort(i, proto, in.nodePort)
	l.ports = append(l.ports, port)
}

func (l *portList) refuse(i int, field, value, reason string) {
	l.refused.add(fmt.Sprintf("%s[%d].%s", l.field, i, field), value, reason)
}

// isDuplicate refuses the port where an earlier one stands in its way, and
// otherwise remembers it.
func (l *portList) isDuplicate(i int, p model.Port) bool {
	if l.names == nil {
		return false
	}
	byName := nameKey{p.Name, p.Protocol}
	if _, taken := l.names[byName]; taken {
		l.refuse(i, "name", p.Name, reasonSameName)
		return true
	}
	if l.uniqueNumbers {
		byNumber := numberKey{p.Number, p.Protocol}
		if _, taken := l.numbers[byNumber]; taken {
			l.refuse(i, "port", strconv.Itoa(int(p.Number)), reasonSameNumber)
			return true
		}
		l.numbers[byNumber] = struct{}{}
	}
	l.names[byName] = struct{}{}
	return false
}

// nodePort returns the node port of the i-th port. One that is refused is none:
// the port works at the Service's addresses.
func (l *portList) nodePort(i int, protocol model.Protocol, number int32) uint16 {
	if number == 0 {
		return 0
	}
	if number < 0 || number > 65535 {
		l.refuse(i, "nodePort", strconv.Itoa(int(number)), reasonPort)
		return 0
	}
	key := numberKey{uint16(number), protocol}
	if _, taken := l.nodePorts[key]; taken {
		l.refuse(i, "nodePort", strconv.Itoa(int(number)), reasonSameNode)
		return 0
	}
	if l.nodePorts == nil {
		l.nodePorts = map[numberKey]struct{}{}
	}
	l.nodePorts[key] = struct{}{}
	return key.number
}
