// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/nat"
	"fairlead/nat/ipset"
	fakeset "fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// -update rewrites the golden files.
var update = flag.Bool("update", false, "rewrite the golden files")

// port returns a port of a Service.
func port(name model.ServicePortName, vip string, number uint16, endpoints ...string) *model.ServicePort {
	p := &model.ServicePort{Name: name, ClusterIP: netip.MustParseAddr(vip), Port: number}
	for _, ep := range endpoints {
		p.Endpoints = append(p.Endpoints, model.Endpoint{AddrPort: netip.MustParseAddrPort(ep)})
	}
	p.Known, p.Usable = len(p.Endpoints), len(p.Endpoints) > 0
	return p
}

// snapshot returns a snapshot of ports, and their names.
func snapshot(ports ...*model.ServicePort) (*model.Snapshot, []model.ServicePortName) {
	changes := map[model.ServicePortName]*model.ServicePort{}
	var names []model.ServicePortName
	for _, p := range ports {
		changes[p.Name] = p
		names = append(names, p.Name)
	}
	return model.NewSnapshot().With(changes), names
}

// agent is a mode with an engine of its own on a kernel.
type agent struct {
	t    *testing.T
	exec ruleset.Exec
	*Mode
	// where is what the mode is told of the node.
	where proxier.NodeState
}

func newAgent(t *testing.T, exec ruleset.Exec, cmds ruleset.Commands, v ruleset.Variant, cfg RenderConfig, sets Sets, loops Loops) *agent {
	t.Helper()
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: exec, Commands: cmds, Variant: v,
		Contributions: []ruleset.Contribution{nat.Contribution(), Contribution(cfg)},
	})
	loopBack := ""
	if cfg.Compact {
		loopBack = loops.Name()
	}
	engine.Stage(nat.Chains(cfg.MasqueradeBit, loopBack))
	return &agent{t: t, exec: exec, Mode: New(cfg, engine, sets, loops, nil), where: everywhere}
}

func fakeAgent(t *testing.T, k *fake.Kernel, cfg RenderConfig) *agent {
	t.Helper()
	return fakeAgentWithSets(t, k, nil, cfg)
}

func fakeAgentWithSets(t *testing.T, k *fake.Kernel, sets Sets, cfg RenderConfig) *agent {
	t.Helper()
	return fakeAgentWithLoops(t, k, sets, nil, cfg)
}

func fakeAgentWithLoops(t *testing.T, k *fake.Kernel, sets Sets, loops *fakeset.Set, cfg RenderConfig) *agent {
	t.Helper()
	if loops == nil {
		loops = fakeLoops(cfg.Family)
	}
	return newAgent(t, k, ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"}, ruleset.NFT, cfg, sets, loops)
}

// netipEqual compares the addresses in sets.
var netipEqual = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// fakeLoops returns the set of endpoints that reach themselves, which is not
// there.
func fakeLoops(f model.Family) *fakeset.Set {
	return fakeset.NewSet(nat.LoopBack(f == model.IPv6), ipset.HashIPPortIP, f == model.IPv6)
}

// fakeHost returns a kernel that has sets.
func fakeHost() (*fake.Kernel, *fakeset.Sets) {
	k, s := &fake.Kernel{}, &fakeset.Sets{}
	k.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool { return s.Missing(string(r)) }
	s.Rules = k.Save
	return k, s
}

// sync hands over the whole of the ports, all as changed, and expects success.
func (a *agent) sync(ports ...*model.ServicePort) proxier.Report {
	a.t.Helper()
	s, names := snapshot(ports...)
	return a.syncChanged(s, names)
}

func (a *agent) syncChanged(s *model.Snapshot, names []model.ServicePortName) proxier.Report {
	a.t.Helper()
	r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: a.where, Changed: names, Prune: true})
	if err != nil || len(r.Refused) > 0 {
		a.t.Fatalf("Sync() = %+v, %v", r, err)
	}
	return r
}

// everywhere is a node on all of whose addresses node ports answer.
var everywhere = proxier.NodeState{NodePorts: proxier.NodePorts{All: true}}

func v4() RenderConfig {
	return RenderConfig{Family: model.IPv4, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, MasqueradeBit: 14, LocalhostNodePorts: true}
}

