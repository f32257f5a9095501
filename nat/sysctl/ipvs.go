// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"fmt"
)

// IPVS makes the settings what IPVS mode needs: connections that connection tracking
// knows, and that end when their endpoint has gone. With strictARP the node answers
// for an address only on the interface that has it. The module ip_vs must be loaded.
func (s *Settings) IPVS(ctx context.Context, strictARP bool) (problems []*Problem) {
	const module = "load the module ip_vs before the agent starts, or let the agent's container write sysctls"
	set := func(sysctl, value, effect string) {
		problems = append(problems, s.want(ctx, sysctlFile(sysctl), value, effect, module)...)
	}
	set("net/ipv4/vs/conntrack", "1", "what IPVS sends on is not masqueraded, so answers do not find their way back")
	set("net/ipv4/vs/expire_nodest_conn", "1", "a client that sends on to an endpoint that has gone gets no answer, instead of another endpoint's")
	set("net/ipv4/vs/expire_quiescent_template", "1", "with session affinity clients stay with endpoints that are being removed")
	if release, err := s.read("proc/sys/kernel/osrelease"); err == nil && reusesBadly(release) {
		set("net/ipv4/vs/conn_reuse_mode", "0", "a client that uses a port again soon waits for a second")
	}
	if strictARP {
		set("net/ipv4/conf/all/arp_ignore", "1", "the node answers ARP requests for addresses of Services")
		set("net/ipv4/conf/all/arp_announce", "2", "the node announces addresses of Services by ARP")
	}
	return problems
}

// reusesBadly tells whether a release of Linux delays connections from a port that is
// used again, and drops them, unless told not to look: from 4.1 until 5.9
// (f0a5e4d7a594 in Linux, "ipvs: allow connection reuse for unconfirmed conntrack").
func reusesBadly(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	version := major*1000 + minor
	return version >= 4001 && version < 5009
}
