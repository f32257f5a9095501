// SPDX-License-Identifier: Apache-2.0

package iptables_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/nat"
	"fairlead/nat/ipset"
	fakeset "fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/health"
	"fairlead/proxier/model"
)

// node is an agent without its source: tracker, loop, mode and engine as
// cmd/fairlead wires them, on a kernel in memory.
type node struct {
	kernel  *fake.Kernel
	sets    *fakeset.Sets
	loops   *fakeset.Set
	tracker *proxier.Tracker
	loop    *proxier.Loop
}

// newNode returns a node whose rules are compact or not.
func newNode(t *testing.T, f model.Family, compact bool) *node {
	t.Helper()
	reg := prometheus.NewRegistry()
	state, err := health.New(health.Config{})
	if err != nil {
		t.Fatal(err)
	}
	metrics := proxier.NewMetrics(reg, []model.Family{f})
	n := &node{kernel: &fake.Kernel{}, sets: &fakeset.Sets{}, loops: fakeset.NewSet(nat.LoopBack(f == model.IPv6), ipset.HashIPPortIP, f == model.IPv6)}
	n.kernel.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool {
		return n.loops.Missing(string(r)) || n.sets.Missing(string(r))
	}
	n.sets.Rules, n.loops.Kernel.Rules = n.kernel.Save, n.kernel.Save
	n.tracker = proxier.NewTracker(proxier.TrackerConfig{Families: []model.Family{f}, Health: state, Metrics: metrics})
	rules := iptables.RenderConfig{Family: f, MasqueradeBit: 14, LocalhostNodePorts: true, Compact: compact}
	loopBack := ""
	if compact {
		loopBack = n.loops.Name()
	}
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: n.kernel, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-nft-restore", Save: "iptables-nft-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), iptables.Contribution(rules)},
	})
	engine.Stage(nat.Chains(14, loopBack))
	n.loop = proxier.NewLoop(proxier.LoopConfig{
		Family: f, Mode: iptables.New(rules, engine, n.sets, n.loops, nil),
		Tracker: n.tracker, Health: state, Metrics: metrics, NodeName: "node-1", SyncPeriod: 30 * time.Second,
	})
	return n
}

// TestIncrementalEqualsFull: whatever the sequence of changes, and whatever
// restores fail on the way, the kernel ends where an agent ends that sees only
// the final objects.
func TestIncrementalEqualsFull(t *testing.T) {
	const steps, settleEvery = 2400, 40
	seed := uint64(time.Now().UnixNano())
	compact := seed%2 == 0
	t.Logf("seed %d, compact: %t", seed, compact)
	rnd, faults := rand.New(rand.NewPCG(seed, 0)), rand.New(rand.NewPCG(seed, 1))
	synctest.Test(t, func(t *testing.T) {
		// A logger without a sink: the faults are meant to happen.
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), klog.Logger{}))
		defer cancel()
		n := newNode(t, model.IPv4, compact)
		var faulty atomic.Bool
		faulty.Store(true)
		n.kernel.Fault = func() fake.Fault {
			if faulty.Load() && faults.IntN(5) == 0 {
				return fake.FailBefore + fake.Fault(faults.IntN(4))
			}
			return fake.NoFault
		}
		n.sets.Fault = func(string, string) error {
			if faulty.Load() && faults.IntN(5) == 0 {
				return errors.New("injected failure")
			}
			return nil
		}
		n.loops.Kernel.Fault = func(op string) error { return n.sets.Fault(op, "") }
		go n.loop.Run(ctx)
		w := newWorld(rnd)
		n.tracker.Update(model.Changes{Status: &model.SourceStatus{Listed: true, Complete: true}})
		for step := 1; step <= steps; step++ {
			n.tracker.Update(w.step())
			time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
			if step%settleEvery != 0 {
				continue
			}
			faulty.Store(false)
			time.Sleep(2 * time.Minute) // past every backoff and a periodic check
			synctest.Wait()
			full := fullSync(t, w, compact)
			if diff := cmp.Diff(full.kernel.Save(), n.kernel.Save()); diff != "" {
				t.Fatalf("seed %d, after step %d (-full +incremental):\n%s", seed, step, diff)
			}
			if diff := cmp.Diff(full.sets.Names(), n.sets.Names()); diff != "" {
				t.Fatalf("seed %d, sets after step %d (-full +incremental):\n%s", seed, step, diff)
			}
			if diff := cmp.Diff(full.loops.In(), n.loops.In(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Fatalf("seed %d, endpoints that reach themselves after step %d (-full +incremental):\n%s", seed, step, diff)
			}
			faulty.Store(true)
		}
	})
}

