// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"fairlead/nftables/fake"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// everythingIn gives a mode a Service, host ports and pods that are masqueraded.
func everythingIn(m *Mode) *model.ServicePort {
	golden{hostPorts: hostPortsOfPods(), pods: &PodMasquerade{Pods: config(model.IPv4).PodCIDRs}}.tell(m, model.IPv4)
	return port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.5:8080", "10.244.1.5:8080")
}

// removals are removed one after the other, with what is left after each.
func removals() []struct {
	parts Parts
	left  string
} {
	return []struct {
		parts Parts
		left  string
	}{
		{Parts{}, "cluster-ips host-ports masqueraded-pods"},
		{Parts{PodMasquerade: true}, "cluster-ips host-ports"},
		{Parts{Services: true}, "host-ports"},
		{Parts{PodMasquerade: true, Services: true}, "host-ports"},
		{Parts{HostPorts: true}, "no table"},
		{Parts{HostPorts: true}, "no table"},
	}
}

// TestRemove: parts are removed by themselves, and with the last of them the table. What
// is left an agent that is told of it keeps.
func TestRemove(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	a.sync(everythingIn(a.Mode))
	for i, step := range removals() {
		removed, err := Remove(model.IPv4, k, step.parts)
		if want := i > 0 && i < len(removals())-1; err != nil || removed != want {
			t.Errorf("step %d: removed: %v, want %v; %v", i, removed, want, err)
		}
		if got := left(k.Table()); got != step.left {
			t.Errorf("step %d: there is %q, want %q", i, got, step.left)
		}
	}
	a = newAgent(t, config(model.IPv4), k)
	a.sync(everythingIn(a.Mode))
	if got := left(k.Table()); got != removals()[0].left {
		t.Errorf("after a start there is %q", got)
	}
}

// left names what of three sets has elements.
func left(t *table.Table) string {
	if t == nil {
		return "no table"
	}
	var out []string
	for _, name := range []string{clusterIPs, hostPorts, masqueradedPods} {
		if len(t.Elements[name]) > 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// TestKernelRemove: the same in the kernel.
func TestKernelRemove(t *testing.T) {
	inNamespace(t, func() {
		m, k := onKernel(t, config(model.IPv4), nil)
		s, names := snapshot(everythingIn(m))
		mustSync(t, m, proxier.Desired{Snapshot: s, Changed: names, Node: here(model.IPv4), Prune: true})
		for i, step := range removals() {
			if _, err := Remove(model.IPv4, k, step.parts); err != nil {
				t.Errorf("step %d: %v", i, err)
			}
			state, err := k.Read()
			if err != nil {
				t.Fatal(err)
			}
			if (state == nil) != (step.left == "no table") {
				t.Fatalf("step %d: want %s", i, step.left)
			}
			if state == nil {
				continue
			}
			now := &table.Table{Elements: map[string][]table.Element{}}
			for _, set := range m.drawn.table.Sets {
				if err := k.Elements(set, func(e table.Element) { now.Elements[set.Name] = append(now.Elements[set.Name], e) }); err != nil {
					t.Fatal(err)
				}
			}
			if got := left(now); got != step.left {
				t.Errorf("step %d: there is %q, want %q", i, got, step.left)
			}
		}
	})
}

// TestGuardLoopback: the rule that keeps neighbours from 127.0.0.1 comes first, and is
// that of the mode.
func TestGuardLoopback(t *testing.T) {
	k, whole := &fake.Kernel{}, &fake.Kernel{}
	guarded, alone := newAgent(t, config(model.IPv4), k), newAgent(t, config(model.IPv4), whole)
	for range 2 {
		if err := GuardLoopback(k); err != nil {
			t.Fatal(err)
		}
	}
	if text := k.Save(); strings.Count(text, "127.0.0.0/8 drop") != 1 || strings.Count(text, "chain") != 1 {
		t.Errorf("there is:\n%s", text)
	}
	guarded.sync()
	alone.sync()
	if diff := cmp.Diff(whole.Save(), k.Save()); diff != "" {
		t.Errorf("(-without it before +with it):\n%s", diff)
	}
	n := k.Applied
	if err := GuardLoopback(k); err != nil || k.Applied != n {
		t.Errorf("where the mode has a table, %d transactions: %v", k.Applied-n, err)
	}
}

// TestMetrics: all series are there from the start, and count what they say.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := NewMetrics(reg, []model.Family{model.IPv4})
	if n, err := testutil.GatherAndCount(reg); n != 4 || err != nil {
		t.Errorf("%d series at the start, want 4: %v", n, err)
	}
	fail := map[string]bool{}
	k := &fake.Kernel{Fault: func(call string) (error, bool) {
		if fail[call] {
			return unix.ENOBUFS, false
		}
		return nil, false
	}}
	a := newAgent(t, config(model.IPv4), k)
	a.metrics = m
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.5:8080")
	a.sync(web)
	s, names := snapshot(with(web, func(p *model.ServicePort) { p.Endpoints = nil }))
	d := proxier.Desired{Snapshot: s, Changed: names, Node: a.where, Prune: true}
	a.syncChanged(s, names)
	fail["apply"] = true
	d.Changed, d.Settle = nil, true
	if _, err := a.Sync(t.Context(), d); err == nil {
		t.Error("a class could be removed")
	}
	const want = `
# HELP kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total Syncs after which sets and chains could not be removed that nothing uses any more.
# TYPE kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total counter
kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"} 1
# HELP kubeproxy_sync_proxy_rules_nftables_sync_failures_total Syncs of the table that failed.
# TYPE kubeproxy_sync_proxy_rules_nftables_sync_failures_total counter
kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "kubeproxy_sync_proxy_rules_nftables_sync_failures_total"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]int{"full": 1, "partial": 2} {
		h, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range h {
			if f.GetName() != "kubeproxy_sync_"+name+"_proxy_rules_duration_seconds" {
				continue
			}
			if got := f.GetMetric()[0].GetHistogram().GetSampleCount(); got != uint64(want) {
				t.Errorf("%d %s syncs, want %d", got, name, want)
			}
		}
	}
}
