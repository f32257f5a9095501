// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

// at returns a time of day.
func at(minute int) time.Time { return time.Date(2026, 1, 1, 12, minute, 0, 0, time.UTC) }

// pod returns a pod with addresses and host ports, written as
// "[address:]port[/protocol]>port", which started at minute.
func pod(name string, minute int, ips string, ports ...string) *model.Pod {
	p := &model.Pod{
		Key: model.ObjectKey{Namespace: "shop", Name: name}, UID: "uid-" + name, Started: at(minute), Wired: at(minute),
	}
	for _, ip := range strings.Fields(ips) {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip))
	}
	for _, text := range ports {
		p.HostPorts = append(p.HostPorts, hostPort(text))
	}
	return p
}

func hostPort(text string) model.HostPort {
	out := model.HostPort{Protocol: model.TCP}
	from, to, _ := strings.Cut(text, ">")
	if p, proto, ok := strings.Cut(from, "/"); ok {
		from, out.Protocol = p, model.Protocol(strings.ToUpper(proto))
	}
	if i := strings.LastIndex(from, ":"); i >= 0 {
		out.HostIP = netip.MustParseAddr(strings.Trim(from[:i], "[]"))
		from = from[i+1:]
	}
	fmt.Sscan(from, &out.HostPort)
	fmt.Sscan(to, &out.ContainerPort)
	return out
}

// podsOf returns a change after which there are these pods.
func podsOf(pods ...*model.Pod) map[model.ObjectKey]*model.Pod {
	out := map[model.ObjectKey]*model.Pod{}
	for _, p := range pods {
		out[p.Key] = p
	}
	return out
}

// service returns a port of a Service, which is written as "name/protocol".
func service(name string, port, nodePort uint16, externalIPs ...string) *model.ServicePort {
	name, proto, _ := strings.Cut(name, "/")
	out := &model.ServicePort{
		Name: model.ServicePortName{Service: model.ObjectKey{Namespace: "shop", Name: name}, Protocol: model.Protocol(strings.ToUpper(proto))},
		Port: port, NodePort: nodePort,
	}
	for _, ip := range externalIPs {
		out.ExternalIPs = append(out.ExternalIPs, netip.MustParseAddr(ip))
	}
	return out
}

// servicesOf returns a change after which there are these ports of Services.
func servicesOf(ports ...*model.ServicePort) map[model.ServicePortName]*model.ServicePort {
	out := map[model.ServicePortName]*model.ServicePort{}
	for _, p := range ports {
		out[p.Name] = p
	}
	return out
}

// text returns a Portmap's host ports and refusals, sorted.
func text(p *Portmap) []string {
	var out []string
	host := func(ip netip.Addr) string {
		if ip.IsValid() {
			return ip.String() + " "
		}
		return ""
	}
	for _, m := range p.all() {
		out = append(out, fmt.Sprintf("%s%s → %s %s", host(m.HostIP), m.Port, m.Pod.Name, m.To))
	}
	for _, list := range p.claims.refused {
		for _, r := range list {
			out = append(out, fmt.Sprintf("%s%s of %s %s", host(r.HostIP), r.Port, r.Pod.Key.Name, r.Reason))
		}
	}
	slices.Sort(out)
	return out
}

func testNode() Node {
	return Node{
		Addrs:        []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Links:        []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("192.0.2.0/24")},
		AllNodePorts: true,
	}
}

