// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"errors"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The package notes the byte order when it is first asked for it, which several
// goroutines must not be at a time.
var _ = nl.NativeEndian()

// NFTables shows what is in nf_tables without a command: iptables-nft-save
// fetches all chains and rules of a family before it prints the first, which
// takes seconds where there are 100,000, and other commands of iptables before
// 1.8.8 make the tables that they are asked about.
type NFTables interface {
	// HasChain tells whether a table is there and has a chain.
	HasChain(ipv6 bool, t Table, chain string) (bool, error)
	// CountRules counts the rules of a table, to the end or to more than limit.
	CountRules(ipv6 bool, t Table, limit int) (int, error)
}

// KernelNFTables are those of the network namespace of the thread that asks.
type KernelNFTables struct{}

var _ NFTables = KernelNFTables{}

// HasChain implements NFTables.
func (KernelNFTables) HasChain(ipv6 bool, t Table, chain string) (bool, error) {
	req := nftRequest(unix.NFT_MSG_GETCHAIN, unix.NLM_F_ACK, ipv6)
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(string(t))))
	req.AddData(nl.NewRtAttr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chain)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// CountRules implements NFTables. The kernel sends no more than is read.
func (KernelNFTables) CountRules(ipv6 bool, t Table, limit int) (n int, err error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	req := nftRequest(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, ipv6)
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(string(t))))
	if err := errors.Join(s.SetReceiveTimeout(&nftTimeout), s.Send(req)); err != nil {
		return 0, err
	}
	for n <= limit {
		msgs, _, err := s.Receive()
		if err != nil {
			return n, err
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return n, nil
			case unix.NLMSG_ERROR:
				return n, unix.Errno(-int32(nl.NativeEndian().Uint32(m.Data)))
			}
			n++
		}
	}
	return n, nil
}

// nftTimeout bounds the wait for one answer of the kernel.
var nftTimeout = unix.Timeval{Sec: 10}

func nftRequest(op, flags int, ipv6 bool) *nl.NetlinkRequest {
	family := uint8(unix.NFPROTO_IPV4)
	if ipv6 {
		family = unix.NFPROTO_IPV6
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|op, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}
