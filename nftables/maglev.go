// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"fairlead/proxier/model"
)

// maglevSizes are the sizes of Maglev tables, primes.
var maglevSizes = [...]int{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521}

// maglevSize returns the size of the table for a number of endpoints: a hundred slots for
// each, as the paper advises, while there are enough.
func maglevSize(endpoints int) int {
	for _, size := range maglevSizes {
		if size >= 100*endpoints {
			return size
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// maglev fills a table by "Maglev: A Fast and Reliable Software Network Load Balancer"
// (NSDI 2016, section 3.4): endpoints take turns, each with the next slot of its own
// permutation that is free. So each has as many slots as others, within one percent, and
// where one comes or goes few slots of the others change. It hangs on the endpoints alone,
// which must be in the same order everywhere.
func maglev(endpoints []netip.AddrPort) []netip.AddrPort {
	if len(endpoints) == 0 {
		return nil
	}
	size := maglevSize(len(endpoints))
	next, skip := make([]int, len(endpoints)), make([]int, len(endpoints))
	for i, ep := range endpoints {
		raw, _ := ep.MarshalBinary()
		h := sha256.Sum256(raw)
		next[i] = int(binary.BigEndian.Uint64(h[:8]) % uint64(size))
		skip[i] = int(binary.BigEndian.Uint64(h[8:16])%uint64(size-1)) + 1
	}
	out := make([]netip.AddrPort, size)
	for filled := 0; filled < size; {
		for i, ep := range endpoints {
			for out[next[i]].IsValid() {
				next[i] = (next[i] + skip[i]) % size
			}
			out[next[i]] = ep
			if filled++; filled == size {
				break
			}
		}
	}
	return out
}

// balancing is how a port's endpoints are chosen.
func (c Config) balancing(p *model.ServicePort) model.Balancing {
	switch {
	case p.Balancing != "":
		return p.Balancing
	case c.Balancing != "":
		return c.Balancing
	}
	return model.Random
}
