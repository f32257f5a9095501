// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"fairlead/iptables/ruleset"
	rulesfake "fairlead/iptables/ruleset/fake"
	devicefake "fairlead/ipvs/device/fake"
	serversfake "fairlead/ipvs/servers/fake"
	"fairlead/nat"
	"fairlead/nat/ipset"
	setsfake "fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// host is a node without a kernel.
type host struct {
	servers serversfake.Kernel
	device  devicefake.Device
	sets    setsfake.Kernel
	rules   rulesfake.Kernel
	now     time.Time
}

func newHost(f model.Family) *host {
	h := &host{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	h.servers.IPv6, h.device.IPv6 = f == model.IPv6, f == model.IPv6
	h.rules.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool { return h.sets.Missing(string(r)) }
	h.sets.Rules = h.rules.Save
	return h
}

// agent is a mode on a host.
type agent struct {
	t *testing.T
	*host
	*Mode
	where proxier.NodeState
}

func (h *host) agent(t *testing.T, cfg Config) *agent {
	t.Helper()
	return &agent{t: t, host: h, where: here(cfg.Family), Mode: h.mode(cfg)}
}

// mode returns a mode.
func (h *host) mode(cfg Config) *Mode {
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: &h.rules, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), Contribution(cfg)},
	})
	engine.Stage(nat.IPVSChains(cfg.MasqueradeBit, nat.LoopBack(cfg.ipv6())))
	return New(cfg, Kernel{
		Servers: &h.servers, Device: &h.device, Rules: engine, Now: func() time.Time { return h.now },
		Set: func(name string, typ ipset.Type) Set { return h.sets.Set(name, typ, cfg.ipv6()) },
	})
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
	out.IP = netip.MustParseAddr("192.0.2.11")
	if f == model.IPv6 {
		out.IP = netip.MustParseAddr("2001:db8::11")
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
		if local {
			p.LocalEndpoints = append(p.LocalEndpoints, model.Endpoint{AddrPort: ep, Local: true})
		}
	}
	p.Known, p.Usable = len(p.Endpoints), len(p.Endpoints) > 0
	return p
}

// with returns a port with changes.
func with(p *model.ServicePort, changes ...func(*model.ServicePort)) *model.ServicePort {
	out := *p
	for _, change := range changes {
		change(&out)
	}
	return &out
}

func config(f model.Family) Config {
	cfg := Config{
		Family: f, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, MasqueradeBit: 14,
		LocalhostNodePorts: true, Scheduler: model.Scheduler{Name: DefaultScheduler}, GracePeriod: 15 * time.Minute,
	}
	if f == model.IPv6 {
		cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/48")}
	}
	return cfg
}

var counters = regexp.MustCompile(` \[\d+:\d+\]`)

// save returns all that there is.
func (h *host) save() string {
	return "# ipvsadm -Sn\n" + h.servers.Save() + "\n# ip addr\n" + h.device.Save() +
		"\n# ipset save\n" + h.sets.Save() + "\n# iptables-save\n" + counters.ReplaceAllString(h.rules.Save(), "")
}
