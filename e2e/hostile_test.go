// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/iptables"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/nat"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// pipeline is the whole way of objects to rules, on a kernel in memory.
type pipeline struct {
	t      testing.TB
	f      model.Family
	kernel *fake.Kernel
	mode   *iptables.Mode
	snap   *model.Snapshot
}

func newPipeline(t testing.TB, f model.Family) *pipeline {
	p := &pipeline{t: t, f: f, kernel: &fake.Kernel{}, snap: model.NewSnapshot()}
	cfg := iptables.RenderConfig{Family: f, MasqueradeBit: 14, LocalhostNodePorts: true}
	engine := ruleset.NewEngine(ruleset.Config{
		Exec: p.kernel, Variant: ruleset.NFT,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{nat.Contribution(), iptables.Contribution(cfg)},
	})
	engine.Stage(nat.Chains(14, ""))
	p.mode = iptables.New(cfg, engine, nil, nil, nil)
	return p
}

// sync takes objects the whole way. Nothing that passes the edge may be refused
// by the kernel.
func (p *pipeline) sync(svc *corev1.Service, slice *discoveryv1.EndpointSlice) (*model.Service, *model.EndpointSlice) {
	p.t.Helper()
	s, _, _ := source.TranslateService(svc, source.Policy{})
	e, _, _ := source.TranslateEndpointSlice(slice)
	var slices []*model.EndpointSlice
	if e != nil && s != nil && e.Service == s.Key {
		slices = append(slices, e)
	}
	changes := map[model.ServicePortName]*model.ServicePort{}
	var names []model.ServicePortName
	for _, port := range proxier.Resolve(s, slices, proxier.Locality{Node: "node-1"}, p.f) {
		changes[port.Name] = port
		names = append(names, port.Name)
	}
	p.snap = p.snap.With(changes)
	r, err := p.mode.Sync(context.Background(), proxier.Desired{
		Snapshot: p.snap, Changed: names, Prune: true, Node: proxier.NodeState{NodePorts: proxier.NodePorts{All: true}},
	})
	if err != nil || len(r.Refused) > 0 {
		p.t.Fatalf("Sync of %q: %v, refused %q", svc.Name, err, r.Refused)
	}
	return s, e
}

var addressInRule = regexp.MustCompile(`(?:-s|-d|--to-destination) (\S+)`)

// checkAddresses fails if a rule names an address that none of the objects has.
func (p *pipeline) checkAddresses(s *model.Service, e *model.EndpointSlice) {
	p.t.Helper()
	known := map[netip.Addr]bool{netip.MustParseAddr("127.0.0.0"): true, netip.MustParseAddr("::1"): true}
	if s != nil {
		for _, ips := range [][]netip.Addr{s.ClusterIPs, s.ExternalIPs, s.LoadBalancerIPs} {
			for _, ip := range ips {
				known[ip] = true
			}
		}
		for _, r := range s.SourceRanges {
			known[r.Masked().Addr()] = true
		}
	}
	if e != nil {
		for _, ep := range e.Endpoints {
			known[ep.Addr] = true
		}
	}
	for _, m := range addressInRule.FindAllStringSubmatch(p.kernel.Save(), -1) {
		if a := parseAny(m[1]); !known[a] {
			p.t.Fatalf("a rule names %s, which no object has:\n%s", m[1], p.kernel.Save())
		}
	}
}

// parseAny reads an address, with a prefix length or a port or neither.
func parseAny(s string) netip.Addr {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr()
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr()
	}
	a, _ := netip.ParseAddr(s)
	return a
}

// hostileObjects puts the values into every field that takes a string or a
// number.
func hostileObjects(text, addr, cidr string, number int32) (*corev1.Service, *discoveryv1.EndpointSlice) {
	proto := corev1.Protocol(text)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc", Labels: map[string]string{text: text}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.66", ClusterIPs: []string{"10.96.0.66", addr},
			ExternalIPs: []string{addr, "203.0.113.5"}, LoadBalancerSourceRanges: []string{cidr, "192.0.2.0/24"},
			SessionAffinity: corev1.ServiceAffinity(text), ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicy(text),
			HealthCheckNodePort: number,
			Ports: []corev1.ServicePort{
				{Name: "good", Port: 80}, {Name: text, Port: number, NodePort: number}, {Name: "proto", Protocol: proto, Port: 81},
			},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: addr}, {IP: "203.0.113.80"}}}},
	}
	good, port := "good", int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "slice", Labels: map[string]string{discoveryv1.LabelServiceName: "svc"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &good, Port: &port}, {Name: &text, Port: &number, Protocol: &proto}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}, NodeName: &text}, {Addresses: []string{"10.244.0.66"}}},
	}
	return svc, slice
}

