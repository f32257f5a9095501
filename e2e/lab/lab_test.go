// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

const port = 8080

// newLab makes a lab for one test, or skips the test.
func newLab(t *testing.T, cfg lab.Config) *lab.Lab {
	t.Helper()
	if err := lab.Supported(t.Context()); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func needVariant(t *testing.T, v lab.Variant) {
	t.Helper()
	if err := lab.VariantSupported(t.Context(), v); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

func echo(t *testing.T, ns *lab.NS) {
	t.Helper()
	if _, err := ns.EchoPort(t.Context(), port); err != nil {
		t.Fatal(err)
	}
}

func networks() []string { return []string{"tcp", "udp"} }

// TestKernelPlan: a lab has the labels and addresses that were planned, and its
// namespaces have them on their links.
func TestKernelPlan(t *testing.T) {
	cfg := lab.Config{Nodes: 2, Pods: 2}
	plan, l := lab.Plan(cfg), newLab(t, cfg)
	want, got := hosts(plan), hosts(l)
	if len(want) != 7 || len(got) != len(want) {
		t.Fatalf("%d hosts are planned and %d are there, want 7", len(want), len(got))
	}
	for i, ns := range got {
		if ns.Label != want[i].Label {
			t.Errorf("host %d is %s, and %s in the plan", i, ns.Label, want[i].Label)
		}
		text, err := ns.Run(t.Context(), "ip", "-brief", "addr", "show", "dev", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range model.Families() {
			if planned := want[i].Addr(f); ns.Addr(f) != planned || !strings.Contains(text, " "+planned.String()+"/") {
				t.Errorf("%s: planned %s, the lab says %s and the kernel %q", ns.Label, planned, ns.Addr(f), text)
			}
		}
	}
	for i, n := range l.Nodes {
		for _, f := range model.Families() {
			if got, want := n.PodCIDR(f), plan.Nodes[i].PodCIDR(f); got != want || !want.Contains(n.Pods[1].Addr(f)) {
				t.Errorf("%s has the pod CIDR %s, and %s in the plan", n.Label, got, want)
			}
		}
	}
	if err := plan.Client.Do(func() error { return nil }); err == nil {
		t.Error("a host that is only planned can be entered")
	}
}

// hosts are all hosts of a lab, in order.
func hosts(l *lab.Lab) []*lab.NS {
	out := []*lab.NS{l.Client}
	for _, n := range l.Nodes {
		out = append(append(out, n.NS), n.Pods...)
	}
	return out
}

func TestKernelReachability(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 2, Pods: 2})
	n1, n2 := l.Nodes[0], l.Nodes[1]
	for _, f := range model.Families() {
		if err := l.RouteClient(n1, n1.PodCIDR(f)); err != nil {
			t.Fatal(err)
		}
		if err := l.RouteClient(n2, n2.PodCIDR(f)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name     string
		from, to *lab.NS
	}{
		{"pod to itself", n1.Pods[0], n1.Pods[0]},
		{"pod to pod", n1.Pods[0], n1.Pods[1]},
		{"pod to client", n1.Pods[0], l.Client},
		{"client to pod", l.Client, n1.Pods[0]},
		{"client to node", l.Client, n1.NS},
		{"node to node", n1.NS, n2.NS},
		{"pod to pod on other node", n1.Pods[0], n2.Pods[1]},
		{"node to pod on other node", n1.NS, n2.Pods[0]},
	}
	for _, ns := range []*lab.NS{l.Client, n1.NS, n2.NS, n1.Pods[0], n1.Pods[1], n2.Pods[0], n2.Pods[1]} {
		echo(t, ns)
	}
	for _, tt := range tests {
		for _, f := range model.Families() {
			for _, network := range networks() {
				t.Run(fmt.Sprintf("%s %s %s", tt.name, f, network), func(t *testing.T) {
					r := lab.Probe{From: tt.from, Network: network, To: netip.AddrPortFrom(tt.to.Addr(f), port)}.Once(t.Context())
					if r.Server != tt.to.Label || r.Source.Addr() != tt.from.Addr(f) {
						t.Errorf("got %v, want an answer of %s that saw %s", r, tt.to.Label, tt.from.Addr(f))
					}
					if r.Source != r.Local {
						t.Errorf("server saw %s, client was %s", r.Source, r.Local)
					}
				})
			}
		}
	}
}

func TestKernelNodeToPod(t *testing.T) {
	l := newLab(t, lab.Config{Pods: 1})
	n := l.Nodes[0]
	echo(t, n.Pods[0])
	for _, f := range model.Families() {
		for _, network := range networks() {
			p := lab.Probe{From: n.NS, Network: network, To: netip.AddrPortFrom(n.Pods[0].Addr(f), port)}
			got := p.Spread(t.Context(), 10)
			want := lab.Tally{
				Servers: map[string]int{"node-1-pod-1": 10},
				// The node is on the pods' network with its gateway address.
				Sources: map[netip.Addr]int{n.PodCIDR(f).Addr().Next(): 10},
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("%s: -want +got:\n%s", p, diff)
			}
		}
	}
}
