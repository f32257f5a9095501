// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

// -update rewrites the golden files.
var update = flag.Bool("update", false, "rewrite the golden files")

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// What Services may have.
func nodePort(p *model.ServicePort)      { p.NodePort = 30080 }
func external(p *model.ServicePort)      { p.ExternalIPs = addrs("203.0.113.20") }
func balanced(p *model.ServicePort)      { nodePort(p); p.LoadBalancerIPs = addrs("203.0.113.10") }
func internalLocal(p *model.ServicePort) { p.InternalTrafficLocal = true; spare(p) }
func sticky(p *model.ServicePort)        { p.AffinityTimeout = 3 * time.Hour }
func healthChecked(p *model.ServicePort) { p.HealthCheckNodePort = 30090 }
func maglev(p *model.ServicePort)        { p.Scheduler = model.Scheduler{Name: "mh", Port: true} }

func externalLocalPolicy(p *model.ServicePort) { p.ExternalTrafficLocal = true; spare(p) }

func spare(p *model.ServicePort) {
	if p.InternalTrafficLocal || p.ExternalTrafficLocal {
		p.SparePort = p.Port ^ 1<<15
	}
}

func sources(cidrs ...string) func(*model.ServicePort) {
	return func(p *model.ServicePort) {
		p.Restricted = true
		for _, c := range cidrs {
			p.SourceRanges = append(p.SourceRanges, netip.MustParsePrefix(c))
		}
	}
}

// Endpoints: two of the node's own, and one elsewhere.
const (
	one   = "10.244.0.5:8080"
	two   = "10.244.0.6:8080"
	three = "10.244.1.7:8080"
	six   = "[fd00:10:244::5]:8080"
)

type renderCase struct {
	name  string
	cfg   Config
	ports []*model.ServicePort
}

func renderCases() []renderCase {
	web, dns := portName("shop", "web", "http", model.TCP), portName("kube-system", "kube-dns", "dns", model.UDP)
	v4 := config(model.IPv4)
	several, unknown, all, unbridged := v4, v4, v4, v4
	unbridged.MasqueradeNeighbours = true
	several.PodCIDRs = append(several.PodCIDRs, netip.MustParsePrefix("10.245.0.0/16"))
	unknown.PodCIDRs = nil
	all.MasqueradeAll, all.LocalhostNodePorts, all.KeepInvalid = true, false, true
	at := func(endpoints ...string) *model.ServicePort { return port(web, "10.96.0.10", 80, endpoints...) }
	ports := func(p ...*model.ServicePort) []*model.ServicePort { return p }
	return []renderCase{
		{"nothing", v4, nil},
		{"cluster-ip", v4, ports(at(one, two, three), port(dns, "10.96.0.53", 53, "10.244.1.9:53"))},
		{"ipv6", config(model.IPv6), ports(with(port(web, "fd00:10:96::10", 80, six), nodePort))},
		{"no-endpoints", v4, ports(with(at(), balanced, external))},
		{"node-port", v4, ports(with(at(one, three), nodePort))},
		{"node-port-sctp", v4, ports(with(port(portName("shop", "web", "sctp", model.SCTP), "10.96.0.10", 80, one), nodePort))},
		{"node-port-sctp-local", v4, ports(with(port(portName("shop", "web", "sctp", model.SCTP), "10.96.0.10", 80, one), nodePort, externalLocalPolicy))},
		{"external-ip", v4, ports(with(at(one), external))},
		{"external-ip-of-node", v4, ports(with(at(one), func(p *model.ServicePort) { p.ExternalIPs = addrs("192.0.2.11") }))},
		{"load-balancer", v4, ports(with(at(one), balanced))},
		{"source-ranges", v4, ports(with(at(one), balanced, sources("198.51.100.0/24", "192.0.2.0/24", "203.0.113.200/32")))},
		{"local-policies", v4, ports(with(at(one, three), balanced, internalLocal, externalLocalPolicy, healthChecked))},
		{"local-policies-elsewhere", v4, ports(with(at(three), balanced, external, internalLocal, externalLocalPolicy, healthChecked))},
		{"external-ip-local", v4, ports(with(at(one, three), external, externalLocalPolicy))},
		{"external-ip-internal-local", v4, ports(with(at(one, three), external, internalLocal))},
		{"external-ip-of-load-balancer", v4, ports(with(at(one), balanced, external, func(p *model.ServicePort) { p.ExternalIPs = append(p.ExternalIPs, p.LoadBalancerIPs...) }))},
		{"external-local", several, ports(with(at(one, three), balanced, external, externalLocalPolicy))},
		{"affinity", v4, ports(with(at(one, three), nodePort, sticky))},
		{"scheduler", v4, ports(with(at(one, three), maglev))},
		{"nobody-is-a-pod", unknown, ports(with(at(one), nodePort))},
		{"neighbours", unbridged, ports(at(one))},
		{"masquerade-all", all, ports(with(at(one), nodePort))},
	}
}

// TestGolden shows what there is for each Service, in the words of ipvsadm, ip, ipset
// and iptables.
func TestGolden(t *testing.T) {
	for _, tt := range renderCases() {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(tt.cfg.Family)
			h.agent(t, tt.cfg).sync(tt.ports...)
			file := filepath.Join("testdata", "golden", tt.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(h.save()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), h.save()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSyncAgain: what is there is not written again, by the same agent nor by its
// successor.
func TestSyncAgain(t *testing.T) {
	for _, tt := range renderCases() {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(tt.cfg.Family)
			a := h.agent(t, tt.cfg)
			a.sync(tt.ports...)
			want := h.save()
			for name, who := range map[string]*agent{"same": a, "successor": h.agent(t, tt.cfg)} {
				if r := who.sync(tt.ports...); r.Written+len(r.Repaired) > 0 {
					t.Errorf("the %s agent's Sync() = %+v, want nothing written", name, r)
				}
			}
			if diff := cmp.Diff(want, h.save()); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
		})
	}
}

// TestSyncAway: nothing stays of Services that are gone.
func TestSyncAway(t *testing.T) {
	for _, tt := range renderCases() {
		t.Run(tt.name, func(t *testing.T) {
			empty, h := newHost(tt.cfg.Family), newHost(tt.cfg.Family)
			empty.agent(t, tt.cfg).sync()
			for range 2 { // by the same agent, and by a successor
				a := h.agent(t, tt.cfg)
				_, names := snapshot(tt.ports...)
				a.sync(tt.ports...)
				a.syncChanged(model.NewSnapshot(), names)
				if diff := cmp.Diff(empty.save(), h.save()); diff != "" {
					t.Errorf("(-empty +after):\n%s", diff)
				}
				h.agent(t, tt.cfg).sync(tt.ports...)
				h.agent(t, tt.cfg).sync()
				if diff := cmp.Diff(empty.save(), h.save()); diff != "" {
					t.Errorf("after a restart (-empty +after):\n%s", diff)
				}
			}
		})
	}
}
