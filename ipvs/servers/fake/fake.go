// SPDX-License-Identifier: Apache-2.0

// Package fake keeps IPVS virtual servers in memory, for tests, and refuses what
// the kernel would refuse.
package fake

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/ipvs/servers"
)

// Kernel does what servers.Kernel does. It is safe for concurrent use. Its fields
// are set before it is used.
type Kernel struct {
	// IPv6 is the family; addresses of the other are refused.
	IPv6 bool
	// Has are the schedulers that there are; nil is all.
	Has []string
	// Fault, where set, is asked before each operation, which is as in Ops, and makes
	// it fail.
	Fault func(op string) error

	mu       sync.Mutex
	servers  map[servers.Key]*server
	timeouts servers.Timeouts // 0: the kernel's own
	ops      []string
}

type server struct {
	servers.Server
	altered      bool
	stats        servers.Stats
	destinations map[netip.AddrPort]servers.Status
}

// begin notes an operation, and asks whether it is to fail.
func (k *Kernel) begin(op string) error {
	k.mu.Lock()
	k.ops = append(k.ops, op)
	k.mu.Unlock()
	if k.Fault != nil {
		return k.Fault(op)
	}
	return nil
}

// do notes an operation, and does it unless it is to fail. f runs with mu held.
func (k *Kernel) do(op string, f func() error) error {
	err := k.begin(op)
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		err = f()
	}
	if err != nil {
		return fmt.Errorf("ipvsadm %s: %w", op, err)
	}
	return nil
}

// with does an operation on a virtual server that must be there.
func (k *Kernel) with(op string, key servers.Key, f func(*server) error) error {
	return k.do(op, func() error {
		s := k.servers[key]
		if s == nil {
			return servers.ErrNoServer
		}
		return f(s)
	})
}

// List returns all virtual servers with their destinations.
func (k *Kernel) List() (out []servers.Listed, err error) {
	err = k.do("-L", func() error { out = k.list(); return nil })
	return out, err
}

// Get returns one virtual server with its destinations.
func (k *Kernel) Get(key servers.Key) (out servers.Listed, err error) {
	err = k.with("-L "+key.Option(), key, func(s *server) error { out = s.listed(); return nil })
	return out, err
}

// Create makes a virtual server.
func (k *Kernel) Create(s servers.Server) error {
	return k.do("-A "+s.String(), func() error {
		if err := k.check(s); err != nil {
			return err
		}
		if k.servers[s.Key] != nil {
			return servers.ErrExists
		}
		k.put(&server{Server: s, destinations: map[netip.AddrPort]servers.Status{}})
		return nil
	})
}

// Update changes a virtual server.
func (k *Kernel) Update(s servers.Server) error {
	return k.with("-E "+s.String(), s.Key, func(old *server) error {
		if err := k.check(s); err != nil {
			return err
		}
		old.Server, old.altered = s, false
		return nil
	})
}

// check tells what the kernel has against a virtual server.
func (k *Kernel) check(s servers.Server) error {
	if s.Addr.Is6() != k.IPv6 {
		return unix.EAFNOSUPPORT
	}
	if k.Has != nil && !slices.Contains(k.Has, s.Scheduler) || !slices.Contains(servers.AllSchedulers(), s.Scheduler) {
		return servers.ErrNoScheduler
	}
	return nil
}

// Delete removes a virtual server.
func (k *Kernel) Delete(key servers.Key) error {
	return k.with("-D "+key.Option(), key, func(*server) error { delete(k.servers, key); return nil })
}

// AddDestination adds destinations.
func (k *Kernel) AddDestination(key servers.Key, destinations ...servers.Destination) error {
	var errs []error
	for _, d := range destinations {
		errs = append(errs, k.addDestination(key, d))
	}
	return errors.Join(errs...)
}

func (k *Kernel) addDestination(key servers.Key, d servers.Destination) error {
	return k.with("-a "+d.Line(key), key, func(s *server) error {
		if _, ok := s.destinations[d.Addr]; ok {
			return servers.ErrExists
		}
		if d.Addr.Addr().Is6() != k.IPv6 {
			return unix.EAFNOSUPPORT
		}
		if d.Addr.Addr().IsMulticast() {
			return unix.EINVAL
		}
		s.destinations[d.Addr] = servers.Status{Destination: d}
		return nil
	})
}

// UpdateDestination changes a destination.
func (k *Kernel) UpdateDestination(key servers.Key, d servers.Destination) error {
	return k.with("-e "+d.Line(key), key, func(s *server) error {
		old, ok := s.destinations[d.Addr]
		if !ok {
			return servers.ErrNoDestination
		}
		old.Destination, old.Altered = d, false
		s.destinations[d.Addr] = old
		return nil
	})
}

// DeleteDestination removes a destination.
func (k *Kernel) DeleteDestination(key servers.Key, addr netip.AddrPort) error {
	return k.with("-d "+key.Option()+" -r "+addr.String(), key, func(s *server) error {
		if _, ok := s.destinations[addr]; !ok {
			return servers.ErrNoDestination
		}
		delete(s.destinations, addr)
		return nil
	})
}

// Timeouts returns the times that have been set, or that the kernel starts with.
func (k *Kernel) Timeouts() (out servers.Timeouts, err error) {
	err = k.do("-L --timeout", func() error {
		out = servers.Timeouts{
			TCP:    cmp.Or(k.timeouts.TCP, 15*time.Minute),
			TCPFin: cmp.Or(k.timeouts.TCPFin, 2*time.Minute),
			UDP:    cmp.Or(k.timeouts.UDP, 5*time.Minute),
		}
		return nil
	})
	return out, err
}

// SetTimeouts sets those that are not 0.
func (k *Kernel) SetTimeouts(t servers.Timeouts) error {
	op := fmt.Sprintf("--set %.0f %.0f %.0f", t.TCP.Seconds(), t.TCPFin.Seconds(), t.UDP.Seconds())
	return k.do(op, func() error {
		k.timeouts = servers.Timeouts{
			TCP:    cmp.Or(t.TCP, k.timeouts.TCP),
			TCPFin: cmp.Or(t.TCPFin, k.timeouts.TCPFin),
			UDP:    cmp.Or(t.UDP, k.timeouts.UDP),
		}
		return nil
	})
}

// Schedulers returns those of names that there are.
func (k *Kernel) Schedulers(names ...string) (out []string, err error) {
	err = k.do("probe", func() error {
		for _, n := range names {
			if k.check(servers.Server{Key: servers.Key{Addr: k.anyAddr()}, Scheduler: n}) == nil {
				out = append(out, n)
			}
		}
		return nil
	})
	return out, err
}

// Close does nothing.
func (k *Kernel) Close() {}
