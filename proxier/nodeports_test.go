// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"testing"

	"fairlead/proxier/model"
)

// TestNodePortAddresses: where node ports answer.
func TestNodePortAddresses(t *testing.T) {
	addrs := parseAddrs("127.0.0.1", "192.0.2.11", "10.244.0.1", "::1", "2001:db8::11")
	nodeIP := netip.MustParseAddr("192.0.2.11")
	cidrs := func(s ...string) NodePortAddresses {
		var n NodePortAddresses
		for _, c := range s {
			n.CIDRs = append(n.CIDRs, netip.MustParsePrefix(c))
		}
		return n
	}
	for _, tc := range []struct {
		name   string
		n      NodePortAddresses
		family model.Family
		want   NodePorts
	}{
		{"on all unless told otherwise", NodePortAddresses{}, model.IPv4, NodePorts{All: true}},
		{"in a CIDR", cidrs("192.0.2.0/24"), model.IPv4, NodePorts{Addrs: parseAddrs("192.0.2.11")}},
		{"in several", cidrs("10.244.0.0/16", "127.0.0.0/8"), model.IPv4, NodePorts{Addrs: parseAddrs("10.244.0.1", "127.0.0.1")}},
		{"a CIDR of all", cidrs("192.0.2.0/24", "0.0.0.0/0"), model.IPv4, NodePorts{All: true}},
		{"a CIDR that nothing matches", cidrs("203.0.113.0/24"), model.IPv4, NodePorts{}},
		{"no CIDR of the family", cidrs("192.0.2.0/24"), model.IPv6, NodePorts{}},
		{"the node's own", NodePortAddresses{Primary: true}, model.IPv4, NodePorts{Addrs: []netip.Addr{nodeIP}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.n.resolve(tc.family, addrs, nodeIP); !got.Equal(tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
	for _, ip := range []netip.Addr{{}, netip.MustParseAddr("127.0.0.1")} {
		if got := (NodePortAddresses{Primary: true}).resolve(model.IPv4, addrs, ip); !got.Equal(NodePorts{}) {
			t.Errorf("the node's own, which is %v: got %+v, want none", ip, got)
		}
	}
}

func parseAddrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}
