// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/nat/conntrack"
	"fairlead/proxier"
	"fairlead/proxier/health"
	"fairlead/proxier/model"
)

// flowTable is a table of flows without any, which counts how often it is read.
type flowTable struct{ reads int }

func (k *flowTable) Flows(context.Context, model.Family, func(conntrack.Flow) bool) error {
	k.reads++
	return nil
}

func (k *flowTable) Delete(context.Context, model.Family, []conntrack.Flow) (int, error) {
	return 0, nil
}

// followed are the followers of a cluster of n Services with a UDP and a TCP
// port each, that have followed the first sync.
type followed struct {
	t       testing.TB
	kernel  *flowTable
	flows   *flows
	checks  *healthChecks
	desired proxier.Desired
}

func follow(t testing.TB, n int) *followed {
	state, err := health.New(health.Config{})
	if err != nil {
		t.Fatal(err)
	}
	f := &followed{t: t, kernel: &flowTable{}, checks: newHealthChecks(model.IPv4, state, nil)}
	f.flows = &flows{ports: &hostPorts{}, table: conntrack.NewTable(), reconciler: conntrack.New(conntrack.Config{
		Family: model.IPv4, Kernel: f.kernel, Metrics: conntrack.NewMetrics(prometheus.NewRegistry(), model.Families()),
	})}
	t.Cleanup(f.checks.ports.Close)
	f.desired = proxier.Desired{Snapshot: model.NewSnapshot(), Prune: true}
	changes := map[model.ServicePortName]*model.ServicePort{}
	for i := range n {
		for _, protocol := range []model.Protocol{model.UDP, model.TCP} {
			p := servicePort(i, protocol, 1)
			changes[p.Name] = p
		}
	}
	f.follow(changes)
	return f
}

// servicePort is a port of the i-th Service, with an endpoint of that number.
func servicePort(i int, protocol model.Protocol, endpoint byte) *model.ServicePort {
	ep := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, endpoint, byte(i >> 8), byte(i)}), 8080)
	p := &model.ServicePort{
		Name:      model.ServicePortName{Service: model.ObjectKey{Namespace: "shop", Name: fmt.Sprint("svc-", i)}, Port: "p", Protocol: protocol},
		ClusterIP: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80,
		Endpoints: []model.Endpoint{{AddrPort: ep}}, Usable: true,
	}
	if protocol == model.UDP {
		p.Serving = []netip.AddrPort{ep}
	}
	return p
}

func (f *followed) follow(changes map[model.ServicePortName]*model.ServicePort) {
	f.desired.Snapshot = f.desired.Snapshot.With(changes)
	f.desired.Changed = nil
	for name := range changes {
		f.desired.Changed = append(f.desired.Changed, name)
	}
	for _, follower := range []proxier.Follower{f.flows, f.checks} {
		if err := follower.Follow(f.t.Context(), f.desired); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *followed) change(p *model.ServicePort) {
	f.follow(map[model.ServicePortName]*model.ServicePort{p.Name: p})
}

// TestFlowsAreReadWhereTheyMayBeStale: the kernel's table of flows may be large,
// and is read only after a change that leaves UDP flows behind, and once more
// when the rules have been verified since.
func TestFlowsAreReadWhereTheyMayBeStale(t *testing.T) {
	f := follow(t, 3)
	for _, step := range []struct {
		name   string
		change *model.ServicePort
		verify bool
		reads  int
	}{
		{name: "at first", reads: 1},
		{name: "a TCP endpoint instead", change: servicePort(0, model.TCP, 2), reads: 1},
		{name: "verified", verify: true, reads: 2},
		{name: "verified again", verify: true, reads: 2},
		{name: "a UDP endpoint instead", change: servicePort(0, model.UDP, 2), reads: 3},
		{name: "another TCP endpoint instead", change: servicePort(1, model.TCP, 2), reads: 3},
		{name: "verified after that", verify: true, reads: 4},
	} {
		if f.desired.Verify = step.verify; step.change != nil {
			f.change(step.change)
		} else {
			f.follow(nil)
		}
		if f.kernel.reads != step.reads {
			t.Errorf("%s: read %d times, want %d", step.name, f.kernel.reads, step.reads)
		}
	}
}

// BenchmarkFollow has followers follow one change. Its cost must not depend on
// how many Services there are.
func BenchmarkFollow(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			f := follow(b, n)
			versions := []*model.ServicePort{servicePort(n/2, model.TCP, 2), servicePort(n/2, model.TCP, 3)}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				f.change(versions[i%2])
			}
		})
	}
}

// TestOnce: what is done once is done when all objects are known, and again only where it
// could not be done yet.
func TestOnce(t *testing.T) {
	calls, failed := 0, errors.New("failed")
	answers := []error{errNotYet, failed, nil}
	o := &once{do: func(context.Context) error { calls++; return answers[calls-1] }}
	for i, step := range []struct {
		prune bool
		calls int
		err   error
	}{
		{prune: false, calls: 0},
		{prune: true, calls: 1},
		{prune: true, calls: 2, err: failed},
		{prune: true, calls: 2},
	} {
		if err := o.Follow(t.Context(), proxier.Desired{Prune: step.prune}); !errors.Is(err, step.err) || calls != step.calls {
			t.Errorf("step %d: %d calls, error %v; want %d and %v", i, calls, err, step.calls, step.err)
		}
	}
}
