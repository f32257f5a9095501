// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fairlead/nftables/fake"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// suspicion is a watcher that a test tells what to say.
type suspicion struct{ suspect bool }

func (s *suspicion) Take() bool {
	out := s.suspect
	s.suspect = false
	return out
}

// agent is a mode on a kernel in memory.
type agent struct {
	t *testing.T
	*Mode
	kernel *fake.Kernel
	watch  *suspicion
	where  proxier.NodeState
	// traffic is nil where nothing is counted.
	traffic *Traffic
}

func newAgent(t *testing.T, cfg Config, k *fake.Kernel) *agent {
	t.Helper()
	k.Family, k.Name = cfg.table(), TableName
	w := &suspicion{}
	return &agent{t: t, Mode: New(cfg, k, w, nil), kernel: k, watch: w, where: here(cfg.Family)}
}

func config(f model.Family) Config {
	cfg := Config{Family: f, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, LocalhostNodePorts: true,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}
	if f == model.IPv6 {
		cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/48")}
		cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")}
	}
	return cfg
}

// here is a node with two addresses.
func here(f model.Family) proxier.NodeState {
	out := proxier.NodeState{NodePorts: proxier.NodePorts{All: true}}
	addrs := []string{"10.244.0.1", "127.0.0.1", "192.0.2.11"}
	if f == model.IPv6 {
		addrs = []string{"::1", "2001:db8::11", "fd00:10:244::1"}
	}
	for _, a := range addrs {
		out.Addrs = append(out.Addrs, netip.MustParseAddr(a))
	}
	out.IP = out.Addrs[len(out.Addrs)-1]
	if f == model.IPv6 {
		out.IP = out.Addrs[1]
	}
	return out
}

// sync hands over the whole of the ports, all as changed, and expects success.
func (a *agent) sync(ports ...*model.ServicePort) proxier.Report {
	a.t.Helper()
	s, names := snapshot(ports...)
	return a.syncChanged(s, names)
}

func (a *agent) syncChanged(s *model.Snapshot, names []model.ServicePortName) proxier.Report {
	a.t.Helper()
	r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: a.where, Changed: names, Prune: true})
	if err != nil || len(r.Refused) > 0 {
		a.t.Fatalf("Sync() = %+v, %v", r, err)
	}
	return r
}

func snapshot(ports ...*model.ServicePort) (*model.Snapshot, []model.ServicePortName) {
	changes := map[model.ServicePortName]*model.ServicePort{}
	var names []model.ServicePortName
	for _, p := range ports {
		changes[p.Name] = p
		names = append(names, p.Name)
	}
	return model.NewSnapshot().With(changes), names
}

func portName(ns, svc, port string, p model.Protocol) model.ServicePortName {
	return model.ServicePortName{Service: model.ObjectKey{Namespace: ns, Name: svc}, Port: port, Protocol: p}
}

// port returns a port of a Service. Endpoints on 10.244.0.0/24 and fd00:10:244::/64
// are the node's own.
func port(name model.ServicePortName, vip string, number uint16, endpoints ...string) *model.ServicePort {
	p := &model.ServicePort{Name: name, ClusterIP: netip.MustParseAddr(vip), Port: number}
	for _, text := range endpoints {
		ep := netip.MustParseAddrPort(text)
		local := strings.HasPrefix(text, "10.244.0.") || strings.HasPrefix(text, "[fd00:10:244::")
		p.Endpoints = append(p.Endpoints, model.Endpoint{AddrPort: ep, Local: local})
	}
	p.Known, p.Usable = len(p.Endpoints), len(p.Endpoints) > 0
	return p
}

// with returns a port with changes, and the local endpoints that its policies then need.
func with(p *model.ServicePort, changes ...func(*model.ServicePort)) *model.ServicePort {
	out := *p
	for _, change := range changes {
		change(&out)
	}
	out.LocalEndpoints = nil
	for _, ep := range out.Endpoints {
		if ep.Local && out.UsesLocal() {
			out.LocalEndpoints = append(out.LocalEndpoints, ep)
		}
	}
	if !out.UsesCluster() {
		out.Endpoints = nil
	}
	return &out
}

// same is the table without slots: which endpoint is in which slot follows from what was
// before.
func same(t *table.Table) *table.Table {
	out := *t
	out.Elements = map[string][]table.Element{}
	for name, es := range t.Elements {
		for _, s := range t.Sets {
			if s.Name != name || !slices.Contains(s.Key, table.Integer) || s.Dynamic {
				continue
			}
			byDest := map[string][]string{}
			for _, e := range es {
				dest := e.Key[:len(e.Key)-4]
				byDest[dest] = append(byDest[dest], e.Data)
			}
			var sorted []table.Element
			for dest, data := range byDest {
				slices.Sort(data)
				for i, d := range data {
					sorted = append(sorted, table.Element{Key: dest + string(table.Key(nil).Integer(uint32(i))), Data: d})
				}
			}
			es = sorted
		}
		out.Elements[name] = es
	}
	return &out
}
