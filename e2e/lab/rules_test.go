// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// Nobody listens, nobody routes: the cases without any rule.
func TestKernelOutcomesWithoutRules(t *testing.T) {
	l := newLab(t, lab.Config{Pods: 1})
	n := l.Nodes[0]
	for _, f := range model.Families() {
		nowhere := map[model.Family]string{model.IPv4: "10.96.0.10", model.IPv6: "fd00:10:96::10"}[f]
		for _, network := range networks() {
			for _, from := range []*lab.NS{l.Client, n.NS, n.Pods[0]} {
				p := lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(n.Addr(f), port), Timeout: 200 * time.Millisecond}
				if r := p.Once(t.Context()); r.Outcome != lab.Refused {
					t.Errorf("%s, closed port: got %v, want refused", p, r)
				}
				p.To = netip.AddrPortFrom(netip.MustParseAddr(nowhere), 80)
				if r := p.Once(t.Context()); r.Outcome != lab.TimedOut {
					t.Errorf("%s, no rules: got %v, want timed out", p, r)
				}
			}
		}
	}
}

func TestKernelRejectAndDrop(t *testing.T) {
	for _, v := range lab.Variants() {
		t.Run(string(v), func(t *testing.T) {
			l := newLab(t, lab.Config{Pods: 2})
			needVariant(t, v)
			for _, f := range model.Families() {
				for _, target := range []string{"REJECT", "DROP"} {
					testTarget(t, l, v, f, target)
				}
			}
		})
	}
}

func testTarget(t *testing.T, l *lab.Lab, v lab.Variant, f model.Family, target string) {
	t.Helper()
	n := l.Nodes[0]
	vip := map[model.Family]netip.Addr{
		model.IPv4: netip.MustParseAddr("10.96.0.10"),
		model.IPv6: netip.MustParseAddr("fd00:10:96::10"),
	}[f]
	if err := l.RouteClient(n, netip.PrefixFrom(vip, vip.BitLen())); err != nil {
		t.Fatal(err)
	}
	for _, chain := range []string{"FORWARD", "OUTPUT"} {
		rule := []string{"-d", vip.String(), "-j", target}
		if err := n.Iptables(t.Context(), v, f, append([]string{"-A", chain}, rule...)...); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := n.Iptables(t.Context(), v, f, append([]string{"-D", chain}, rule...)...); err != nil {
				t.Error(err)
			}
		}()
	}
	want := map[string]lab.Outcome{"REJECT": lab.Refused, "DROP": lab.TimedOut}[target]
	for _, network := range networks() {
		for _, from := range []*lab.NS{l.Client, n.NS, n.Pods[0]} {
			p := lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(vip, 80)}
			count := 100
			if want == lab.TimedOut {
				p.Timeout, count = 50*time.Millisecond, 2
			}
			for _, r := range p.Batch(t.Context(), count) {
				if r.Outcome != want {
					t.Errorf("%s with %s %s, in a batch: got %s, want %s", p, f, target, r, want)
				}
			}
			got := p.Spread(t.Context(), count)
			if (want == lab.Refused && got.Refused != count) || (want == lab.TimedOut && got.TimedOut != count) {
				t.Errorf("%s with %s %s: got %+v, want %d %s", p, f, target, got, count, want)
			}
		}
	}
}

func TestKernelDNAT(t *testing.T) {
	for _, v := range lab.Variants() {
		t.Run(string(v), func(t *testing.T) {
			l := newLab(t, lab.Config{Pods: 2, ClientRoutes: []netip.Prefix{
				netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
			}})
			needVariant(t, v)
			n := l.Nodes[0]
			echo(t, n.Pods[0])
			vips := map[model.Family]string{model.IPv4: "10.96.0.10", model.IPv6: "fd00:10:96::10"}
			for _, f := range model.Families() {
				vip := netip.AddrPortFrom(netip.MustParseAddr(vips[f]), 80)
				want := dnatRules(vip.Addr(), netip.AddrPortFrom(n.Pods[0].Addr(f), port))
				if err := n.Restore(t.Context(), v, f, want); err != nil {
					t.Fatal(err)
				}
				got, err := n.Save(t.Context(), v, f)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(got, "#") || strings.Contains(got, "[0:0]") || strings.Count(got, "DNAT") != 4 {
					t.Errorf("got unexpected rules:\n%s", got)
				}
				// From the pod itself: out of the bridge port it came from.
				for _, from := range []*lab.NS{l.Client, n.NS, n.Pods[0], n.Pods[1]} {
					testDNAT(t, from, vip)
				}
			}
		})
	}
}

func dnatRules(vip netip.Addr, to netip.AddrPort) string {
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		for _, network := range networks() {
			fmt.Fprintf(&b, "-A %s -d %s -p %s --dport 80 -j DNAT --to-destination %s\n", chain, vip, network, to)
		}
	}
	fmt.Fprintf(&b, "-A POSTROUTING -s %[1]s -d %[1]s -j MASQUERADE\n", to.Addr())
	b.WriteString("COMMIT\n")
	return b.String()
}

func testDNAT(t *testing.T, from *lab.NS, vip netip.AddrPort) {
	t.Helper()
	for _, network := range networks() {
		p := lab.Probe{From: from, Network: network, To: vip}
		batch := p.Batch(t.Context(), 10)
		for _, r := range batch {
			if r.Server != "node-1-pod-1" || !r.Local.IsValid() || !r.Source.IsValid() {
				t.Errorf("%s: in a batch: got %s, to the socket at %s, want an answer of node-1-pod-1", p, r, r.Local)
			}
		}
		if len(batch) != 10 {
			t.Errorf("%s: got %d results of 10 requests", p, len(batch))
		}
		if r := p.Once(t.Context()); r.Server != "node-1-pod-1" {
			t.Errorf("%s: got %v, want an answer of node-1-pod-1", p, r)
		}
		h, err := p.Hold(t.Context())
		if err != nil {
			t.Error(err)
			continue
		}
		for range 3 {
			if r := h.Ping(t.Context()); r.Outcome != lab.Answered || r.Source != h.First.Source {
				t.Errorf("%s, held: got %v, want what was at first, %v", p, r, h.First)
			}
		}
		h.Close()
	}
}

func TestKernelWaitUntil(t *testing.T) {
	l := newLab(t, lab.Config{Pods: 1})
	pod := l.Nodes[0].Pods[0]
	p := lab.Probe{From: l.Nodes[0].NS, Network: "tcp", To: netip.AddrPortFrom(pod.Addr(model.IPv4), port)}
	if _, err := p.WaitUntil(t.Context(), lab.Refused); err != nil {
		t.Fatal(err)
	}
	started := make(chan time.Time, 1)
	timer := time.AfterFunc(100*time.Millisecond, func() {
		if _, err := pod.EchoPort(t.Context(), port); err != nil {
			t.Error(err)
		}
		started <- time.Now()
	})
	defer timer.Stop()
	begin := time.Now()
	elapsed, err := p.WaitUntil(t.Context(), lab.Answered)
	if err != nil {
		t.Fatal(err)
	}
	if late := begin.Add(elapsed).Sub(<-started); late > 50*time.Millisecond {
		t.Errorf("noticed %v after the server had started, want a few milliseconds", late)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.WaitUntil(ctx, lab.Refused); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want deadline exceeded", err)
	}
}
