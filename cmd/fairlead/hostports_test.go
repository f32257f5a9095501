// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/nat"
	"fairlead/nat/conntrack"
	"fairlead/nat/sockets"
	"fairlead/portmap"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// portsRig is the host ports of IPv4, whose rules go into a kernel in memory.
type portsRig struct {
	t      *testing.T
	kernel fake.Kernel
	engine *ruleset.Engine
	ports  *hostPorts
	// who does host ports besides, and taken are ports that processes listen on.
	who    string
	taken  map[sockets.Port]bool
	warned []string
	// astray are the addresses that lead to no pod.
	astray map[netip.Addr]string
}

func (r *portsRig) WarnPod(pod *model.Pod, w model.Warning) {
	r.warned = append(r.warned, pod.Key.Name+": "+w.Reason)
}

func newPortsRig(t *testing.T) *portsRig {
	r := &portsRig{t: t}
	cfg := portmap.Config{Family: model.IPv4}
	r.engine = ruleset.NewEngine(ruleset.Config{
		Exec: &r.kernel, Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), portmap.Contribution(cfg)},
	})
	r.engine.Stage(nat.Chains(14, ""))
	r.ports = &hostPorts{
		family: model.IPv4, when: switchAuto, portmap: portmap.New(cfg), rules: &portChains{engine: r.engine}, warner: r,
		owned: func(bool, string) {}, metrics: newHostPortMetrics(prometheus.NewRegistry(), model.Families()),
		others:    lookAhead(t.Context(), func(context.Context) string { return r.who }),
		listening: func() (map[sockets.Port]bool, error) { return r.taken, nil },
		astray:    func(a netip.Addr) string { return r.astray[a] },
		pods:      map[model.ObjectKey]*model.Pod{}, udp: map[udpPort]*portmap.Mapping{}, everywhere: map[udpPort]*portmap.Mapping{},
	}
	synctest.Wait() // for the first look
	return r
}

// sync hands over pods, named "a" or, if they are gone, "a-", and returns which have
// host ports in the kernel. A pod's port is for UDP, and the same for all.
func (r *portsRig) sync(pods ...string) string {
	r.t.Helper()
	time.Sleep(time.Minute)
	d := proxier.Desired{Pods: map[model.ObjectKey]*model.Pod{}, Prune: true, Verify: true}
	for i, name := range pods {
		name, gone := strings.CutSuffix(name, "-")
		key := model.ObjectKey{Namespace: "n", Name: name}
		if d.Pods[key] = nil; !gone {
			d.Pods[key] = &model.Pod{
				Key: key, UID: name, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, name[0]})},
				HostPorts: []model.HostPort{{Protocol: model.UDP, HostPort: 53, ContainerPort: 53}}, Started: time.Unix(int64(i), 0),
			}
		}
	}
	r.ports.Contribute(r.t.Context(), d)
	if _, err := r.engine.Apply(r.t.Context(), ruleset.Options{Prune: true}); err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(r.kernel.Save()) {
		if _, rest, found := strings.Cut(line, `--comment "fairlead: n/`); found && strings.HasPrefix(line, "-A KUBE-HOSTPORTS -p") {
			name, _, _ := strings.Cut(rest, `"`)
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// TestHostPortsComeAndGo: while somebody else does host ports there are none, and all
// that there are by then when nobody does.
func TestHostPortsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPortsRig(t)
		for _, step := range []struct {
			name, who string
			pods      []string
			want      string
		}{
			{"a pod", "", []string{"a"}, "a"},
			{"somebody else, and the pod goes", "portmap", []string{"a-"}, ""},
			{"another pod meanwhile", "portmap", []string{"b"}, ""},
			{"nobody else", "", nil, "b"},
			{"somebody else", "portmap", nil, ""},
			{"nobody, and the pod is another", "", []string{"b-", "c"}, "c"},
			{"two that want one port", "", []string{"c", "d"}, "c"},
			{"the first one gone", "", []string{"c-"}, "d"},
		} {
			r.who = step.who
			if got := r.sync(step.pods...); got != step.want {
				t.Errorf("%s: host ports of %q, want %q", step.name, got, step.want)
			}
		}
		if got := strings.Join(r.warned, ", "); got != "d: FairleadRefused" {
			t.Errorf("Events: %s", got)
		}
	})
}

