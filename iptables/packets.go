// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// TrafficSet is the name of the set by which the packets to ports of Services are counted.
func TrafficSet(ipv6 bool) string {
	if ipv6 {
		return "KUBE-6-TRAFFIC"
	}
	return "KUBE-TRAFFIC"
}

// CountingSet is a set that counts, as nat/ipset has it.
type CountingSet interface {
	Name() string
	List() (in []ipset.Element, found bool, err error)
	Create(size int) error
	Add(...ipset.Element) error
	Remove(...ipset.Element) error
	Counts() ([]ipset.Counted, error)
}

// Packets tells which packets clients have sent to ports of Services, by a set of all that
// Services are reached by, which counts. A rule looks up each packet in it before it is
// translated, in table mangle: that table sees all packets of a connection, where nat sees
// the first one. Answers are translated back after the last table. It is safe for concurrent use.
type Packets struct {
	set  CountingSet
	seed maphash.Seed

	mu sync.Mutex
	// ports are those that there are, and owners who they are by element: one, unless
	// objects contradict each other.
	ports  map[model.ServicePortName]*model.ServicePort
	owners map[ipset.Element][]model.ServicePortName
	addrs  []netip.Addr // where node ports answer
	in     map[ipset.Element]bool
	known  bool // what is in the set
}

var (
	_ traffic.Source   = (*Packets)(nil)
	_ proxier.Follower = (*Packets)(nil)
)

// NewPackets makes the set, if it is not there, and returns what fills and reads it.
func NewPackets(set CountingSet) (*Packets, error) {
	if err := set.Create(0); err != nil {
		return nil, err
	}
	return &Packets{
		set: set, seed: maphash.MakeSeed(),
		ports: map[model.ServicePortName]*model.ServicePort{}, owners: map[ipset.Element][]model.ServicePortName{},
		in: map[ipset.Element]bool{},
	}, nil
}

// Chains are what looks packets up.
func (p *Packets) Chains() map[ruleset.ChainKey]*ruleset.Chain {
	return map[ruleset.ChainKey]*ruleset.Chain{{Table: ruleset.Mangle, Name: idiom.Traffic}: {Rules: []ruleset.Rule{
		idiom.Spec{Comment: "counts in the set", More: "-m set --match-set " + p.set.Name() + " dst,dst "}.Rule(),
	}}}
}

// Follow implements proxier.Follower.
func (p *Packets) Follow(_ context.Context, d proxier.Desired) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	addrs := d.Node.NodePorts.Addrs
	if d.Node.NodePorts.All {
		addrs = d.Node.Addrs
	}
	changed := d.Changed
	if !slices.Equal(addrs, p.addrs) {
		changed = slices.Concat(changed, slices.Collect(maps.Keys(p.ports)))
	}
	touched := map[ipset.Element]bool{}
	for _, name := range changed {
		p.own(name, touched, func(all []model.ServicePortName) []model.ServicePortName {
			return slices.DeleteFunc(all, func(o model.ServicePortName) bool { return o == name })
		})
	}
	p.addrs = slices.Clone(addrs)
	for _, name := range changed {
		if p.ports[name] = d.Snapshot.Get(name); p.ports[name] == nil {
			delete(p.ports, name)
		}
		p.own(name, touched, func(all []model.ServicePortName) []model.ServicePortName {
			if i, found := slices.BinarySearchFunc(all, name, model.ServicePortName.Compare); !found {
				all = slices.Insert(all, i, name)
			}
			return all
		})
	}
	if !p.known || d.Verify {
		return p.compare(d.Prune)
	}
	return p.write(maps.Keys(touched))
}

// own changes who owns the elements of a port. mu must be held.
func (p *Packets) own(name model.ServicePortName, touched map[ipset.Element]bool, change func([]model.ServicePortName) []model.ServicePortName) {
	svc := p.ports[name]
	if svc == nil {
		return
	}
	element := func(a netip.Addr, port uint16) {
		e := ipset.Element{Addr: a, Protocol: idiom.ProtocolNumber(name.Protocol), Port: port}
		touched[e] = true
		if p.owners[e] = change(p.owners[e]); len(p.owners[e]) == 0 {
			delete(p.owners, e)
		}
	}
	for _, ips := range [][]netip.Addr{{svc.ClusterIP}, svc.ExternalIPs, svc.LoadBalancerIPs} {
		for _, a := range ips {
			element(a, svc.Port)
		}
	}
	if svc.NodePort != 0 {
		for _, a := range p.addrs {
			element(a, svc.NodePort)
		}
	}
}

// compare reads what is in the set, and makes it what there is to be. mu must be held.
func (p *Packets) compare(prune bool) error {
	p.known = false
	if err := p.set.Create(len(p.owners)); err != nil {
		return err
	}
	in, _, err := p.set.List()
	if err != nil {
		return err
	}
	p.in = map[ipset.Element]bool{}
	all := map[ipset.Element]bool{}
	for _, e := range in {
		p.in[e] = true
		all[e] = prune
	}
	for e := range p.owners {
		all[e] = true
	}
	maps.DeleteFunc(all, func(_ ipset.Element, look bool) bool { return !look })
	p.known = true
	return p.write(maps.Keys(all))
}

// write adds and removes elements. mu must be held.
func (p *Packets) write(elements func(func(ipset.Element) bool)) error {
	var add, remove []ipset.Element
	for e := range elements {
		if wanted := len(p.owners[e]) > 0; wanted && !p.in[e] {
			add = append(add, e)
		} else if !wanted && p.in[e] {
			remove = append(remove, e)
		}
	}
	err := p.set.Add(add...)
	if err == nil {
		err = p.set.Remove(remove...)
	}
	if err != nil {
		p.known = false
		return fmt.Errorf("fill the set by which packets are counted: %w", err)
	}
	for _, e := range add {
		p.in[e] = true
	}
	for _, e := range remove {
		delete(p.in, e)
	}
	return nil
}

// Read implements traffic.Source.
func (p *Packets) Read(_ context.Context, yield func(traffic.Sample)) error {
	counts, err := p.set.Counts()
	if err != nil {
		return err
	}
	for _, c := range counts {
		p.mu.Lock()
		owners := p.owners[c.Element]
		var first model.ServicePortName
		if len(owners) > 0 {
			first = owners[0]
		}
		p.mu.Unlock()
		if len(owners) > 0 {
			yield(traffic.Sample{
				ID: maphash.Comparable(p.seed, c.Element), Port: first,
				Counts: traffic.Counts{PacketsIn: c.Packets, BytesIn: c.Bytes},
			})
		}
	}
	return nil
}
