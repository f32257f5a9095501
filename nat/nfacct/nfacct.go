// SPDX-License-Identifier: Apache-2.0

// Package nfacct makes, reads and removes counters of packets over netlink, which
// rules count with (linux/netfilter/nfnetlink_acct.h). They are of the network
// namespace, not of a family.
package nfacct

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The names are kube-proxy's.
const (
	// InvalidDropped counts the packets that were dropped because conntrack found
	// them invalid.
	InvalidDropped = "ct_state_invalid_dropped_pkts"
	// LocalhostAccepted counts the connections to node ports on 127.0.0.0/8.
	LocalhostAccepted = "localhost_nps_accepted_pkts"
)

const (
	subsystem = 7 // NFNL_SUBSYS_ACCT

	messageNew    = 0
	messageGet    = 1
	messageDelete = 3

	attrName    = 1
	attrPackets = 2
)

// Create makes a counter. One that is there goes on counting.
func Create(name string) error {
	_, err := request(messageNew, unix.NLM_F_CREATE|unix.NLM_F_ACK, name).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, unix.EBUSY) { // it is there
		return fmt.Errorf("make counter %s: %w", name, err)
	}
	return nil
}

// Packets returns what a counter has counted since it was made.
func Packets(name string) (uint64, error) {
	// The kernel says that more is to come after the one answer, and what comes
	// is the acknowledgement (nfnl_acct_fill_info).
	msgs, err := request(messageGet, unix.NLM_F_ACK, name).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("read counter %s: %w", name, err)
	}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[min(nl.SizeofNfgenmsg, len(m)):])
		if err != nil {
			return 0, fmt.Errorf("read counter %s: %w", name, err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == attrPackets && len(a.Value) == 8 {
				return binary.BigEndian.Uint64(a.Value), nil
			}
		}
	}
	return 0, fmt.Errorf("read counter %s: the kernel does not tell", name)
}

// Delete removes a counter, if there is one. It fails with EBUSY while a rule
// counts with it, and for a moment after.
func Delete(name string) error {
	_, err := request(messageDelete, unix.NLM_F_ACK, name).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove counter %s: %w", name, err)
	}
	return nil
}

// RegisterLocalhostAccepted registers the metric of LocalhostAccepted on reg, under
// kube-proxy's name. It is 0 while there is no such counter.
func RegisterLocalhostAccepted(reg prometheus.Registerer) {
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
		Help: "First packets of connections to node ports on 127.0.0.0/8.",
	}, func() float64 {
		n, err := Packets(LocalhostAccepted)
		if err != nil {
			return 0
		}
		return float64(n)
	}))
}

// request returns a message about a counter.
func request(message, flags int, name string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(subsystem<<8|message, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	req.AddData(nl.NewRtAttr(attrName, nl.ZeroTerminated(name)))
	return req
}

// RegisterInvalidDropped registers the metric of InvalidDropped on reg, under
// kube-proxy's name, with what others count besides. It is 0 while there is no such
// counter.
func RegisterInvalidDropped(reg prometheus.Registerer, besides ...func() (uint64, error)) {
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
		Help: "Packets that were not forwarded because connection tracking found them invalid.",
	}, func() float64 {
		sum := 0.
		for _, count := range append(besides, func() (uint64, error) { return Packets(InvalidDropped) }) {
			if n, err := count(); err == nil {
				sum += float64(n)
			}
		}
		return sum
	}))
}
