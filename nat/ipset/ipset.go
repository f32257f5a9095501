// SPDX-License-Identifier: Apache-2.0

// Package ipset makes, fills and removes sets over netlink. Sets are those of client
// addresses, each of which stays for a time: rules match and fill them, and nothing
// here ever adds an address. A Set is of what its owner says: rules match it alone.
package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The size of a set. Rules cannot make its hash table grow, as the ipset
// command does: an address that falls into a full bucket, one of 12, is not
// taken (mtype_add in net/netfilter/ipset/ip_set_hash_gen.h). So the table has
// its size from the start, and takes 32 kB of kernel memory while it is empty.
//
// With 2048 buckets, 8,000 clients practically all find room, and of 16,000, near
// the bound, all but 1 or 2 in 100. From there on a new client takes the place
// of another in its bucket (forceadd). A full set takes 0.7 MB. Without a bound,
// packets with forged sources would take what they want.
const (
	HashSize = 2048
	MaxElem  = 16384
)

const (
	typeName = "hash:ip"
	// revision is that of the type which brought forceadd, in Linux 3.14.
	revision = 3
	// timeout, in seconds, is for addresses that no rule adds with a time of
	// its own. The kernel looks for what has expired three times in this time,
	// or at least every 3 minutes: with 0, which would mean forever, it would do
	// so every second.
	timeout = 10800
)

// listHeader asks for sets without their addresses (IPSET_FLAG_LIST_HEADER in
// linux/netfilter/ipset/ip_set.h).
const listHeader = 1 << 2

// Sets are the sets of one family in the network namespace of the thread that
// calls its methods.
type Sets struct{ family uint8 }

// New returns the sets of a family.
func New(ipv6 bool) *Sets {
	if ipv6 {
		return &Sets{family: unix.AF_INET6}
	}
	return &Sets{family: unix.AF_INET}
}

// List returns the names of all sets of the kind that Create makes, of whatever
// size, and whoever made them.
func (s *Sets) List() ([]string, error) {
	msgs, err := dump(func(req *nl.NetlinkRequest) { req.AddData(number(nl.IPSET_ATTR_FLAGS, listHeader)) })
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", named(err))
	}
	var out []string
	for _, m := range msgs {
		if h := parse(m); h.typeName == typeName && h.family == s.family && h.timeout {
			out = append(out, h.name)
		}
	}
	return out, nil
}

// Create makes a set. A set of that name that would be the same is left as it
// is, with its addresses.
func (s *Sets) Create(name string) error {
	req := request(nl.IPSET_CMD_CREATE)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(typeName)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(revision)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(s.family)))
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddChild(number(nl.IPSET_ATTR_HASHSIZE, HashSize))
	data.AddChild(number(nl.IPSET_ATTR_MAXELEM, MaxElem))
	data.AddChild(number(nl.IPSET_ATTR_TIMEOUT, timeout))
	data.AddChild(number(nl.IPSET_ATTR_CADT_FLAGS, nl.IPSET_FLAG_WITH_FORCEADD))
	req.AddData(data)
	return execute(req, "create", name)
}

// dump lists what the attributes that ask adds ask for. It begins again where others
// have changed it meanwhile.
func dump(ask func(*nl.NetlinkRequest)) (msgs [][]byte, err error) {
	err = error(nl.ErrDumpInterrupted)
	for tries := 0; tries < 10 && errors.Is(err, nl.ErrDumpInterrupted); tries++ {
		req := request(nl.IPSET_CMD_LIST)
		ask(req)
		msgs, err = req.Execute(unix.NETLINK_NETFILTER, 0)
	}
	return msgs, err
}

// Flush removes all addresses from a set.
func (s *Sets) Flush(name string) error {
	req := request(nl.IPSET_CMD_FLUSH)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	return execute(req, "flush", name)
}

// Destroy removes a set, if there is one of that name. It fails while a rule
// names the set. With the nft variant that may be so for some milliseconds
// after the rule has gone: the kernel frees rules later.
func (s *Sets) Destroy(name string) error { return destroy(name) }

func destroy(name string) error {
	req := request(nl.IPSET_CMD_DESTROY)
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	if err := execute(req, "destroy", name); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func request(cmd int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(cmd|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(cmd))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	return req
}

func execute(req *nl.NetlinkRequest, verb, name string) error {
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("%s set %s: %w", verb, name, named(err))
	}
	return nil
}

// named gives errors that only ipset has their name.
func named(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}

func number(attr uint16, v uint32) *nl.Uint32Attribute {
	return &nl.Uint32Attribute{Type: attr | nl.NLA_F_NET_BYTEORDER, Value: v}
}

// header is what the kernel tells of a set.
type header struct {
	name, typeName string
	family         uint8
	timeout        bool // its addresses have one
	counts         bool // its elements have counters
}

// parse reads the header of a set. What it does not understand it leaves out.
func parse(msg []byte) header {
	var h header
	for typ, v := range attributes(payload(msg)) {
		switch typ {
		case nl.IPSET_ATTR_SETNAME:
			h.name = unix.ByteSliceToString(v)
		case nl.IPSET_ATTR_TYPENAME:
			h.typeName = unix.ByteSliceToString(v)
		case nl.IPSET_ATTR_FAMILY:
			h.family = v[0]
		case nl.IPSET_ATTR_DATA:
			for typ, v := range attributes(v) {
				h.timeout = h.timeout || typ == nl.IPSET_ATTR_TIMEOUT
				if typ == nl.IPSET_ATTR_CADT_FLAGS && len(v) == 4 {
					h.counts = binary.BigEndian.Uint32(v)&nl.IPSET_FLAG_WITH_COUNTERS != 0
				}
			}
		}
	}
	return h
}