// TestHostPortsAstray: a pod whose address leads nowhere has no host ports until it
// leads somewhere, which is seen at the next sync, at the latest.
func TestHostPortsAstray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPortsRig(t)
		r.astray = map[netip.Addr]string{netip.AddrFrom4([4]byte{10, 0, 0, 'a'}): "has no route"}
		if got := r.sync("a", "b"); got != "b" {
			t.Errorf("without a route to the first: host ports of %q, want b's", got)
		}
		clear(r.astray)
		if got := r.sync(); got != "a" {
			t.Errorf("with one: host ports of %q, want a's", got)
		}
		r.astray[netip.AddrFrom4([4]byte{10, 0, 0, 'a'})] = "is another's"
		if got := r.sync(); got != "b" {
			t.Errorf("the route gone: host ports of %q, want b's", got)
		}
	})
}

// TestHostPortTaken: a process that listens on a host port is told of.
func TestHostPortTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPortsRig(t)
		r.taken = map[sockets.Port]bool{{Protocol: model.TCP, Number: 53}: true}
		r.sync("a")
		r.sync("a-")
		r.taken[sockets.Port{Protocol: model.UDP, Number: 53}] = true
		r.sync("b")
		r.sync()
		if got := strings.Join(r.warned, ", "); got != "b: FairleadHostPortTaken" {
			t.Errorf("Events: %s", got)
		}
	})
}

// TestHostPortFlows: the flows of a host port follow it, also those that an earlier
// agent has left.
func TestHostPortFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPortsRig(t)
		node := proxier.NodeState{NodePorts: proxier.NodePorts{All: true}}
		addr := netip.MustParseAddr("192.0.2.1")
		table := conntrack.NewTable()
		table.SetNodeAddrs([]netip.Addr{addr})
		stale := func(pod byte) bool {
			flow := conntrack.Flow{
				Src: netip.MustParseAddrPort("192.0.2.9:4000"), Dst: netip.AddrPortFrom(addr, 53),
				ReplySrc: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, pod}), 53),
			}
			flow.ReplyDst = flow.Src
			r.ports.settle(table, node)
			return len(conntrack.Stale(func(yield func(conntrack.Flow) bool) { yield(flow) }, table)) > 0
		}
		r.sync("a")
		if stale('a') || !stale('b') {
			t.Error("a has the port: its flows are stale, or those of b are not")
		}
		r.sync("a-", "b")
		if !stale('a') || stale('b') {
			t.Error("b has the port: its flows are stale, or those of a are not")
		}
		r.sync("b-")
		if !stale('b') {
			t.Error("nobody has the port: flows of b are not stale")
		}
		r.sync("c")
		next := newPortsRig(t)
		if err := next.kernel.Edit(r.kernel.Save()); err != nil {
			t.Fatal(err)
		}
		next.sync()
		r, table = next, conntrack.NewTable()
		table.SetNodeAddrs([]netip.Addr{addr})
		if !stale('c') {
			t.Error("an earlier agent's pod is gone: flows of c are not stale")
		}
	})
}

// TestHostPortFlowsFollowTheNode: where node ports are on some addresses alone, host ports
// are on all that the node has, and on one that it has got since.
func TestHostPortFlowsFollowTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPortsRig(t)
		old, fresh := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		table := conntrack.NewTable()
		flow := conntrack.Flow{
			Src: netip.MustParseAddrPort("192.0.2.9:4000"), Dst: netip.AddrPortFrom(fresh, 53),
			ReplySrc: netip.AddrPortFrom(fresh, 53), // to the node itself, as nobody had the port there
		}
		flow.ReplyDst = flow.Src
		stale := func(addrs ...netip.Addr) bool {
			r.ports.settle(table, proxier.NodeState{Addrs: addrs, NodePorts: proxier.NodePorts{Addrs: []netip.Addr{old}}})
			return len(conntrack.Stale(func(yield func(conntrack.Flow) bool) { yield(flow) }, table)) > 0
		}
		r.sync("a")
		if stale(old) {
			t.Error("a flow to an address that the node does not have is stale")
		}
		if !stale(old, fresh) {
			t.Error("a flow to an address that the node has got since is not stale")
		}
	})
}
