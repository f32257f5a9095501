// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"fairlead/iptables/ruleset"
	"fairlead/nat/conntrack"
	"fairlead/nftables"
	"fairlead/portmap"
	"fairlead/proxier/model"
)

// portRules returns where a mode has the rules of host ports.
func portRules(own served, reading *ruleset.Reading) hostPortRules {
	var chains *portChains
	if own.engine != nil {
		chains = &portChains{engine: own.engine, reading: reading}
	}
	if own.annex != nil {
		return &portMaps{annex: own.annex, former: chains}
	}
	return chains
}

// portChains are host ports as chains of iptables.
type portChains struct {
	engine *ruleset.Engine
	// reading is that of the rules at start, nil where there is none.
	reading *ruleset.Reading
}

var _ hostPortRules = (*portChains)(nil)

func (c *portChains) adopt(ctx context.Context) (out []conntrack.Frontend, err error) {
	note := func(r ruleset.Rule) {
		if addr, port, ok := portmap.UDPPort(r); ok {
			out = append(out, conntrack.Frontend{Addr: addr, Port: port})
		}
	}
	if c.reading != nil && c.reading.Each(ruleset.NAT, note) {
		return out, nil
	}
	out = nil
	err = c.engine.Existing(ctx, ruleset.NAT, note)
	return out, err
}

func (c *portChains) write(p *portmap.Portmap, changes portmap.Changes) {
	if chains := p.Chains(changes); len(chains) > 0 {
		c.engine.Stage(chains)
	}
}

// annex is what nftables mode has besides Services.
type annex interface {
	SetHostPorts(gone, now []nftables.HostPort)
	SetPodMasquerade(nftables.PodMasquerade)
}

var _ annex = (*nftables.Mode)(nil)

// portMaps are host ports as elements of maps.
type portMaps struct {
	annex annex
	// former are the chains that another mode may have left, nil where there is no
	// iptables. None is wanted.
	former *portChains
}

var _ hostPortRules = (*portMaps)(nil)

// adopt returns those that another mode has left. The mode tells of its own.
func (m *portMaps) adopt(ctx context.Context) ([]conntrack.Frontend, error) {
	if m.former == nil {
		return nil, nil
	}
	return m.former.adopt(ctx)
}

func (m *portMaps) write(p *portmap.Portmap, c portmap.Changes) {
	var gone, now []nftables.HostPort
	for _, h := range c.Gone {
		gone = append(gone, nftables.HostPort{HostIP: h.HostIP, Protocol: h.Protocol, Port: h.Number})
	}
	for _, h := range c.Written {
		now = append(now, nftables.HostPort{
			HostIP: h.HostIP, Protocol: h.Protocol, Port: h.Number, To: h.To, Except: h.Except,
			Masqueraded: p.Masqueraded(h), Comment: h.Pod.String(),
		})
	}
	m.annex.SetHostPorts(gone, now)
}

// hostPortsTaken names who has the chains of host ports, empty if nobody else has. Without
// iptables nobody can tell whose they are.
func (n *nodeKernel) hostPortsTaken(f model.Family, engine *ruleset.Engine, when switchFlag) string {
	k := ruleset.ChainKey{Table: ruleset.NAT, Name: portmap.Root}
	if engine != nil {
		if !engine.Owns(k) {
			return "CRI-O or an old kubelet (chain " + portmap.Root + ")"
		}
		return ""
	}
	if has, err := (ruleset.KernelNFTables{}).HasChain(f == model.IPv6, k.Table, k.Name); when != switchOn && err == nil && has {
		return "rules of iptables (chain " + portmap.Root + "), which it takes the iptables command to read"
	}
	return ""
}
