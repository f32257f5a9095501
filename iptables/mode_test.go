// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// written returns the inputs of the restores that f runs.
func written(k *fake.Kernel, f func()) []string {
	before := len(k.Restores())
	f()
	return k.Restores()[before:]
}

// chainsIn returns the chains that a restore declares, or deletes rules of.
func chainsIn(restore string) []string {
	var out []string
	table := 0 // where the table's begin
	for line := range strings.Lines(restore) {
		if strings.HasPrefix(line, "*") {
			table = len(out)
		}
		name, declared := strings.CutPrefix(line, ":")
		name, trimmed := strings.CutPrefix(name, "-D ")
		if declared || trimmed {
			name, _, _ = strings.Cut(name, " ")
			if !slices.Contains(out[table:], name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestSyncWritesTheDifference names the chains that each change writes.
func TestSyncWritesTheDifference(t *testing.T) {
	web := portName("shop", "web", "http", model.TCP)
	renamed := portName("shop", "web", "www", model.TCP)
	dns := port(portName("kube-system", "kube-dns", "dns", model.UDP), "10.96.0.53", 53, "10.244.0.3:53")
	one, two := "10.244.0.1:8080", "10.244.0.2:8080"
	svc := serviceChain(web)
	sep := func(n model.ServicePortName, i int) string {
		return endpointChain(n, port(n, "10.96.0.10", 80, one, two).Endpoints[i].AddrPort)
	}
	for _, tt := range []struct {
		name     string
		old, now *model.ServicePort // nil where there is none
		want     []string
	}{
		{"unchanged", port(web, "10.96.0.10", 80, one), port(web, "10.96.0.10", 80, one), nil},
		{"service added", nil, port(web, "10.96.0.10", 80, one), []string{services, sep(web, 0), svc}},
		{"service added without endpoints", nil, port(web, "10.96.0.10", 80), []string{services}},
		{"service removed", port(web, "10.96.0.10", 80, one), nil, []string{services, sep(web, 0), svc}},
		{"endpoint added", port(web, "10.96.0.10", 80, one), port(web, "10.96.0.10", 80, one, two), []string{sep(web, 1), svc}},
		{"endpoint removed", port(web, "10.96.0.10", 80, one, two), port(web, "10.96.0.10", 80, one), []string{sep(web, 1), svc}},
		{"endpoint replaced", port(web, "10.96.0.10", 80, one), port(web, "10.96.0.10", 80, two), []string{sep(web, 0), sep(web, 1), svc}},
		{"last endpoint removed", port(web, "10.96.0.10", 80, one), port(web, "10.96.0.10", 80), []string{services, services, sep(web, 0), svc}},
		{"first endpoint added", port(web, "10.96.0.10", 80), port(web, "10.96.0.10", 80, one), []string{services, services, sep(web, 0), svc}},
		{"port number changed", port(web, "10.96.0.10", 80, one), port(web, "10.96.0.10", 81, one), []string{services, svc}},
		{
			"port renamed", port(web, "10.96.0.10", 80, one), port(renamed, "10.96.0.10", 80, one),
			[]string{services, sep(web, 0), sep(renamed, 0), svc, serviceChain(renamed)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var k fake.Kernel
			a := fakeAgent(t, &k, v4())
			before, now := []*model.ServicePort{dns}, []*model.ServicePort{dns}
			var changed []model.ServicePortName
			for _, p := range []*model.ServicePort{tt.old, tt.now} {
				if p != nil {
					changed = append(changed, p.Name)
				}
			}
			if tt.old != nil {
				before = append(before, tt.old)
			}
			if tt.now != nil {
				now = append(now, tt.now)
			}
			a.sync(before...)
			s, _ := snapshot(now...)
			got := chainsIn(strings.Join(written(&k, func() { a.syncChanged(s, changed) }), ""))
			slices.Sort(tt.want)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("chains written (-want +got):\n%s", diff)
			}
			var fresh fake.Kernel
			fakeAgent(t, &fresh, v4()).sync(now...)
			if diff := cmp.Diff(fresh.Save(), k.Save()); diff != "" {
				t.Errorf("rules (-full +incremental):\n%s", diff)
			}
		})
	}
}

// TestSyncAgain: what is there is not written again, by the same agent nor by
// its successor.
func TestSyncAgain(t *testing.T) {
	for _, tt := range renderCases() {
		var k fake.Kernel
		loops := fakeLoops(tt.cfg.Family)
		start := func() *agent { return tt.at(fakeAgentWithLoops(t, &k, nil, loops, tt.cfg)) }
		a := start()
		a.sync(tt.ports...)
		for _, who := range []*agent{a, start()} {
			if got := written(&k, func() {
				if r := who.sync(tt.ports...); r.Written+len(r.Repaired) > 0 {
					t.Errorf("%s: Sync() = %+v, want nothing written", tt.name, r)
				}
			}); len(got) > 0 {
				t.Errorf("%s: Sync() ran %d restores, want none:\n%s", tt.name, len(got), strings.Join(got, ""))
			}
		}
	}
}

// TestSyncReport: what was written, mended and refused is told.
func TestSyncReport(t *testing.T) {
	var k fake.Kernel
	a := fakeAgent(t, &k, v4())
	bad := port(portName("shop", "bad", "", model.TCP), "10.96.0.66", 80, "10.66.0.1:80")
	good := port(portName("shop", "good", "", model.TCP), "10.96.0.10", 80, "10.244.0.1:80")
	k.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool { return strings.Contains(string(r), "10.66.0.1:80") }
	s, names := snapshot(good, bad)
	r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: names, Prune: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Refused) != 1 || !strings.Contains(r.Refused[0], "shop/bad/tcp: ") {
		t.Errorf("Report.Refused = %q, want shop/bad/tcp with its error", r.Refused)
	}
	checkFates(t, newTracer(t, k.Save(), nodeIP).trace(packet{pod, "10.96.0.10", "tcp", 80, false}), fate{"10.244.0.1:80", false, "ACCEPT"})
	k.Flush(ruleset.NAT)
	s, _ = snapshot(good)
	r, err = a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: []model.ServicePortName{bad.Name}, Prune: true, Verify: true})
	if err != nil || len(r.Repaired) == 0 || r.Written == 0 || len(r.Refused) > 0 {
		t.Errorf("Sync() after a flush = %+v, %v, want repairs and no refusal", r, err)
	}
	var fresh fake.Kernel
	fakeAgent(t, &fresh, v4()).sync(good)
	if diff := cmp.Diff(fresh.Save(), k.Save()); diff != "" {
		t.Errorf("rules after the repair (-want +got):\n%s", diff)
	}
}