func v6() RenderConfig {
	return RenderConfig{Family: model.IPv6, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00:244::/56")}, MasqueradeBit: 14, LocalhostNodePorts: true}
}

func without(cfg RenderConfig) RenderConfig {
	cfg.PodCIDRs = nil
	return cfg
}

// renderCase is a set of ports and what they become, in a golden file.
type renderCase struct {
	name  string
	cfg   RenderConfig
	ports []*model.ServicePort
	// node is everywhere unless it is set.
	node *proxier.NodeState
	// only is how the names of the chains begin that the golden file has, where
	// it would be long with all.
	only string
}

// excerpt returns what the golden file has of all rules.
func (c renderCase) excerpt(d ruleset.Dump) ruleset.Dump {
	if c.only == "" {
		return d
	}
	var out ruleset.Dump
	for _, table := range d {
		table.Chains = slices.DeleteFunc(slices.Clone(table.Chains), func(chain ruleset.DumpChain) bool {
			return !strings.HasPrefix(chain.Name, c.only)
		})
		if len(table.Chains) > 0 {
			out = append(out, table)
		}
	}
	return out
}

// agent returns an agent for the case on a kernel in memory, which has sets if
// the case is about them.
func (c renderCase) agent(t *testing.T) (*agent, *fake.Kernel) {
	t.Helper()
	k, sets := fakeHost()
	if !c.sets() {
		return c.at(fakeAgent(t, k, c.cfg)), k
	}
	return c.at(fakeAgentWithSets(t, k, sets, c.cfg)), k
}

// at puts an agent on the case's node.
func (c renderCase) at(a *agent) *agent {
	if c.node != nil {
		a.where = *c.node
	}
	return a
}

// sets tells whether rules can use sets.
func (c renderCase) sets() bool { return strings.HasPrefix(c.name, "sets-") }

func renderCases() []renderCase {
	web := portName("shop", "web", "http", model.TCP)
	dns := portName("kube-system", "kube-dns", "dns", model.UDP)
	all, bit := v4(), v4()
	all.MasqueradeAll, bit.MasqueradeBit = true, 31
	one := port(web, "10.96.0.10", 80, "10.244.0.1:8080")
	return slices.Concat(featureCases(), manyCases(), []renderCase{
		{name: "nothing", cfg: v4(), ports: nil},
		{name: "one-endpoint", cfg: v4(), ports: []*model.ServicePort{one}},
		{name: "several-endpoints", cfg: v4(), ports: []*model.ServicePort{port(web, "10.96.0.10", 80, "10.244.0.1:8080", "10.244.0.2:8080", "10.244.1.3:8080")}},
		{name: "udp", cfg: v4(), ports: []*model.ServicePort{port(dns, "10.96.0.53", 53, "10.244.0.3:53", "10.244.1.3:53")}},
		{name: "sctp", cfg: v4(), ports: []*model.ServicePort{port(portName("tel", "sig", "m3ua", model.SCTP), "10.96.0.20", 2905, "10.244.0.4:2905")}},
		{name: "several-ports", cfg: v4(), ports: []*model.ServicePort{
			port(dns, "10.96.0.53", 53, "10.244.0.3:53"),
			port(portName("kube-system", "kube-dns", "dns-tcp", model.TCP), "10.96.0.53", 53, "10.244.0.3:53"),
			port(portName("kube-system", "kube-dns", "metrics", model.TCP), "10.96.0.53", 9153, "10.244.0.3:9153"),
			port(portName("shop", "unnamed", "", model.TCP), "10.96.0.11", 443, "10.244.0.5:8443"),
		}},
		{name: "same-port-name-tcp-and-udp", cfg: v4(), ports: []*model.ServicePort{
			port(portName("a", "b", "p", model.TCP), "10.96.0.53", 53, "10.244.0.3:53"),
			port(portName("a", "b", "p", model.UDP), "10.96.0.53", 53),
		}},
		{name: "ipv6", cfg: v6(), ports: []*model.ServicePort{
			port(web, "fd00:96::a", 80, "[fd00:244::1]:8080", "[fd00:244:0:1::2]:8080"),
			port(dns, "fd00:96::b", 53),
		}},
		{name: "no-endpoints", cfg: v4(), ports: []*model.ServicePort{port(web, "10.96.0.10", 80), port(dns, "10.96.0.53", 53)}},
		{name: "no-cluster-cidr", cfg: without(v4()), ports: []*model.ServicePort{one}},
		{name: "masquerade-all", cfg: all, ports: []*model.ServicePort{one}},
		{name: "masquerade-all-no-cluster-cidr", cfg: without(all), ports: []*model.ServicePort{one}},
		{name: "other-mark-bit", cfg: bit, ports: []*model.ServicePort{one}},
	})
}

func TestGolden(t *testing.T) {
	for _, tt := range renderCases() {
		t.Run(tt.name, func(t *testing.T) {
			a, k := tt.agent(t)
			a.sync(tt.ports...)
			d, err := ruleset.Parse(strings.NewReader(k.Save()))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name, tt.excerpt(d).String())
		})
	}
}

// golden compares got with a golden file, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if strings.TrimSpace(got) == "" {
			t.Fatalf("refuse to write an empty golden file %s", path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestGoldenFilesAreAllInUse: a case that goes takes its file with it.
func TestGoldenFilesAreAllInUse(t *testing.T) {
	inUse := map[string]bool{}
	for _, tt := range renderCases() {
		inUse[tt.name+".txt"] = true
	}
	files, err := os.ReadDir("testdata/golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !inUse[f.Name()] {
			t.Errorf("testdata/golden/%s belongs to no case", f.Name())
		}
	}
}

