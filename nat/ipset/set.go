// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MinMaxElem is how many elements a set is made for, if it need not be more. It is
// the number of kube-proxy's sets, which can so be taken over, and handed back. The
// kernel's table starts small and grows as elements come; this is but its bound.
const MinMaxElem = 65536

// ErrAnotherKind is why a set cannot be used that has the right name.
var ErrAnotherKind = errors.New("there is a set of another kind with this name")

// ErrBusy is why a set cannot be removed that a rule names.
const ErrBusy = nl.IPSetError(nl.IPSET_ERR_BUSY)

// errFull is the kernel's word for a set that has as many elements as it takes
// (IPSET_ERR_HASH_FULL in linux/netfilter/ipset/ip_set_hash.h).
const errFull = nl.IPSetError(nl.IPSET_ERR_TYPE_SPECIFIC)

// batchSize is how many elements go into one message, whose nested part has room
// for 64 kB; an element takes at most 76 bytes.
const batchSize = 800

// revisions are those of the types that have SCTP, or else the first.
var revisions = map[Type]uint8{HashIP: 0, HashIPPort: 1, HashIPPortIP: 1, HashIPPortNet: 2, BitmapPort: 0, HashNet: 0}

// Set is a set of one family whose elements its owner adds and removes, in the
// network namespace of the thread that calls its methods.
type Set struct {
	name   string
	typ    Type
	family uint8
	// counts is set where the kernel counts for each element what rules have matched.
	counts bool
}

// Counted is an element, and how many packets and bytes rules have matched by it.
type Counted struct {
	Element
	Packets, Bytes uint64
}

// NewSet returns the set of a name, which may not be there.
func NewSet(name string, typ Type, ipv6 bool) *Set {
	return &Set{name: name, typ: typ, family: New(ipv6).family}
}

// NewCountingSet returns the set of a name, which may not be there, that counts for each
// element what rules match by it. Elements begin at 0, also when the set grows.
func NewCountingSet(name string, typ Type, ipv6 bool) *Set {
	s := NewSet(name, typ, ipv6)
	s.counts = true
	return s
}

// Counts returns what is in a set that counts, with what it has counted; none where there
// is no set.
func (s *Set) Counts() (out []Counted, err error) {
	msgs, err := s.dump(0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	for _, m := range msgs {
		out = appendCounted(out, m)
	}
	return out, err
}

// Name returns the name of the set.
func (s *Set) Name() string { return s.name }

// List returns what is in the set; found is false where there is no set. It fails
// with ErrAnotherKind where a set of another type or family has the name.
func (s *Set) List() (in []Element, found bool, err error) {
	msgs, err := s.dump(0)
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, m := range msgs {
		in = appendElements(in, m)
	}
	return in, true, nil
}

// dump reads the set, and checks that it is of the right kind.
func (s *Set) dump(flags uint32) (msgs [][]byte, err error) {
	msgs, err = dump(func(req *nl.NetlinkRequest) {
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(s.name)))
		req.AddData(number(nl.IPSET_ATTR_FLAGS, flags))
	})
	for _, m := range msgs {
		if h := parse(m); err == nil && h.typeName != "" && !s.is(h) {
			err = ErrAnotherKind
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list set %s: %w", s.name, named(err))
	}
	return msgs, nil
}

// is tells whether a set that is there can be this one.
func (s *Set) is(h header) bool {
	return h.typeName == string(s.typ) && (h.family == s.family || s.typ == BitmapPort) && !h.timeout && (h.counts || !s.counts)
}

// Create makes the set, with room for at least as many elements as size says. One
// that is there and of the same kind stays as it is, whatever its size.
func (s *Set) Create(size int) error {
	err := s.create(size)
	if err == nil || errors.Is(err, unix.EEXIST) {
		_, err = s.dump(listHeader)
	}
	return err
}

func (s *Set) create(size int) error {
	req := request(nl.IPSET_CMD_CREATE)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(s.name)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(string(s.typ))))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(revisions[s.typ])))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(s.family)))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	if s.typ == BitmapPort {
		data.AddRtAttr(nl.IPSET_ATTR_PORT_FROM|int(nl.NLA_F_NET_BYTEORDER), []byte{0, 0})
		data.AddRtAttr(nl.IPSET_ATTR_PORT_TO|int(nl.NLA_F_NET_BYTEORDER), []byte{0xff, 0xff})
	} else {
		data.AddChild(number(nl.IPSET_ATTR_MAXELEM, maxElem(size)))
	}
	if s.counts {
		data.AddChild(number(nl.IPSET_ATTR_CADT_FLAGS, nl.IPSET_FLAG_WITH_COUNTERS))
	}
	req.AddData(data)
	return execute(req, "create", s.name)
}

// maxElem returns the bound of a set that is to have room for size elements: a
// power of two, so that a set that grows is seldom too small again.
func maxElem(size int) uint32 {
	n := uint32(MinMaxElem)
	for int64(n) < int64(size) && n < 1<<31 {
		n *= 2
	}
	return n
}

// Add adds elements, many in one message; some may be there already. After an
// error some may be. Where the set has no room for them all, one with more takes its
// name, and its place in the rules that name it, in one step.
func (s *Set) Add(elements ...Element) error {
	err := s.change(nl.IPSET_CMD_ADD, "add to", elements)
	if errors.Is(err, errFull) {
		return s.grow(elements)
	}
	return err
}

// Remove removes elements, many in one message; some may not be there. After an
// error some may be.
func (s *Set) Remove(elements ...Element) error {
	return s.change(nl.IPSET_CMD_DEL, "remove from", elements)
}

// Destroy removes the set, if it is there. It fails as Sets.Destroy does.
func (s *Set) Destroy() error {
	return errors.Join(destroy(s.spare().name), destroy(s.name))
}

func (s *Set) change(cmd int, verb string, elements []Element) error {
	for batch := range slices.Chunk(elements, batchSize) {
		req := request(cmd)
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(s.name)))
		req.AddData(number(nl.IPSET_ATTR_LINENO, 0)) // which the kernel asks for with several elements
		var all []byte
		for _, e := range batch {
			all = appendElement(all, s.typ, e)
		}
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_ADT|nested, all))
		if err := execute(req, verb, s.name); err != nil {
			return err
		}
	}
	return nil
}

// grow puts a set with more room, and with more elements, in the place of this one.
func (s *Set) grow(more []Element) error {
	in, _, err := s.List()
	if err != nil {
		return err
	}
	in = append(in, more...)
	spare := s.spare()
	if err := destroy(spare.name); err != nil { // an earlier process may have left it
		return err
	}
	if err := spare.create(len(in)); err != nil {
		return err
	}
	err = spare.change(nl.IPSET_CMD_ADD, "add to", in)
	if err == nil {
		err = swap(spare.name, s.name)
	}
	return errors.Join(err, destroy(spare.name))
}

// spare returns the set that is to take the place of this one. Its name is like
// this one's as far as there is room.
func (s *Set) spare() *Set {
	h := fnv.New32a()
	h.Write([]byte(s.name))
	out := *s
	out.name = fmt.Sprintf("%.21s~%08x", s.name, h.Sum32())
	return &out
}

// swap exchanges the names of two sets of one kind.
func swap(a, b string) error {
	req := request(nl.IPSET_CMD_SWAP)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(a)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME2, nl.ZeroTerminated(b)))
	return execute(req, "swap for "+b+" the", a)
}
