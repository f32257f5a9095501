// SPDX-License-Identifier: Apache-2.0

package iptables_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier"
	"fairlead/proxier/health"
	"fairlead/proxier/model"
)

// sink is a kernel that takes everything and has nothing.
type sink struct {
	restores, bytes int
	done            chan struct{}
}

func (s *sink) Run(_ context.Context, c ruleset.Command) error {
	if strings.HasSuffix(c.Name, "-restore") {
		n, err := io.Copy(io.Discard, c.Stdin)
		s.restores, s.bytes = s.restores+1, s.bytes+int(n)
		return err
	}
	return nil
}

// told tells of each sync that has succeeded.
type told chan struct{}

func (t told) Follow(context.Context, proxier.Desired) error {
	t <- struct{}{}
	return nil
}

// benchNode runs all from the tracker to the commands for n Services of ten
// endpoints. Each sync is told of.
func benchNode(b *testing.B, services, endpoints int) (*proxier.Tracker, *sink, told) {
	b.Helper()
	reg := prometheus.NewRegistry()
	state, err := health.New(health.Config{Timeout: time.Minute, Registerer: reg})
	if err != nil {
		b.Fatal(err)
	}
	families := []model.Family{model.IPv4}
	metrics := proxier.NewMetrics(reg, families)
	tracker := proxier.NewTracker(proxier.TrackerConfig{Families: families, Health: state, Metrics: metrics})
	rules := iptables.RenderConfig{
		Family: model.IPv4, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}, MasqueradeBit: 14,
	}
	kernel := &sink{}
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: kernel, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-nft-restore", Save: "iptables-nft-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), iptables.Contribution(rules)},
	})
	engine.Stage(nat.Chains(14, ""))
	synced := make(told)
	loop := proxier.NewLoop(proxier.LoopConfig{
		Family: model.IPv4, Mode: iptables.New(rules, engine, nil, nil, nil), Followers: []proxier.Follower{synced},
		Tracker: tracker, Health: state, Metrics: metrics, NodeName: "node-1", SyncPeriod: time.Hour,
	})
	ctx, cancel := context.WithCancel(klog.NewContext(b.Context(), klog.Logger{}))
	stopped := make(chan error)
	go func() { stopped <- loop.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			b.Error(err)
		}
	})
	c := model.Changes{
		Services: map[model.ObjectKey]*model.Service{}, EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{},
		Status: &model.SourceStatus{Listed: true, Complete: true},
	}
	for i := range services {
		key := benchKey(i)
		c.Services[key] = &model.Service{
			Key: key, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []model.Port{{Protocol: model.TCP, Number: 80}},
		}
		c.EndpointSlices[key] = benchSlice(i, endpoints, 0)
	}
	tracker.Update(c)
	return tracker, kernel, synced
}

func benchKey(i int) model.ObjectKey {
	return model.ObjectKey{Namespace: "bench", Name: fmt.Sprintf("svc-%05d", i)}
}

// benchSlice returns the endpoints of a Service; version decides which the first
// is.
func benchSlice(service, endpoints, version int) *model.EndpointSlice {
	key := benchKey(service)
	s := &model.EndpointSlice{Key: key, Service: key, Family: model.IPv4, Ports: []model.Port{{Protocol: model.TCP, Number: 8080}}}
	for j := range endpoints {
		n := service*endpoints + j
		last := byte(n)
		if j == 0 {
			n += version << 20
		}
		s.Endpoints = append(s.Endpoints, model.SliceEndpoint{
			Addr: netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), last}), NodeName: "node-2", Ready: true, Serving: true,
		})
	}
	return s
}

// BenchmarkChange is one change of an EndpointSlice, from the tracker to the
// bytes for the restore command: its cost must not depend on how many Services
// there are.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			tracker, kernel, synced := benchNode(b, n, 10)
			<-synced
			change := func(i int) {
				s := benchSlice(n/2, 10, 1+i%2)
				tracker.Update(model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{s.Key: s}})
				<-synced
			}
			change(0) // after the rest that follows the first sync
			restores, bytes := kernel.restores, kernel.bytes
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				change(i)
			}
			b.ReportMetric(float64(kernel.bytes-bytes)/float64(i), "restored-B/op")
			if kernel.restores-restores != i {
				b.Errorf("%d changes made %d restores", i, kernel.restores-restores)
			}
		})
	}
}

// BenchmarkFirstSync is all of the first sync but the commands.
func BenchmarkFirstSync(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, synced := benchNode(b, n, 10)
				<-synced
			}
		})
	}
}
