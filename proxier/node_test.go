// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairlead/proxier/model"
)

// nodeText writes what a mode is told of the node: where node ports answer, the
// node's own address, and the pods' CIDRs.
func nodeText(n NodeState) string {
	ports := "all"
	if !n.NodePorts.All {
		ports = joined(n.NodePorts.Addrs)
	}
	out := []string{"ports on " + ports}
	if n.IP.IsValid() {
		out = append(out, "is "+n.IP.String())
	}
	for _, c := range n.PodCIDRs {
		out = append(out, "pods in "+c.String())
	}
	return strings.Join(out, ", ")
}

// TestLoopFollowsTheNode: what changes of the node has a sync of its own, with
// what is of the loop's family.
func TestLoopFollowsTheNode(t *testing.T) {
	node := func(addrs string, cidrs ...string) model.Changes {
		n := &model.Node{Name: here, Addrs: parseAddrs(strings.Fields(addrs)...)}
		for _, c := range cidrs {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
		}
		return model.Changes{Node: &model.NodeChange{Node: n}}
	}
	has := func(addrs string) model.Changes {
		return model.Changes{NodeAddrs: &model.NodeAddrs{Addrs: parseAddrs(strings.Fields(addrs)...)}}
	}
	gone := model.Changes{Node: &model.NodeChange{}}
	for _, tc := range []struct {
		name  string
		ports NodePortAddresses
		ip    string
		steps []model.Changes
		want  []string
	}{
		{
			name:  "pod CIDRs",
			steps: []model.Changes{node("", "10.244.1.0/24", "fd00:244:1::/64"), node("", "10.244.1.0/24", "10.245.1.0/24"), gone},
			want: []string{"ports on all, pods in 10.244.1.0/24",
				"ports on all, pods in 10.244.1.0/24, pods in 10.245.1.0/24", "ports on all"},
		},
		{
			name:  "the first address of the Node object that is of the family",
			ports: NodePortAddresses{Primary: true},
			steps: []model.Changes{node("2001:db8::1 192.0.2.1 192.0.2.2"), node("192.0.2.2 192.0.2.1"), gone},
			want:  []string{"ports on 192.0.2.1, is 192.0.2.1", "ports on 192.0.2.2, is 192.0.2.2", "ports on "},
		},
		{
			name: "the address that the agent was told", ip: "192.0.2.9",
			ports: NodePortAddresses{Primary: true},
			steps: []model.Changes{node("192.0.2.1")},
			want:  []string{"ports on 192.0.2.9, is 192.0.2.9"},
		},
		{
			name: "the address that the agent was told, of the other family", ip: "2001:db8::9",
			steps: []model.Changes{node("2001:db8::1 192.0.2.1")},
			want:  []string{"ports on all, is 192.0.2.1"},
		},
		{
			name:  "addresses of interfaces",
			ports: NodePortAddresses{CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			steps: []model.Changes{has("192.0.2.1"), has("192.0.2.1 192.0.2.77 198.51.100.1"), has("")},
			want:  []string{"ports on 192.0.2.1", "ports on 192.0.2.1 192.0.2.77", "ports on "},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, 0, time.Hour, nil, func(t *testing.T, r *rig) {
				r.loop.NodePortAddresses = tc.ports
				if tc.ip != "" {
					r.loop.NodeIP = netip.MustParseAddr(tc.ip)
				}
				r.at(0, listed())
				for i, step := range tc.steps {
					r.at(time.Duration(i+1)*time.Second, step)
					calls := r.calls()
					if len(calls) != i+2 {
						t.Fatalf("step %d: got %d syncs, want %d", i, len(calls), i+2)
					}
					if got := nodeText(calls[i+1].desired.Node); got != tc.want[i] {
						t.Errorf("step %d: got %q, want %q", i, got, tc.want[i])
					}
				}
			})
		})
	}
}

// TestLoopZone: another zone of the node has the endpoints chosen anew.
func TestLoopZone(t *testing.T) {
	zone := func(z string) model.Changes {
		return model.Changes{Node: &model.NodeChange{Node: &model.Node{Name: here, Zone: z}}}
	}
	inBubble(t, 0, time.Hour, nil, func(t *testing.T, r *rig) {
		r.at(0, with(with(listed(), services(service("a", "10.96.0.1", "80/TCP"))),
			slicesOf(hintedSlice(slice("a-1", "a", "80/TCP", "10.1.0.1", "10.1.0.2"), "x", "y"))))
		r.wantKernel("a/TCP 10.96.0.1:80: 10.1.0.1:80 10.1.0.2:80")
		r.at(time.Second, zone("x"))
		r.wantKernel("a/TCP 10.96.0.1:80: 10.1.0.1:80")
		r.at(2*time.Second, zone("y"))
		r.wantKernel("a/TCP 10.96.0.1:80: 10.1.0.2:80")
	})
}