// TestSyncFails: after an error, the next Sync, which carries the same keys and
// perhaps more, does it.
func TestSyncFails(t *testing.T) {
	var k fake.Kernel
	a := fakeAgent(t, &k, v4())
	one := port(portName("shop", "one", "", model.TCP), "10.96.0.1", 80, "10.244.0.1:80")
	two := port(portName("shop", "two", "", model.TCP), "10.96.0.2", 80, "10.244.0.2:80")
	a.sync(one)
	before := k.Save()
	k.Fault = func() fake.Fault { return fake.FailBefore }
	s, _ := snapshot(two)
	changed := []model.ServicePortName{one.Name, two.Name}
	for range 2 {
		if _, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: changed, Prune: true}); err == nil {
			t.Errorf("Sync() while every restore fails = nil, want an error")
		}
	}
	if got := k.Save(); got != before {
		t.Errorf("rules changed (-before +after):\n%s", cmp.Diff(before, got))
	}
	k.Fault = nil
	a.syncChanged(s, changed)
	var fresh fake.Kernel
	fakeAgent(t, &fresh, v4()).sync(two)
	if diff := cmp.Diff(fresh.Save(), k.Save()); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// TestTakeover starts on a node on which kube-proxy has run. Rules that mean
// the same are left in place; of others, nothing is touched.
func TestTakeover(t *testing.T) {
	text, err := os.ReadFile("testdata/kube-proxy.txt")
	if err != nil {
		t.Fatal(err)
	}
	var k fake.Kernel
	if err := k.Edit(string(text)); err != nil {
		t.Fatal(err)
	}
	if k.Save() != sortedChains(t, string(text)) {
		t.Fatalf("testdata/kube-proxy.txt is not in the form of iptables-save:\n%s", cmp.Diff(string(text), k.Save()))
	}
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.1:8080", "10.244.0.2:8080", "10.244.1.3:8080")
	a := fakeAgent(t, &k, v4())
	s, names := snapshot(web)
	if got := written(&k, func() {
		if _, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: names}); err != nil {
			t.Fatal(err)
		}
	}); len(got) > 0 {
		t.Errorf("first Sync, while nothing may be removed, ran %d restores, want none:\n%s", len(got), strings.Join(got, ""))
	}
	got := chainsIn(strings.Join(written(&k, func() { a.syncChanged(s, nil) }), ""))
	want := []string{
		"KUBE-EXT-AAAAAAAAAAAAAAAA", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS",
		"KUBE-SEP-AAAAAAAAAAAAAAAA", "KUBE-SERVICES", "KUBE-SVC-AAAAAAAAAAAAAAAA",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chains written (-want +got):\n%s", diff)
	}
	// What is left besides our own is kubelet's and the CNI's.
	golden := "testdata/golden/several-endpoints.txt"
	ours, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var others []string
	for line := range strings.Lines(k.Save()) {
		if !slices.Contains(slices.Collect(strings.Lines(string(ours))), line) {
			others = append(others, strings.TrimSpace(line))
		}
	}
	wantOthers := []string{
		":CNI-FORWARD - [0:0]", ":KUBE-PROXY-CANARY - [0:0]", "-A FORWARD -j CNI-FORWARD",
		`-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP`,
		"*mangle", ":KUBE-IPTABLES-HINT - [0:0]", ":KUBE-KUBELET-CANARY - [0:0]",
		":KUBE-PROXY-CANARY - [0:0]", ":KUBE-PROXY-CANARY - [0:0]", // in mangle and nat
	}
	if diff := cmp.Diff(wantOthers, others); diff != "" {
		t.Errorf("lines besides %s (-want +got):\n%s", golden, diff)
	}
}