// fullSync returns a new agent that has seen the world once.
func fullSync(t *testing.T, w *world, compact bool) *node {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n := newNode(t, model.IPv4, compact)
	n.tracker.Update(model.Changes{
		Services: w.services, EndpointSlices: w.slices,
		Status: &model.SourceStatus{Listed: true, Complete: true},
	})
	done := make(chan error)
	go func() { done <- n.loop.Run(ctx) }()
	synctest.Wait()
	cancel()
	<-done
	return n
}

// world is a small cluster that changes at random.
type world struct {
	rnd      *rand.Rand
	services map[model.ObjectKey]*model.Service
	slices   map[model.ObjectKey]*model.EndpointSlice
}

func newWorld(rnd *rand.Rand) *world {
	return &world{rnd, map[model.ObjectKey]*model.Service{}, map[model.ObjectKey]*model.EndpointSlice{}}
}

// step changes one to three objects.
func (w *world) step() model.Changes {
	c := model.Changes{
		Services:       map[model.ObjectKey]*model.Service{},
		EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{},
	}
	for range 1 + w.rnd.IntN(3) {
		if w.rnd.IntN(3) == 0 {
			key := model.ObjectKey{Namespace: "ns", Name: fmt.Sprintf("svc-%d", w.rnd.IntN(8))}
			c.Services[key] = w.service(key)
			set(w.services, key, c.Services[key])
		} else {
			key := model.ObjectKey{Namespace: "ns", Name: fmt.Sprintf("slice-%d", w.rnd.IntN(16))}
			c.EndpointSlices[key] = w.slice(key)
			set(w.slices, key, c.EndpointSlices[key])
		}
	}
	return c
}

func set[V any](m map[model.ObjectKey]*V, key model.ObjectKey, v *V) {
	if v == nil {
		delete(m, key)
	} else {
		m[key] = v
	}
}

func (w *world) ports(target bool) []model.Port {
	var out []model.Port
	for i, name := range []string{"", "http", "dns"} {
		for _, proto := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			if w.rnd.IntN(3) > 0 {
				continue
			}
			number := uint16(100*(i+1) + w.rnd.IntN(2))
			if target {
				number += 8000
			}
			out = append(out, model.Port{Name: name, Protocol: proto, Number: number})
		}
	}
	return out
}

func (w *world) service(key model.ObjectKey) *model.Service {
	if w.rnd.IntN(4) == 0 {
		return nil
	}
	ip := netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + w.rnd.IntN(200))})
	return &model.Service{
		Key: key, ClusterIPs: []netip.Addr{ip}, Ports: w.ports(false),
		AffinityTimeout: time.Duration(w.rnd.IntN(3)) * time.Hour,
	}
}

func (w *world) slice(key model.ObjectKey) *model.EndpointSlice {
	if w.rnd.IntN(4) == 0 {
		return nil
	}
	s := &model.EndpointSlice{
		Key: key, Service: model.ObjectKey{Namespace: "ns", Name: fmt.Sprintf("svc-%d", w.rnd.IntN(8))},
		Family: model.Families()[w.rnd.IntN(8)/7], Ports: w.ports(true),
	}
	for range w.rnd.IntN(5) {
		ip := netip.AddrFrom4([4]byte{10, 244, 0, byte(1 + w.rnd.IntN(20))})
		if s.Family == model.IPv6 {
			ip = netip.AddrFrom16([16]byte{0xfd, 15: byte(1 + w.rnd.IntN(20))})
		}
		s.Endpoints = append(s.Endpoints, model.SliceEndpoint{Addr: ip, NodeName: "node-1", Ready: w.rnd.IntN(4) > 0, Serving: true})
	}
	return s
}
