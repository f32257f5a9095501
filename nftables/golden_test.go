// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/nftables/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden is a table that a file shows.
type golden struct {
	name   string
	config func(*Config)
	node   func(*proxier.NodeState)
	ports  []*model.ServicePort // of IPv4
	// hostPorts and pods are what there is besides Services, of IPv4.
	hostPorts []HostPort
	pods      *PodMasquerade
}

// tell tells a mode what there is besides Services.
func (g golden) tell(m *Mode, f model.Family) {
	prefixes := func(list []netip.Prefix) (out []netip.Prefix) {
		for _, p := range list {
			if f == model.IPv6 {
				p = netip.PrefixFrom(six(p.Addr()), 96+p.Bits()).Masked()
			}
			out = append(out, p)
		}
		return out
	}
	for _, h := range g.hostPorts {
		if f == model.IPv6 {
			h.To = netip.AddrPortFrom(six(h.To.Addr()), h.To.Port())
			h.Except = nil
			if h.HostIP.IsValid() {
				h.HostIP = six(h.HostIP)
			}
		}
		h.Masqueraded = prefixes(h.Masqueraded)
		m.SetHostPorts(nil, []HostPort{h})
	}
	if m.render.Counting {
		NewTraffic(m, rosterOf("shop/web", 9), nil)
	}
	if g.pods != nil {
		m.SetPodMasquerade(PodMasquerade{prefixes(g.pods.Pods), prefixes(g.pods.Exempt)})
	}
}

// rosterOf returns a roster of a Service or a namespace.
func rosterOf(selected string, limit int) *traffic.Roster {
	s, err := traffic.ParseSelection([]string{selected})
	if err != nil {
		panic(err)
	}
	return traffic.NewRoster(s, limit)
}

// six is an address of IPv4 as one of IPv6.
func six(a netip.Addr) netip.Addr {
	b := a.As4()
	switch {
	case b[0] == 10 && b[1] == 244:
		return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: 0x02, 5: 0x44, 7: b[2], 15: b[3]})
	case b[0] == 10:
		return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 5: b[1], 15: b[3]})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: b[0], 7: b[2], 15: b[3]})
}

func (g golden) file(f model.Family) string {
	return filepath.Join("testdata", g.name+"-"+strings.ToLower(f.String())+".nft")
}

// at returns what the table is made of in one family.
func (g golden) at(f model.Family) (Config, proxier.NodeState, []*model.ServicePort) {
	cfg, node := config(f), here(f)
	if g.config != nil {
		g.config(&cfg)
	}
	if g.node != nil {
		g.node(&node)
	}
	var ports []*model.ServicePort
	for _, p := range g.ports {
		ports = append(ports, inFamily(p, f))
	}
	return cfg, node, ports
}

// inFamily is a port of IPv4 with addresses of another family.
func inFamily(p *model.ServicePort, f model.Family) *model.ServicePort {
	if f == model.IPv4 {
		return p
	}
	out := *p
	out.ClusterIP = six(p.ClusterIP)
	out.ExternalIPs, out.LoadBalancerIPs, out.SourceRanges, out.Endpoints, out.LocalEndpoints = nil, nil, nil, nil, nil
	for _, a := range p.ExternalIPs {
		out.ExternalIPs = append(out.ExternalIPs, six(a))
	}
	for _, a := range p.LoadBalancerIPs {
		out.LoadBalancerIPs = append(out.LoadBalancerIPs, six(a))
	}
	for _, r := range p.SourceRanges {
		out.SourceRanges = append(out.SourceRanges, netip.PrefixFrom(six(r.Addr()), 96+r.Bits()).Masked())
	}
	eps := func(list []model.Endpoint) (out []model.Endpoint) {
		for _, e := range list {
			out = append(out, model.Endpoint{AddrPort: netip.AddrPortFrom(six(e.AddrPort.Addr()), e.AddrPort.Port()), Local: e.Local})
		}
		return out
	}
	out.Endpoints, out.LocalEndpoints = eps(p.Endpoints), eps(p.LocalEndpoints)
	return &out
}