// sortedChains returns a dump with its tables in the fake's order.
func sortedChains(t *testing.T, text string) string {
	t.Helper()
	d, err := ruleset.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(d, func(a, b ruleset.DumpTable) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return d.String()
}

// TestKubeProxyRulesMeanTheSame: a packet fares the same under kube-proxy's
// rules and ours.
func TestKubeProxyRulesMeanTheSame(t *testing.T) {
	text, err := os.ReadFile("testdata/kube-proxy.txt")
	if err != nil {
		t.Fatal(err)
	}
	// The tracer does not know these, and no packet here would match them.
	var known strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "nfacct") && !strings.Contains(line, "--ctstate RELATED,ESTABLISHED,DNAT") {
			known.WriteString(line)
		}
	}
	theirs := newTracer(t, known.String(), nodeIP)
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.1:8080", "10.244.0.2:8080", "10.244.1.3:8080")
	ours := traced(t, v4(), web)
	for _, p := range []packet{
		{pod, "10.96.0.10", "tcp", 80, false}, {outside, "10.96.0.10", "tcp", 80, false},
		{nodeIP, "10.96.0.10", "tcp", 80, true}, {"10.244.0.1", "10.96.0.10", "tcp", 80, false},
		{pod, "10.96.0.10", "udp", 80, false}, {outside, nodeIP, "tcp", 22, false},
	} {
		if diff := cmp.Diff(theirs.trace(p), ours.trace(p)); diff != "" {
			t.Errorf("%+v (-kube-proxy +fairlead):\n%s", p, diff)
		}
	}
}

// TestNodeChanges: what depends on the node follows it, and nothing else is
// written.
func TestNodeChanges(t *testing.T) {
	cfg := v4()
	cfg.PodCIDRs, cfg.NodePodCIDRs = nil, true
	web := portName("shop", "web", "http", model.TCP)
	plain := port(portName("shop", "plain", "", model.TCP), "10.96.0.11", 80, "10.244.0.1:8080")
	p := with(port(web, "10.96.0.10", 80, "10.244.0.1:8080"), loadBalancer, ranges("192.0.2.0/24"))
	s, names := snapshot(p, plain)
	k := &fake.Kernel{}
	a := fakeAgent(t, k, cfg)
	step := func(what string, node proxier.NodeState, changed []model.ServicePortName, want ...string) {
		t.Helper()
		if _, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Changed: changed, Prune: true, Node: node}); err != nil {
			t.Fatal(err)
		}
		fresh := &fake.Kernel{}
		if _, err := fakeAgent(t, fresh, cfg).Sync(context.Background(), proxier.Desired{Snapshot: s, Changed: names, Prune: true, Node: node}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fresh.Save(), k.Save()); diff != "" {
			t.Errorf("%s (-afresh +changed):\n%s", what, diff)
		}
		for _, line := range want {
			if !strings.Contains(k.Save(), line) {
				t.Errorf("%s: no %q in\n%s", what, line, k.Save())
			}
		}
	}
	step("nothing known", proxier.NodeState{NodePorts: everywhere.NodePorts}, names, "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
	node := proxier.NodeState{NodePorts: proxier.NodePorts{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.11")}}}
	step("an address for node ports", node, nil, "-A KUBE-SERVICES -d 192.0.2.11/32 ")
	node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}
	step("a pod CIDR", node, nil, "! -s 10.244.3.0/24 ")
	node.PodCIDRs = append(node.PodCIDRs, netip.MustParsePrefix("10.245.3.0/24"))
	step("a second one", node, nil, "-j KUBE-MARK-MASQ-OUTSIDE")
	node.PodCIDRs = nil
	step("none any more", node, nil)
	node.IP = netip.MustParseAddr("192.0.2.11")
	step("an address that a source range has", node, nil, "-s 203.0.113.80/32 ")
}
