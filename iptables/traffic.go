// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"hash/maphash"
	"strings"
	"sync"

	"fairlead/iptables/ruleset"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// CountedRules reads the rules of a table with the packets that each has matched; the
// text of a rule is valid during the call only.
type CountedRules func(ctx context.Context, t ruleset.Table, visit func(k ruleset.ChainKey, packets uint64, text []byte)) error

// Traffic tells how many connections the ports of Services have had, by the counters of
// the rules that translate: in table nat a rule sees the first packet of each connection.
// It is safe for concurrent use.
type Traffic struct {
	rules CountedRules
	seed  maphash.Seed

	mu sync.Mutex
	// ports are those that there are, by the hash in the names of their chains.
	ports map[chainHash]model.ServicePortName
}

var (
	_ traffic.Source   = (*Traffic)(nil)
	_ proxier.Follower = (*Traffic)(nil)
)

// NewTraffic returns what reads rules of a family.
func NewTraffic(rules CountedRules) *Traffic {
	return &Traffic{rules: rules, seed: maphash.MakeSeed(), ports: map[chainHash]model.ServicePortName{}}
}

// chainHash is the end of a chain's name, without that of a part of it.
type chainHash [16]byte

// hashIn returns the hash in the name of a chain that begins with one of prefixes.
func hashIn(name string, prefixes ...string) (h chainHash, ok bool) {
	for _, p := range prefixes {
		if rest, found := strings.CutPrefix(name, p); found && len(rest) >= len(h) {
			return chainHash([]byte(rest[:len(h)])), true
		}
	}
	return h, false
}

// Follow implements proxier.Follower.
func (t *Traffic) Follow(_ context.Context, d proxier.Desired) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range d.Changed {
		h, _ := hashIn(serviceChain(name), servicePrefix)
		if d.Snapshot.Get(name) == nil {
			delete(t.ports, h)
		} else {
			t.ports[h] = name
		}
	}
	return nil
}

// Read implements traffic.Source. Of an endpoint that goes, what it has had since the
// reading before is lost.
func (t *Traffic) Read(ctx context.Context, yield func(traffic.Sample)) error {
	endpoints := map[chainHash]uint64{} // what they have had
	owners := map[chainHash]chainHash{} // the ports that lead to them
	tell := func(id uint64, port chainHash, n uint64) {
		t.mu.Lock()
		name, known := t.ports[port]
		t.mu.Unlock()
		if known {
			yield(traffic.Sample{ID: id, Port: name, Counts: traffic.Counts{Connections: n}})
		}
	}
	err := t.rules(ctx, ruleset.NAT, func(k ruleset.ChainKey, packets uint64, text []byte) {
		if h, ok := hashIn(k.Name, endpointPrefix); ok {
			if bytes.Contains(text, []byte("-j DNAT ")) {
				endpoints[h] = packets
			}
			return
		}
		port, ok := hashIn(k.Name, servicePrefix, localPrefix)
		if !ok {
			return
		}
		_, target, _ := bytes.Cut(text, []byte("-j "))
		if ep, ok := bytes.CutPrefix(target, []byte(endpointPrefix)); ok && len(ep) >= len(port) {
			owners[chainHash(ep[:len(port)])] = port
		} else if bytes.HasPrefix(target, []byte("DNAT ")) { // the compact form
			tell(maphash.String(t.seed, k.Name+" "+string(text)), port, packets)
		}
	})
	if err != nil {
		return err
	}
	for ep, n := range endpoints {
		if port, ok := owners[ep]; ok {
			tell(maphash.Bytes(t.seed, ep[:]), port, n)
		}
	}
	return nil
}
