// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Loop is an endpoint that may reach itself: of a set of destinations and
// sources, the element that has the endpoint's address as both.
type Loop struct {
	// Protocol is a number of IP, IPPROTO_TCP for example.
	Protocol uint8
	AddrPort netip.AddrPort
}

// MaxLoops is how many elements a set of Loops takes: more than the pods of a node
// have ports. It is also the number in the set of that kind which kube-proxy's
// IPVS mode leaves, so that this can be taken over. The kernel's table starts small
// and grows as elements come, as nothing but netlink adds any.
const MaxLoops = 65536

const (
	loopsType = "hash:ip,port,ip"
	// loopsRevision is that of the type which brought SCTP, in Linux 2.6.39.
	loopsRevision = 1
	// batchSize is how many elements go into one message, whose nested part has
	// room for 64 kB; an element takes at most 68 bytes.
	batchSize = 500
)

// ErrAnotherKind is why a set cannot be used that has the right name.
var ErrAnotherKind = errors.New("there is a set of another kind with this name")

// Loops is a set of endpoints of one family, in the network namespace of the
// thread that calls its methods.
type Loops struct {
	name   string
	family uint8
}

// NewLoops returns the set of a name, which may not be there.
func NewLoops(name string, ipv6 bool) *Loops {
	return &Loops{name: name, family: New(ipv6).family}
}

// Name returns the name of the set.
func (l *Loops) Name() string { return l.name }

// List returns what is in the set; found is false where there is no set. Elements
// of two addresses, which somebody else must have added, are left out.
func (l *Loops) List() (in []Loop, found bool, err error) {
	var msgs [][]byte
	err = error(nl.ErrDumpInterrupted)
	for tries := 0; tries < 10 && errors.Is(err, nl.ErrDumpInterrupted); tries++ {
		req := request(nl.IPSET_CMD_LIST)
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(l.name)))
		msgs, err = req.Execute(unix.NETLINK_NETFILTER, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list set %s: %w", l.name, named(err))
	}
	for _, m := range msgs {
		if h := parse(m); h.typeName != "" && (h.typeName != loopsType || h.family != l.family) {
			return nil, false, fmt.Errorf("list set %s: %w", l.name, ErrAnotherKind)
		}
		in = append(in, loopsIn(m)...)
	}
	return in, true, nil
}

// Create makes the set. One that is there and would be the same stays as it is; of
// what family it is the kernel does not look at, but List does.
func (l *Loops) Create() error {
	req := request(nl.IPSET_CMD_CREATE)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(l.name)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(loopsType)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(loopsRevision)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(l.family)))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddChild(number(nl.IPSET_ATTR_MAXELEM, MaxLoops))
	req.AddData(data)
	return execute(req, "create", l.name)
}

// Add adds elements; some may be there already. After an error some may be.
func (l *Loops) Add(loops ...Loop) error { return l.change(nl.IPSET_CMD_ADD, "add to", loops) }

// Remove removes elements; some may not be there.
func (l *Loops) Remove(loops ...Loop) error {
	return l.change(nl.IPSET_CMD_DEL, "remove from", loops)
}

// Destroy removes the set, if it is there. It fails as Sets.Destroy does.
func (l *Loops) Destroy() error { return (&Sets{family: l.family}).Destroy(l.name) }

func (l *Loops) change(cmd int, verb string, loops []Loop) error {
	for batch := range slices.Chunk(loops, batchSize) {
		req := request(cmd)
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(l.name)))
		req.AddData(number(nl.IPSET_ATTR_LINENO, 0)) // which the kernel asks for with several elements
		all := nl.NewRtAttr(nl.IPSET_ATTR_ADT|int(nl.NLA_F_NESTED), nil)
		for _, e := range batch {
			all.AddChild(e.data())
		}
		req.AddData(all)
		if err := execute(req, verb, l.name); err != nil {
			return err
		}
	}
	return nil
}

// data returns the attributes of an element.
func (e Loop) data() *nl.RtAttr {
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	kind := nl.IPSET_ATTR_IPADDR_IPV6
	if e.AddrPort.Addr().Is4() {
		kind = nl.IPSET_ATTR_IPADDR_IPV4
	}
	for _, attr := range []int{nl.IPSET_ATTR_IP, nl.IPSET_ATTR_IP2} {
		ip := nl.NewRtAttr(attr|int(nl.NLA_F_NESTED), nil)
		ip.AddRtAttr(kind|int(nl.NLA_F_NET_BYTEORDER), e.AddrPort.Addr().AsSlice())
		data.AddChild(ip)
	}
	data.AddRtAttr(nl.IPSET_ATTR_PROTO, nl.Uint8Attr(e.Protocol))
	data.AddRtAttr(nl.IPSET_ATTR_PORT|int(nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint16(nil, e.AddrPort.Port()))
	return data
}

// loopsIn returns the elements in a message.
func loopsIn(msg []byte) []Loop {
	var out []Loop
	for _, a := range attributes(msg[min(len(msg), nl.SizeofNfgenmsg):]) {
		if a.Attr.Type&nl.NLA_TYPE_MASK != nl.IPSET_ATTR_ADT {
			continue
		}
		for _, d := range attributes(a.Value) {
			if e, ok := parseLoop(d.Value); ok {
				out = append(out, e)
			}
		}
	}
	return out
}

// parseLoop reads an element. ok is false where its addresses are two.
func parseLoop(b []byte) (_ Loop, ok bool) {
	var e Loop
	var dst, src netip.Addr
	var port uint16
	for _, a := range attributes(b) {
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case nl.IPSET_ATTR_IP:
			dst = parseAddr(a.Value)
		case nl.IPSET_ATTR_IP2:
			src = parseAddr(a.Value)
		case nl.IPSET_ATTR_PROTO:
			e.Protocol = a.Value[0]
		case nl.IPSET_ATTR_PORT:
			if len(a.Value) == 2 {
				port = binary.BigEndian.Uint16(a.Value)
			}
		}
	}
	e.AddrPort = netip.AddrPortFrom(dst, port)
	return e, dst.IsValid() && dst == src
}

// parseAddr reads a nested address, invalid if it is none.
func parseAddr(b []byte) netip.Addr {
	var out netip.Addr
	for _, a := range attributes(b) {
		out, _ = netip.AddrFromSlice(a.Value)
	}
	return out
}
