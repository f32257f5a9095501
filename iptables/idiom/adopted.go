// SPDX-License-Identifier: Apache-2.0

package idiom

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"fairlead/iptables/ruleset"
)

// AdoptedUDP returns where clients could send UDP to by the rules that an engine has
// found, those of an earlier agent or of kube-proxy, whatever the mode: an address
// and port each, or a port of the node with an invalid address. Services that are
// gone since are known from here alone. It is called before the first Apply.
func AdoptedUDP(ctx context.Context, e *ruleset.Engine) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	seen := map[netip.AddrPort]bool{}
	err := e.Existing(ctx, ruleset.NAT, func(r ruleset.Rule) {
		if ap, ok := UDPDestination(r); ok && !seen[ap] {
			seen[ap] = true
			out = append(out, ap)
		}
	})
	return out, err
}

// UDPDestination returns the address and port that a dispatch rule for UDP
// matches.
func UDPDestination(r ruleset.Rule) (_ netip.AddrPort, ok bool) {
	matches, rest, commented := strings.Cut(string(r), "-m comment ")
	if !commented || !strings.Contains(matches, "-p udp ") {
		return netip.AddrPort{}, false
	}
	var addr netip.Addr
	if _, dst, has := strings.Cut(matches, "-d "); has {
		text, _, _ := strings.Cut(dst, " ")
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return netip.AddrPort{}, false
		}
		addr = p.Addr()
	}
	_, port, has := strings.Cut(rest, " --dport ")
	port, _, _ = strings.Cut(port, " ")
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(addr, uint16(n)), has && err == nil
}