// TestRenderIsPure: twice the same, whatever was rendered in between, and the
// input is left alone.
func TestRenderIsPure(t *testing.T) {
	for _, tt := range renderCases() {
		r, s := newRenderer(tt.cfg), newScratch()
		for i, p := range tt.ports {
			before := *p
			before.Endpoints = append([]model.Endpoint(nil), p.Endpoints...)
			var sets map[string]bool
			if tt.sets() {
				sets = setsOf(p)
			}
			first := r.port(p, sets, s)
			r.port(tt.ports[(i+1)%len(tt.ports)], nil, s)
			if diff := cmp.Diff(first, r.port(p, sets, s), cmp.AllowUnexported(portRules{}, idiom.Place{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("%s: %s rendered twice (-first +second):\n%s", tt.name, p.Name, diff)
			}
			if !p.Equal(&before) {
				t.Errorf("%s: rendering changed %s", tt.name, p.Name)
			}
		}
	}
}

// setsOf returns the sets of all endpoints of a port.
func setsOf(p *model.ServicePort) map[string]bool {
	out := map[string]bool{}
	for _, ep := range slices.Concat(p.Endpoints, p.LocalEndpoints) {
		out[endpointChain(p.Name, ep.AddrPort)] = true
	}
	return out
}

// TestEndpointOrder: the rules choose among the endpoints in their order.
func TestEndpointOrder(t *testing.T) {
	name := portName("a", "b", "c", model.TCP)
	eps := []string{"10.244.0.9:80", "10.244.0.1:80", "10.244.0.10:80", "10.244.0.2:80"}
	rules := newRenderer(without(v4())).port(port(name, "10.96.0.1", 80, eps...), nil, newScratch())
	chain := rules.chains[slices.Index(rules.names, serviceChain(name))]
	for i, ep := range eps {
		if want := endpointChain(name, netip.MustParseAddrPort(ep)); chain.Rules[i].Target() != want {
			t.Errorf("rule %d leads to %s, want %s, for %s", i, chain.Rules[i].Target(), want, ep)
		}
	}
}

func TestKnownProbabilities(t *testing.T) {
	for n, want := range map[int]string{1: "1.00000000000", 2: "0.50000000000", 3: "0.33333333349", 4: "0.25000000000", 5: "0.20000000019", 7: "0.14285714272"} {
		if got := idiom.Probability(n); got != want {
			t.Errorf("idiom.Probability(%d) = %s, want %s", n, got, want)
		}
	}
}

// TestProbabilities recomputes in integers what the kernel keeps of 1/n written
// with ten decimals, and what iptables prints of that.
func TestProbabilities(t *testing.T) {
	for n := 1; n <= 1000; n++ {
		const scale = 10_000_000_000
		written := (2*scale/int64(n) + 1) / 2 // 1/n in units of 1e-10, rounded
		kept := new(big.Int).Mul(big.NewInt(written), big.NewInt(1<<31))
		kept.Add(kept, big.NewInt(scale/2)).Div(kept, big.NewInt(scale))
		want := new(big.Rat).SetFrac(kept, big.NewInt(1<<31)).FloatString(11)
		if got := idiom.Probability(n); got != want {
			t.Errorf("idiom.Probability(%d) = %s, want %s", n, got, want)
		}
	}
}

// TestCommentsFit: the longest names that Kubernetes allows fit into a comment.
func TestCommentsFit(t *testing.T) {
	name := portName(strings.Repeat("n", 63), strings.Repeat("s", 63), strings.Repeat("p", 15), model.SCTP)
	p := port(name, "fd00:1111:2222:3333:4444:5555:6666:7777", 65535, "[fd00:1111:2222:3333:4444:5555:6666:8888]:65535")
	for _, p := range []*model.ServicePort{p, port(name, "fd00::1", 1)} {
		rules := newRenderer(v6()).port(p, nil, newScratch())
		var all []ruleset.Rule
		for _, shared := range rules.shared {
			all = append(all, shared.Rules...)
		}
		for _, c := range rules.chains {
			all = append(all, c.Rules...)
		}
		for _, r := range all {
			_, comment, _ := strings.Cut(string(r), `--comment "`)
			comment, _, _ = strings.Cut(comment, `"`)
			if len(comment) > ruleset.MaxComment {
				t.Errorf("comment of %d bytes, want at most %d: %s", len(comment), ruleset.MaxComment, comment)
			}
		}
	}
}

// TestUniformByRules: along each chain of random choices, every endpoint is as
// likely as the others, as near as 31 bits come.
func TestUniformByRules(t *testing.T) {
	for n := 1; n <= 200; n++ {
		left, want := 1.0, 1/float64(n)
		for i := range n {
			p := 1.0
			if i < n-1 {
				if _, err := fmt.Sscanf(idiom.Probability(n-i), "%g", &p); err != nil {
					t.Fatal(err)
				}
			}
			if got := left * p; math.Abs(got-want) > 1e-6 {
				t.Errorf("endpoint %d of %d is chosen with probability %.9f, want %.9f", i, n, got, want)
			}
			left *= 1 - p
		}
	}
}
