// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"fmt"
	"slices"

	"fairlead/proxier/model"
)

// IPVSConfig says how IPVS is to work.
type IPVSConfig struct {
	// StrictARP makes the node answer for addresses alone that are on the interface
	// which is asked: not for those of virtual servers, which load balancers that
	// answer for them themselves need.
	StrictARP bool
	// Families are those that virtual servers are of.
	Families []model.Family
}

// IPVS makes the kernel's IPVS work as Services need it, in the network namespace.
// The kernel has these settings once its module is loaded.
func (s *Settings) IPVS(ctx context.Context, cfg IPVSConfig) (problems []*Problem) {
	want := func(sysctl, value, effect string) {
		problems = append(problems, s.want(ctx, sysctlFile(sysctl), value, effect, "set it to "+value+" on the host, or let the agent's container write sysctls")...)
	}
	want("net/ipv4/vs/conntrack", "1", "connection tracking does not see what IPVS forwards, so no connection works that has to be masqueraded")
	if s.waitsForReuse() {
		want("net/ipv4/vs/conn_reuse_mode", "0", "a client that uses a port once more soon after waits a second for its connection")
	}
	want("net/ipv4/vs/expire_nodest_conn", "1", "connections to an endpoint that has gone hang, and clients that use a port once more do so, too")
	want("net/ipv4/vs/expire_quiescent_template", "1", "a client with session affinity goes on to make connections to an endpoint that terminates")
	if slices.Contains(cfg.Families, model.IPv4) {
		want("net/ipv4/ip_forward", "1", "this node does not forward IPv4, so no Service reaches its endpoints")
	}
	if cfg.StrictARP {
		const effect = "the node answers ARP for addresses of Services, although --ipvs-strict-arp says that it is not to"
		want("net/ipv4/conf/all/arp_ignore", "1", effect)
		want("net/ipv4/conf/all/arp_announce", "2", effect)
	}
	return problems
}

// waitsForReuse tells whether IPVS drops the first packet of a connection whose
// addresses and ports it remembers from another one, so that the client sends it
// again a second later. It has done so since Linux 4.1 brought conn_reuse_mode, and
// does no more since 5.9 (f0a5e4d7a594, "ipvs: allow connection reuse for
// unconfirmed conntrack"); there, mode 0 would send new connections to endpoints
// that have gone.
func (s *Settings) waitsForReuse() bool {
	release, err := s.read("proc/sys/kernel/osrelease")
	if err != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 {
		return false
	}
	return major == 4 && minor >= 1 || major == 5 && minor < 9
}
