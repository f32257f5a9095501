// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"

	"fairlead/iptables/idiom"
	"fairlead/ipvs/servers"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// ServerStats tells what has passed through virtual servers.
type ServerStats interface {
	Stats() (map[servers.Key]servers.Stats, error)
}

// Traffic tells what the ports of Services have carried, by the statistics of their
// virtual servers: that of the cluster IP, which external addresses are translated to,
// and those of node ports. It is safe for concurrent use.
type Traffic struct {
	servers ServerStats
	seed    maphash.Seed

	mu sync.Mutex
	// ports are those that there are, and places what they are told by: an address, or
	// none where it is a port of the node.
	ports  map[model.ServicePortName][]servers.Key
	places map[servers.Key]model.ServicePortName
}

var (
	_ traffic.Source   = (*Traffic)(nil)
	_ proxier.Follower = (*Traffic)(nil)
)

// NewTraffic returns what reads the virtual servers of a family.
func NewTraffic(s ServerStats) *Traffic {
	return &Traffic{
		servers: s, seed: maphash.MakeSeed(),
		ports: map[model.ServicePortName][]servers.Key{}, places: map[servers.Key]model.ServicePortName{},
	}
}

// Follow implements proxier.Follower.
func (t *Traffic) Follow(_ context.Context, d proxier.Desired) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range d.Changed { // first, as another one may have such a place now
		for _, k := range t.ports[name] {
			delete(t.places, k)
		}
		delete(t.ports, name)
	}
	for _, name := range d.Changed {
		p := d.Snapshot.Get(name)
		if p == nil {
			continue
		}
		proto := servers.Protocol(idiom.ProtocolNumber(name.Protocol))
		keys := []servers.Key{{Addr: p.ClusterIP, Protocol: proto, Port: p.Port}}
		if p.SparePort != 0 {
			keys = append(keys, servers.Key{Addr: p.ClusterIP, Protocol: proto, Port: p.SparePort})
		}
		if p.NodePort != 0 {
			keys = append(keys, servers.Key{Protocol: proto, Port: p.NodePort})
		}
		t.ports[name] = keys
		for _, k := range keys {
			t.places[k] = name
		}
	}
	return nil
}

// Read implements traffic.Source. The kernel sums up every two seconds.
func (t *Traffic) Read(_ context.Context, yield func(traffic.Sample)) error {
	all, err := t.servers.Stats()
	if err != nil {
		return fmt.Errorf("read statistics of IPVS: %w", err)
	}
	for k, s := range all {
		if name, ok := t.owner(k); ok {
			yield(traffic.Sample{
				ID: maphash.Comparable(t.seed, k), Port: name, Wraps: true,
				Counts: traffic.Counts{
					Connections: uint64(s.Conns), PacketsIn: uint64(s.PacketsIn), PacketsOut: uint64(s.PacketsOut),
					BytesIn: s.BytesIn, BytesOut: s.BytesOut,
				},
			})
		}
	}
	return nil
}

// owner returns the port that a virtual server is of.
func (t *Traffic) owner(k servers.Key) (model.ServicePortName, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name, ok := t.places[k]
	if !ok {
		k.Addr = netip.Addr{}
		name, ok = t.places[k]
	}
	return name, ok
}