// hostileTexts and hostileAddrs are what somebody with the right to write
// objects might try.
func hostileTexts() []string {
	return []string{
		"", "a\nCOMMIT\n*filter", `a" -j ACCEPT -m comment --comment "`, "COMMIT", "-j DROP", `\`, "'", "$(reboot)", "\x00",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 1<<16), "ä", "A_B", "TCP", "ClientIP", "Local",
	}
}

func hostileAddrs() []string {
	return []string{
		"", "127.0.0.1", "127.1.2.3", "169.254.169.254", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1",
		"::ffff:10.0.0.1", "10.0.0.1/8", "10.0.0.1 -j ACCEPT", "010.0.0.1", "10.0.0.1%eth0", "1e1", "300.1.1.1", "fd00::1",
	}
}

// TestHostileObjects: a hostile object harms only itself. Whatever is in its
// fields, what is good of it works, and so does everything else.
func TestHostileObjects(t *testing.T) {
	neighbour, itsSlice := hostileObjects("http", "10.244.0.7", "10.0.0.0/8", 8080)
	neighbour.Name, itsSlice.Labels = "neighbour", map[string]string{discoveryv1.LabelServiceName: "neighbour"}
	neighbour.Spec.ClusterIP, neighbour.Spec.ClusterIPs = "10.96.0.7", []string{"10.96.0.7"}
	neighbour.Spec.ExternalIPs, neighbour.Status = nil, corev1.ServiceStatus{}
	before := newPipeline(t, model.IPv4)
	before.sync(neighbour, itsSlice)
	for i, text := range hostileTexts() {
		addr := hostileAddrs()[i%len(hostileAddrs())]
		t.Run(fmt.Sprintf("%.20q %s", text, addr), func(t *testing.T) {
			p := newPipeline(t, model.IPv4)
			p.sync(neighbour, itsSlice)
			p.sync(hostileObjects(text, addr, text, int32(i)*4000-1))
			rules := p.kernel.Save()
			for line := range strings.Lines(before.kernel.Save()) {
				if strings.HasPrefix(line, "-A") && !strings.Contains(rules, line) {
					t.Errorf("a rule of the neighbour is gone: %s", line)
				}
			}
			for _, want := range []string{"-d 10.96.0.66/32 -p tcp", "--to-destination 10.244.0.66:8080"} {
				if !strings.Contains(rules, want) {
					t.Errorf("what is good of the object does not work: no %q in\n%s", want, rules)
				}
			}
		})
	}
	for _, addr := range hostileAddrs() {
		t.Run("address "+addr, func(t *testing.T) {
			p := newPipeline(t, model.IPv4)
			p.checkAddresses(p.sync(hostileObjects("x", addr, addr, 0)))
			for _, never := range []string{"--to-destination 127.", "--to-destination 169.254", "--to-destination 224.", "--to-destination 0.", "-d 127.1", "-d 169.254", "-d 0.0.0.0"} {
				if strings.Contains(p.kernel.Save(), never) {
					t.Errorf("rules contain %q", never)
				}
			}
		})
	}
}

// TestHostileSizes: an object of any size takes effect, or a part of it, and
// does not keep another from it.
func TestHostileSizes(t *testing.T) {
	svc, slice := hostileObjects("http", "10.244.0.7", "10.0.0.0/8", 8080)
	svc.Spec.Ports, svc.Spec.LoadBalancerSourceRanges = nil, nil
	for i := range 10_000 {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(i + 1)})
	}
	p := newPipeline(t, model.IPv4)
	p.sync(svc, slice)
	if got := strings.Count(p.kernel.Save(), "has no endpoints"); got < 10_000 {
		t.Errorf("%d rules for 10,000 ports without endpoints", got)
	}
	svc.Spec.Ports = []corev1.ServicePort{{Name: "good", Port: 80}}
	for i := range 1_000 {
		svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
	}
	p = newPipeline(t, model.IPv4)
	p.sync(svc, slice)
	if got := strings.Count(p.kernel.Save(), "/24 -m comment --comment \"ns/svc:good loadbalancer IP\""); got != 1_000 {
		t.Errorf("%d rules for 1,000 source ranges", got)
	}
}

// FuzzObjects takes arbitrary values the whole way from objects to rules.
func FuzzObjects(f *testing.F) {
	for i, text := range hostileTexts() {
		f.Add(text, hostileAddrs()[i%len(hostileAddrs())], "10.0.0.0/8", int32(i))
	}
	f.Fuzz(func(t *testing.T, text, addr, cidr string, number int32) {
		for _, family := range families() {
			p := newPipeline(t, family)
			p.checkAddresses(p.sync(hostileObjects(text, addr, cidr, number)))
		}
	})
}