// goldens are the tables that files show, one for each kind of Service.
func goldens() []golden {
	tcp := func(svc string) model.ServicePortName { return portName("shop", svc, "http", model.TCP) }
	eps := []string{"10.244.0.5:8080", "10.244.1.5:8080", "10.244.2.5:8080"}
	web := port(tcp("web"), "10.96.0.10", 80, eps...)
	external := func(p *model.ServicePort) {
		p.NodePort = 30080
		p.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.5")}
		p.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.80")}
	}
	ranges := func(p *model.ServicePort) {
		p.Restricted = true
		p.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("198.51.100.7/32")}
	}
	externalLocal := func(p *model.ServicePort) { p.ExternalTrafficLocal, p.HealthCheckNodePort = true, 31000 }
	internalLocal := func(p *model.ServicePort) { p.InternalTrafficLocal = true }
	sticky := func(p *model.ServicePort) { p.AffinityTimeout = 3 * time.Hour }
	long := tcp(strings.Repeat("s", 63))
	long.Service.Namespace = strings.Repeat("n", 63)
	return []golden{
		{name: "empty"},
		{name: "cluster-ip", ports: []*model.ServicePort{web,
			port(portName("kube-system", "kube-dns", "dns", model.UDP), "10.96.0.53", 53, "10.244.0.2:53", "10.244.1.2:53"),
			port(portName("shop", "signal", "", model.SCTP), "10.96.0.11", 7777, "10.244.1.9:7777"),
			port(long, "10.96.0.12", 80, "10.244.1.7:80"),
		}},
		{name: "no-endpoints", ports: []*model.ServicePort{with(port(tcp("web"), "10.96.0.10", 80), external)}},
		{name: "external", ports: []*model.ServicePort{with(web, external)}},
		{name: "source-ranges", ports: []*model.ServicePort{with(web, external, ranges)}},
		{name: "external-local", ports: []*model.ServicePort{with(web, external, externalLocal)}},
		{name: "local-without-endpoints", ports: []*model.ServicePort{
			with(port(tcp("web"), "10.96.0.10", 80, "10.244.1.5:8080"), external, externalLocal, internalLocal)}},
		{name: "internal-local", ports: []*model.ServicePort{with(web, internalLocal)}},
		{name: "affinity", ports: []*model.ServicePort{with(web, sticky, external)}},
		{name: "maglev", ports: []*model.ServicePort{
			with(port(portName("shop", "spare", "", model.TCP), "10.96.0.13", 80), func(p *model.ServicePort) { p.Balancing = model.Maglev }),
			with(web, func(p *model.ServicePort) { p.Balancing = model.MaglevPort })}},
		{name: "masquerade-all", config: func(c *Config) { c.MasqueradeAll, c.KeepInvalid, c.MasqueradeNeighbours = true, true, true },
			ports: []*model.ServicePort{web}},
		{name: "pod-interface", config: func(c *Config) { c.PodCIDRs, c.PodInterface, c.LocalhostNodePorts = nil, "veth*", false },
			ports: []*model.ServicePort{with(web, external, externalLocal)}},
		{name: "node-port-addresses", node: func(n *proxier.NodeState) { n.NodePorts = proxier.NodePorts{Addrs: n.Addrs[1:]} },
			ports: []*model.ServicePort{with(web, external)}},
		{name: "counting", config: func(c *Config) { c.Counting = true },
			ports: []*model.ServicePort{with(web, external), port(tcp("other"), "10.96.0.11", 80, "10.244.1.7:80")}},
		{name: "host-ports", config: func(c *Config) { c.LocalhostHostPorts = true }, hostPorts: hostPortsOfPods(), pods: &PodMasquerade{}},
		{name: "pod-masquerade", config: func(c *Config) { c.KeepSourcePorts = true }, pods: &PodMasquerade{
			Pods:   []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
			Exempt: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4")},
		}},
	}
}

// hostPortsOfPods are those of two pods, one of them on one address.
func hostPortsOfPods() []HostPort {
	pod, other := netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("10.244.0.6")
	itself := func(a netip.Addr, more ...string) []netip.Prefix {
		out := []netip.Prefix{netip.PrefixFrom(a, 32)}
		for _, p := range more {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	return []HostPort{
		{Protocol: model.TCP, Port: 8080, To: netip.AddrPortFrom(pod, 80), Comment: "shop/web", Masqueraded: itself(pod, "127.0.0.0/8"),
			Except: []netip.Addr{netip.MustParseAddr("192.0.2.11")}},
		{Protocol: model.UDP, Port: 53, To: netip.AddrPortFrom(other, 5353), Comment: "shop/dns", Masqueraded: itself(other)},
		{HostIP: netip.MustParseAddr("192.0.2.11"), Protocol: model.TCP, Port: 9090, To: netip.AddrPortFrom(pod, 80), Comment: "shop/web", Masqueraded: itself(pod)},
	}
}

// TestGolden: the table for each kind of Service is what the file shows.
func TestGolden(t *testing.T) {
	for _, g := range goldens() {
		for _, f := range model.Families() {
			t.Run(g.name+"/"+f.String(), func(t *testing.T) {
				cfg, node, ports := g.at(f)
				k := &fake.Kernel{}
				a := newAgent(t, cfg, k)
				a.where = node
				g.tell(a.Mode, f)
				a.sync(ports...)
				table := k.Table()
				table.Sets, table.Chains = a.drawn.table.Sets, a.drawn.table.Chains // in the order of people
				got := table.String()
				if *update {
					if err := os.WriteFile(g.file(f), []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(string(readGolden(t, g.file(f))), got); diff != "" {
					t.Errorf("%s (-golden +got):\n%s", g.file(f), diff)
				}
			})
		}
	}
}

func readGolden(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
