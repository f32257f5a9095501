// SPDX-License-Identifier: Apache-2.0

// Package nft removes tables of nf_tables over netlink: what kube-proxy's
// nftables mode leaves behind goes on translating connections.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairlead/proxier/model"
)

// KubeProxy is the name of the table that kube-proxy's nftables mode has in each
// family.
const KubeProxy = "kube-proxy"

// Delete removes a table with all that is in it, in the network namespace of the
// thread. Deleted is false where there is no such table, or no nf_tables.
func Delete(f model.Family, table string) (deleted bool, err error) {
	if has, err := has(f, table); !has || err != nil {
		return false, err
	}
	err = change(request(f, unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, table))
	if errors.Is(err, unix.ENOENT) { // somebody was faster
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete nf_tables table %s: %w", table, err)
	}
	return true, nil
}

// Tables returns the names of all tables, of any family, none where there is no
// nf_tables.
func Tables() ([]string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_UNSPEC})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list nf_tables tables: %w", err)
	}
	var out []string
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[min(len(m), nl.SizeofNfgenmsg):])
		if err != nil {
			return nil, fmt.Errorf("list nf_tables tables: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_TABLE_NAME {
				out = append(out, nl.BytesToString(a.Value))
			}
		}
	}
	return out, nil
}

// has tells whether there is a table.
func has(f model.Family, table string) (bool, error) {
	_, err := request(f, unix.NFT_MSG_GETTABLE, 0, table).Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return false, nil
	}
	return false, fmt.Errorf("look for nf_tables table %s: %w", table, err)
}

// request returns a message about a table.
func request(f model.Family, message, flags int, table string) *nl.NetlinkRequest {
	family := uint8(unix.NFPROTO_IPV4)
	if f == model.IPv6 {
		family = unix.NFPROTO_IPV6
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
	req.AddData(nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(table)))
	return req
}

// change sends a message in a transaction of its own, as the kernel wants it of
// all that change something, and waits until that is done.
func change(req *nl.NetlinkRequest) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	var batch []byte
	for _, m := range []*nl.NetlinkRequest{boundary(unix.NFNL_MSG_BATCH_BEGIN), req, boundary(unix.NFNL_MSG_BATCH_END)} {
		batch = append(batch, m.Serialize()...)
	}
	if err := unix.Sendto(s.GetFd(), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return acknowledged(s, req.Seq)
}

// boundary is the first or the last message of a transaction.
func boundary(message int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(message, 0)
	subsystem := binary.BigEndian.AppendUint16(nil, unix.NFNL_SUBSYS_NFTABLES)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, ResId: binary.NativeEndian.Uint16(subsystem)})
	return req
}

// acknowledged waits for the kernel's answer to a message of a transaction. An
// error may be about another one of it.
func acknowledged(s *nl.NetlinkSocket, seq uint32) error {
	for {
		msgs, _, err := s.Receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
				return syscall.Errno(errno)
			}
			if m.Header.Seq == seq {
				return nil
			}
		}
	}
}
