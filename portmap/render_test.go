// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/nat"
	"fairlead/proxier/model"
)

var update = flag.Bool("update", false, "write the golden files")

// rig is a kernel, and the engine that has it hold what a Portmap says.
type rig struct {
	t       *testing.T
	kernel  *fake.Kernel
	engine  *ruleset.Engine
	portmap *Portmap
}

func newRig(t *testing.T, cfg Config) *rig {
	k := &fake.Kernel{}
	e := ruleset.NewEngine(ruleset.Config{
		Exec: k, Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"}, Variant: ruleset.NFT,
		Contributions: []ruleset.Contribution{nat.Contribution(), Contribution(cfg)},
	})
	e.Stage(nat.Chains(14, ""))
	return &rig{t, k, e, New(cfg)}
}

func (r *rig) update(objs Objects, node Node) {
	r.t.Helper()
	r.engine.Stage(r.portmap.Chains(r.portmap.Update(objs, node)))
	res, err := r.engine.Apply(r.t.Context(), ruleset.Options{Prune: true})
	if err != nil || len(res.Refused) > 0 {
		r.t.Fatalf("apply: %v %v", err, res.Refused)
	}
}

func TestGolden(t *testing.T) {
	many := pod("many", 1, "10.244.0.11")
	for i := range 40 {
		many.HostPorts = append(many.HostPorts, hostPort(fmt.Sprintf("%d>%d", 8000+i*100, 80)))
	}
	v4, v6 := Config{Family: model.IPv4}, Config{Family: model.IPv6}
	with := func(c Config, change func(*Config)) Config { change(&c); return c }
	all := pod("web", 1, "10.244.0.11 fd00:244::11", "8080>80", "53/udp>5353", "132/sctp>132", "192.0.2.1:9090>90", "[2001:db8::1]:9090>90")
	for _, tt := range []struct {
		name string
		cfg  Config
		pods map[model.ObjectKey]*model.Pod
		svcs map[model.ServicePortName]*model.ServicePort
	}{
		{"none", v4, nil, nil},
		{"ipv4", v4, podsOf(all), nil},
		{"ipv6", v6, podsOf(all), nil},
		{"forwarded", with(v4, func(c *Config) { c.Forwarded = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")} }), podsOf(all), nil},
		{"localhost", with(v4, func(c *Config) { c.Localhost = true }), podsOf(pod("web", 1, "10.244.0.11", "8080>80", "127.0.0.1:9090>90", "192.0.2.1:9091>90")), nil},
		{"neighbours", with(v4, func(c *Config) { c.MasqueradeNeighbours = true }), podsOf(pod("web", 1, "10.244.0.11", "8080>80"), pod("routed", 1, "10.245.0.11", "8081>80")), nil},
		{"tree", with(v4, func(c *Config) { c.Forwarded = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")} }), podsOf(many), nil},
		{"services", v4, podsOf(all, pod("idle", 1, "10.244.0.12", "30080>80")), servicesOf(service("web/tcp", 9090, 30080, "192.0.2.1"), service("dns/udp", 53, 0, "192.0.2.1", "203.0.113.5"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.cfg)
			r.update(Objects{tt.pods, tt.svcs}, testNode())
			file := filepath.Join("testdata", tt.name+".txt")
			got := r.kernel.Save()
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for line := range strings.Lines(got) {
				if strings.HasPrefix(line, "-A "+hostPorts) || strings.HasPrefix(line, "-A "+prefix) {
					_, rule, _ := strings.Cut(strings.TrimSpace(line[3:]), " ")
					if Foreign([]ruleset.Rule{ruleset.Rule(rule)}) {
						t.Errorf("looks like somebody else's: %s", line)
					}
				}
			}
		})
	}
}

// TestIncrementalEqualsFull: after any changes in any order, the rules are those that
// come of the last state alone.
func TestIncrementalEqualsFull(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			cfg := Config{Family: model.IPv4, Localhost: seed%2 == 0, LocalhostNodePorts: seed%5 == 0, MasqueradeNeighbours: seed%3 == 0,
				Protected: map[Port]string{{model.TCP, 8003}: "the node's own"}}
			r := newRig(t, cfg)
			state, node := map[model.ObjectKey]*model.Pod{}, testNode()
			services := map[model.ServicePortName]*model.ServicePort{}
			for range 60 {
				change := map[model.ObjectKey]*model.Pod{}
				for range 1 + rnd.IntN(3) {
					p := randomPod(rnd)
					if change[p.Key] = p; rnd.IntN(4) == 0 {
						change[p.Key] = nil
					}
				}
				svcs := map[model.ServicePortName]*model.ServicePort{}
				for range rnd.IntN(2) {
					s := randomService(rnd)
					if svcs[s.Name] = s; rnd.IntN(3) == 0 {
						svcs[s.Name] = nil
					}
				}
				maps.Copy(services, svcs)
				if rnd.IntN(8) == 0 {
					node = testNode()
					node.AllNodePorts = rnd.IntN(2) == 0
					node.NodePorts = node.Addrs[:rnd.IntN(len(node.Addrs)+1)]
					node.Addrs = node.Addrs[:rnd.IntN(len(node.Addrs)+1)]
					node.Links = node.Links[:rnd.IntN(len(node.Links)+1)]
				}
				maps.Copy(state, change)
				maps.DeleteFunc(state, func(_ model.ObjectKey, p *model.Pod) bool { return p == nil })
				r.update(Objects{change, svcs}, node)
			}
			full := newRig(t, cfg)
			full.update(Objects{state, services}, node)
			if diff := cmp.Diff(full.kernel.Save(), r.kernel.Save()); diff != "" {
				t.Errorf("(-full +incremental):\n%s", diff)
			}
			if diff := cmp.Diff(text(full.portmap), text(r.portmap)); diff != "" {
				t.Errorf("(-full +incremental):\n%s", diff)
			}
			if mapped, refused := r.portmap.Len(); mapped+refused != len(text(full.portmap)) || mapped != len(r.portmap.all()) {
				t.Errorf("Len() = %d, %d of %d", mapped, refused, len(text(full.portmap)))
			}
		})
	}
}

// TestFirstPacket: however many host ports there are, a packet is compared with few.
func TestFirstPacket(t *testing.T) {
	for _, n := range []int{32, 5_000, 30_000} {
		r := newRig(t, Config{Family: model.IPv4, Forwarded: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
		many := pod("many", 1, "10.244.0.11")
		for i := range n {
			many.HostPorts = append(many.HostPorts, model.HostPort{Protocol: model.TCP, HostPort: uint16(10_000 + i), ContainerPort: 80})
		}
		r.update(Objects{Pods: podsOf(many)}, testNode())
		d, err := ruleset.Parse(strings.NewReader(r.kernel.Save()))
		if err != nil {
			t.Fatal(err)
		}
		if got := walk(d, hostPorts); got > 130 {
			t.Errorf("%d host ports: up to %d rules, want at most 130", n, got)
		}
	}
}

// walk returns how many rules a packet is compared with at most that enters a chain of
// table nat.
func walk(d ruleset.Dump, chain string) int {
	rules := map[string][]ruleset.Rule{}
	for _, table := range d {
		for _, c := range table.Chains {
			if table.Name == ruleset.NAT {
				rules[c.Name] = c.Rules
			}
		}
	}
	var cost func(chain string) int
	cost = func(chain string) int {
		below := 0
		for _, r := range rules[chain] {
			below = max(below, cost(r.Target()))
		}
		return len(rules[chain]) + below
	}
	return cost(chain)
}

// randomPod returns one of a few pods, with ports that others may have, too.
func randomPod(rnd *rand.Rand) *model.Pod {
	p := pod(fmt.Sprintf("p%d", rnd.IntN(12)), rnd.IntN(4), fmt.Sprintf("10.244.0.%d", 10+rnd.IntN(10)))
	p.UID = fmt.Sprint(rnd.IntN(3))
	p.Wired = at(rnd.IntN(4))
	seen := map[model.HostPort]bool{}
	for range 1 + rnd.IntN(4) {
		host := []string{"", "0.0.0.0:", "192.0.2.1:", "10.244.0.1:", "127.0.0.1:", "192.0.2.99:", "[::]:"}[rnd.IntN(7)]
		h := hostPort(fmt.Sprintf("%s%d/%s>80", host, 8000+rnd.IntN(50), []string{"tcp", "udp", "sctp"}[rnd.IntN(3)]))
		if !seen[h] {
			p.HostPorts = append(p.HostPorts, h)
		}
		seen[h] = true
	}
	return p
}

// randomService returns a port of one of a few Services, which may be the host port of
// a pod.
func randomService(rnd *rand.Rand) *model.ServicePort {
	var addrs []string
	for range rnd.IntN(3) {
		addrs = append(addrs, []string{"192.0.2.1", "10.244.0.1", "127.0.0.1", "203.0.113.5"}[rnd.IntN(4)])
	}
	name := fmt.Sprintf("s%d/%s", rnd.IntN(6), []string{"tcp", "udp", "sctp"}[rnd.IntN(3)])
	s := service(name, uint16(8000+rnd.IntN(50)), uint16(rnd.IntN(2)*(8000+rnd.IntN(50))), addrs...)
	s.HealthCheckNodePort = uint16(rnd.IntN(2) * (8000 + rnd.IntN(50)))
	return s
}

func TestOthers(t *testing.T) {
	chain := func(name string, rules ...ruleset.Rule) func(string) []ruleset.Rule {
		return func(asked string) []ruleset.Rule {
			if asked == name {
				return rules
			}
			return nil
		}
	}
	list := func(plugins string) string { return `{"cniVersion":"1.0.0","name":"n","plugins":[` + plugins + `]}` }
	const bridge, portmap = `{"type":"bridge"}`, `{"type":"portmap","capabilities":{"portMappings":true}}`
	for _, tt := range []struct {
		name   string
		cni    fstest.MapFS
		chain  func(string) []ruleset.Rule
		tables []string
		want   string
	}{
		{name: "nobody"},
		{name: "a bridge alone", cni: fstest.MapFS{"10-a.conflist": {Data: []byte(list(bridge))}}},
		{name: "portmap", cni: fstest.MapFS{"10-a.conflist": {Data: []byte(list(bridge + "," + portmap))}}, want: "the CNI plugin portmap (10-a.conflist)"},
		{name: "portmap in a file that is not used", cni: fstest.MapFS{"10-a.conf": {Data: []byte(bridge)}, "20-b.conflist": {Data: []byte(list(portmap))}}},
		{name: "files that are none", cni: fstest.MapFS{"00-a.conflist": {Data: []byte("{")}, "01-b.json": {Data: []byte("{}")}, "02-c.txt": {}, "20-b.conflist": {Data: []byte(list(portmap))}}, want: "the CNI plugin portmap (20-b.conflist)"},
		{name: "the capability switched off", cni: fstest.MapFS{"10-a.conflist": {Data: []byte(list(`{"type":"portmap","capabilities":{"portMappings":false}}`))}}},
		{name: "portmap's chain", chain: chain("CNI-HOSTPORT-DNAT", "-p tcp -j CNI-DN-0"), want: "the CNI plugin portmap (chain CNI-HOSTPORT-DNAT)"},
		{name: "portmap's chain, empty", chain: chain("CNI-HOSTPORT-DNAT")},
		{name: "CRI-O", tables: []string{"crio-hostports"}, want: "CRI-O (table crio-hostports of nf_tables)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Others{Chain: tt.chain, Tables: tt.tables}
			if tt.cni != nil {
				o.CNI = tt.cni
			}
			if o.Chain == nil {
				o.Chain = chain("")
			}
			if got := o.Who(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestForeign(t *testing.T) {
	ours := ruleset.Rule(`-p tcp -m comment --comment "fairlead: shop/web" -m tcp --dport 80 -j KUBE-HP-A`)
	theirs := ruleset.Rule(`-p tcp -m comment --comment "web_shop hostport 80" -m tcp --dport 80 -j KUBE-HP-B`)
	for _, tt := range []struct {
		rules []ruleset.Rule
		want  bool
	}{{nil, false}, {[]ruleset.Rule{ours}, false}, {[]ruleset.Rule{ours, theirs}, true}} {
		if got := Foreign(tt.rules); got != tt.want {
			t.Errorf("Foreign(%q) = %v, want %v", tt.rules, got, tt.want)
		}
	}
}