func TestClaims(t *testing.T) {
	local := Config{Family: model.IPv4, Localhost: true}
	second := pod("b", 2, "10.244.0.12", "8080>80")
	second.UID = "uid-a-too"
	replaced := pod("a", 3, "10.244.0.13", "8080>80")
	replaced.UID = "uid-another"
	stale := pod("stale", 1, "10.244.0.11", "8080>80")
	rewired := pod("old", 1, "10.244.0.11", "9090>90")
	rewired.Wired = at(9)
	for _, tt := range []struct {
		name  string
		cfg   Config
		steps []map[model.ObjectKey]*model.Pod
		want  []string
	}{
		{
			name: "every protocol, one port each", steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "53>5353", "53/udp>5354", "53/sctp>5355"))},
			want: []string{"53/sctp → a 10.244.0.11:5355", "53/tcp → a 10.244.0.11:5353", "53/udp → a 10.244.0.11:5354"},
		},
		{
			name:  "both families: this one's address",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "fd00::11 10.244.0.11", "8080>80", "0.0.0.0:8081>81", "[::]:8082>82", "192.0.2.1:8083>83", "[2001:db8::1]:8084>84"))},
			want:  []string{"192.0.2.1 8083/tcp → a 10.244.0.11:83", "8080/tcp → a 10.244.0.11:80", "8081/tcp → a 10.244.0.11:81"},
		},
		{
			name: "IPv6", cfg: Config{Family: model.IPv6},
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "fd00::11 10.244.0.11", "8080>80", "0.0.0.0:8081>81", "[::]:8082>82", "192.0.2.1:8083>83", "[2001:db8::1]:8084>84"))},
			want:  []string{"2001:db8::1 8084/tcp → a [fd00::11]:84", "8080/tcp → a [fd00::11]:80", "8082/tcp → a [fd00::11]:82"},
		},
		{
			name:  "a pod without an address of the family",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "fd00::11", "8080>80"))},
		},
		{
			name:  "an address that the node does not have",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "192.0.2.99:8080>80", "8081>81"))},
			want:  []string{"192.0.2.99 8080/tcp of a is on 192.0.2.99, which the node does not have", "8081/tcp → a 10.244.0.11:81"},
		},
		{
			name:  "localhost, not asked for",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "127.0.0.1:8080>80"))},
			want:  []string{"127.0.0.1 8080/tcp of a is on 127.0.0.1, where host ports are off; start the agent with --host-ports-localhost"},
		},
		{
			name: "localhost", cfg: local,
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "127.0.0.2:8080>80"))},
			want:  []string{"127.0.0.2 8080/tcp → a 10.244.0.11:80"},
		},
		{
			name: "protected", cfg: Config{Family: model.IPv4, Protected: map[Port]string{{model.TCP, 22}: "the node's own"}},
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "22>22", "22/udp>22"))},
			want:  []string{"22/tcp of a is the node's own", "22/udp → a 10.244.0.11:22"},
		},
		{
			name:  "two pods: the one that started first, whichever came first",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("b", 2, "10.244.0.12", "8080>80")), podsOf(pod("a", 1, "10.244.0.11", "8080>80"))},
			want:  []string{"8080/tcp of b has been that of pod shop/a for longer", "8080/tcp → a 10.244.0.11:80"},
		},
		{
			name:  "two pods that started together: by UID",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("b", 1, "10.244.0.12", "8080>80"), pod("a", 1, "10.244.0.11", "8080>80"))},
			want:  []string{"8080/tcp of b has been that of pod shop/a for longer", "8080/tcp → a 10.244.0.11:80"},
		},
		{
			name:  "all addresses and one of them are the same to two pods",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "192.0.2.1:8080>80"), pod("b", 2, "10.244.0.12", "8080>80"))},
			want:  []string{"192.0.2.1 8080/tcp → a 10.244.0.11:80", "8080/tcp of b has been that of pod shop/a for longer"},
		},
		{
			name:  "two addresses are not",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "192.0.2.1:8080>80"), pod("b", 2, "10.244.0.12", "10.244.0.1:8080>80"))},
			want:  []string{"10.244.0.1 8080/tcp → b 10.244.0.12:80", "192.0.2.1 8080/tcp → a 10.244.0.11:80"},
		},
		{
			name:  "a pod may have all addresses and one of them, with two ports",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "8080>80", "192.0.2.1:8080>81"))},
			want:  []string{"192.0.2.1 8080/tcp → a 10.244.0.11:81", "8080/tcp → a 10.244.0.11:80"},
		},
		{
			name:  "all addresses twice",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "8080>80", "0.0.0.0:8080>81"))},
			want:  []string{"8080/tcp of a is the same as an earlier one of the pod", "8080/tcp → a 10.244.0.11:80"},
		},
		{
			name: "the loser gets the port when the winner goes",
			steps: []map[model.ObjectKey]*model.Pod{
				podsOf(pod("a", 1, "10.244.0.11", "8080>80"), pod("b", 2, "10.244.0.12", "8080>80")), {model.ObjectKey{Namespace: "shop", Name: "a"}: nil},
			},
			want: []string{"8080/tcp → b 10.244.0.12:80"},
		},
		{
			name:  "replaced under its name",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "8080>80", "8081>81")), podsOf(replaced)},
			want:  []string{"8080/tcp → a 10.244.0.13:80"},
		},
		{
			name:  "replaced under its name, while another waits: that has waited for longer",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(pod("a", 1, "10.244.0.11", "8080>80"), second), podsOf(replaced)},
			want:  []string{"8080/tcp of a has been that of pod shop/b for longer", "8080/tcp → b 10.244.0.12:80"},
		},
		{
			name:  "after a restart of the node: an address that is another's by now",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(stale), podsOf(pod("new", 5, "10.244.0.11", "9090>90"))},
			want: []string{
				"8080/tcp of stale is for a pod whose address 10.244.0.11 is that of pod shop/new by now",
				"9090/tcp → new 10.244.0.11:90",
			},
		},
		{
			name:  "both older than the restart: the one whose network was made last",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(rewired, pod("stale", 5, "10.244.0.11", "8080>80"))},
			want: []string{
				"8080/tcp of stale is for a pod whose address 10.244.0.11 is that of pod shop/old by now",
				"9090/tcp → old 10.244.0.11:90",
			},
		},
		{
			name:  "by now of a pod without host ports",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(stale), podsOf(pod("new", 5, "10.244.0.11"))},
			want:  []string{"8080/tcp of stale is for a pod whose address 10.244.0.11 is that of pod shop/new by now"},
		},
		{
			name:  "it gets another address",
			steps: []map[model.ObjectKey]*model.Pod{podsOf(stale, pod("new", 5, "10.244.0.11", "9090>90")), podsOf(pod("stale", 1, "10.244.0.14", "8080>80"))},
			want:  []string{"8080/tcp → stale 10.244.0.14:80", "9090/tcp → new 10.244.0.11:90"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cfg.Family == 0 {
				tt.cfg.Family = model.IPv4
			}
			p := New(tt.cfg)
			for _, step := range tt.steps {
				p.Update(Objects{Pods: step}, testNode())
			}
			if diff := cmp.Diff(tt.want, text(p)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestHostIPFollowsTheNode: a host port on one address is there while the node has
// that.
func TestHostIPFollowsTheNode(t *testing.T) {
	p := New(Config{Family: model.IPv4})
	node := testNode()
	p.Update(Objects{Pods: podsOf(pod("a", 1, "10.244.0.11", "192.0.2.99:8080>80"))}, node)
	node.Addrs = append(node.Addrs, netip.MustParseAddr("192.0.2.99"))
	c := p.Update(Objects{}, node)
	if diff := cmp.Diff([]string{"192.0.2.99 8080/tcp → a 10.244.0.11:80"}, text(p)); diff != "" || len(c.Fresh) != 1 {
		t.Errorf("with the address (-want +got):\n%s", diff)
	}
	if c = p.Update(Objects{}, testNode()); len(c.Gone) != 1 || len(c.Refused) != 1 || len(p.all()) != 0 {
		t.Errorf("without it: %+v", c)
	}
	if c = p.Update(Objects{}, testNode()); len(c.Written)+len(c.Gone)+len(c.Fresh)+len(c.Refused) > 0 {
		t.Errorf("nothing new: %+v", c)
	}
}

// TestAstray: a pod whose address leads nowhere does not get its port, nor does it keep
// others from it.
func TestAstray(t *testing.T) {
	p := New(Config{Family: model.IPv4})
	node := testNode()
	p.Update(Objects{Pods: podsOf(pod("a", 1, "10.244.0.11", "8080>80"), pod("b", 2, "10.244.0.12", "8080>80"))}, node)
	node.Astray = map[netip.Addr]string{netip.MustParseAddr("10.244.0.11"): "has no route"}
	p.Update(Objects{}, node)
	want := []string{"8080/tcp of a is for a pod whose address 10.244.0.11 has no route", "8080/tcp → b 10.244.0.12:80"}
	if diff := cmp.Diff(want, text(p)); diff != "" {
		t.Errorf("astray (-want +got):\n%s", diff)
	}
	p.Update(Objects{}, testNode())
	want = []string{"8080/tcp of b has been that of pod shop/a for longer", "8080/tcp → a 10.244.0.11:80"}
	if diff := cmp.Diff(want, text(p)); diff != "" {
		t.Errorf("found again (-want +got):\n%s", diff)
	}
}

// TestServicesFirst: what is a Service's, with endpoints or without, is no pod's.
func TestServicesFirst(t *testing.T) {
	onBridge := testNode()
	onBridge.AllNodePorts, onBridge.NodePorts = false, onBridge.Addrs[:2] // 127.0.0.1 is one
	balancer := service("web/tcp", 80, 0)
	balancer.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	health := service("web/udp", 53, 0)
	health.HealthCheckNodePort = 30099
	for _, tt := range []struct {
		name     string
		cfg      Config
		node     Node
		ports    []string
		services []*model.ServicePort
		want     []string
	}{
		{
			name: "a node port, on all addresses", ports: []string{"30080>80", "30080/udp>80", "127.0.0.1:30080/sctp>80"}, cfg: Config{Localhost: true},
			services: []*model.ServicePort{service("web/tcp", 80, 30080), service("web/sctp", 80, 30080)},
			want: []string{
				"127.0.0.1 30080/sctp → a 10.244.0.11:80", "30080/tcp of a is a node port of Service shop/web", "30080/udp → a 10.244.0.11:80",
			},
		},
		{
			name: "a node port, on 127.0.0.1 too", ports: []string{"127.0.0.1:30080>80"}, cfg: Config{Localhost: true, LocalhostNodePorts: true},
			services: []*model.ServicePort{service("web/tcp", 80, 30080)},
			want:     []string{"127.0.0.1 30080/tcp of a is a node port of Service shop/web"},
		},
		{
			name: "a node port, on some addresses", node: onBridge, ports: []string{"30080>80", "192.0.2.1:30081>80", "10.244.0.1:30081>81"},
			services: []*model.ServicePort{service("web/tcp", 80, 30080), service("other/tcp", 80, 30081)},
			want: []string{
				"10.244.0.1 30080/tcp of a is a node port of Service shop/web on 10.244.0.1", "10.244.0.1 30081/tcp of a is a node port of Service shop/other",
				"192.0.2.1 30081/tcp → a 10.244.0.11:80", "30080/tcp → a 10.244.0.11:80",
			},
		},
		{
			name: "health checks", ports: []string{"30099>80"}, services: []*model.ServicePort{health},
			want: []string{"30099/tcp of a is a node port of Service shop/web"},
		},
		{
			name: "load balancers and external IPs", ports: []string{"80>80", "192.0.2.1:81>81", "10.244.0.1:81>82"},
			services: []*model.ServicePort{balancer, service("ext/tcp", 81, 0, "192.0.2.1", "203.0.113.5")},
			want: []string{
				"10.244.0.1 81/tcp → a 10.244.0.11:82", "192.0.2.1 80/tcp of a is a port of Service shop/web on 192.0.2.1",
				"192.0.2.1 81/tcp of a is a port of Service shop/ext", "80/tcp → a 10.244.0.11:80",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Family = model.IPv4
			if tt.node.Addrs == nil {
				tt.node = testNode()
			}
			p := New(tt.cfg)
			p.Update(Objects{Pods: podsOf(pod("a", 1, "10.244.0.11", tt.ports...))}, tt.node)
			before := text(p)
			svcs := servicesOf(tt.services...)
			p.Update(Objects{Services: svcs}, tt.node)
			if diff := cmp.Diff(tt.want, text(p)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c := p.Update(Objects{Services: svcs}, tt.node); len(c.Written)+len(c.Gone)+len(c.Fresh)+len(c.Refused) > 0 {
				t.Errorf("the same again: %+v", c)
			}
			for name := range svcs {
				svcs[name] = nil
			}
			p.Update(Objects{Services: svcs}, tt.node)
			if diff := cmp.Diff(before, text(p)); diff != "" {
				t.Errorf("after they have gone (-before +after):\n%s", diff)
			}
			if n := len(p.claims.services.ports) + len(p.claims.services.at); n > 0 {
				t.Errorf("%d Services are remembered", n)
			}
		})
	}
}
