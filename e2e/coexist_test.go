// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// dockerRules are those of Docker 28 with a container on its bridge, 172.18.0.0/16, that
// publishes port 8088, as its documentation of iptables has them. The policy of FORWARD
// is DROP.
const dockerRules = `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 172.18.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.18.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.18.0.2:8080
COMMIT
`

// flannelRules are those of flannel with --ip-masq, for the lab's pods.
const flannelRules = `*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
`

// addContainer makes Docker's bridge on a node, and a container on it: a pod that is
// moved there.
func addContainer(ctx context.Context, t *testing.T, n *lab.Node, container *lab.NS) {
	t.Helper()
	for _, c := range []struct {
		in   *lab.NS
		args []string
	}{
		{n.NS, []string{"link", "add", "docker0", "type", "bridge"}},
		{n.NS, []string{"addr", "add", "172.18.0.1/16", "dev", "docker0"}},
		{n.NS, []string{"link", "set", "docker0", "up"}},
		{n.NS, []string{"link", "set", "pod-2", "master", "docker0"}},
		{container, []string{"addr", "flush", "dev", "eth0", "scope", "global"}},
		{container, []string{"addr", "add", "172.18.0.2/16", "dev", "eth0"}},
		{container, []string{"route", "replace", "default", "via", "172.18.0.1"}},
	} {
		if _, err := c.in.Run(ctx, "ip", c.args...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernelCoexistence: on a node with Docker, or with flannel, nothing of theirs moves
// and goes on working, and so do Services, host ports and what pods send to the outside.
func TestKernelCoexistence(t *testing.T) {
	for _, tt := range []struct {
		name, rules string
		docker      bool
		masquerades bool // the others do
	}{
		{"Docker", dockerRules, true, false},
		{"flannel", flannelRules, false, true},
		{"both", dockerRules + flannelRules, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
				ctx := testContext(t)
				node, pod, container := l.Nodes[0], l.Nodes[0].Pods[0], l.Nodes[0].Pods[1]
				if _, err := l.Client.EchoPort(ctx, outsidePort); err != nil {
					t.Fatal(err)
				}
				if tt.docker {
					addContainer(ctx, t, node, container)
				}
				if err := node.Restore(ctx, v, model.IPv4, tt.rules); err != nil {
					t.Fatal(err)
				}
				before := foreign(ctx, t, node, v)
				check := func(when string) {
					t.Helper()
					tcp := func(from *lab.NS, to netip.Addr, port uint16) lab.Probe {
						return lab.Probe{From: from, Network: "tcp", To: netip.AddrPortFrom(to, port)}
					}
					at := node.Addr(model.IPv4)
					if tt.docker {
						for _, from := range []*lab.NS{l.Client, node.NS} {
							if r := tcp(from, at, 8088).Once(ctx); r.Server != container.Label {
								t.Errorf("%s: published port: %s", when, r)
							}
						}
						if r := tcp(container, l.Client.Addr(model.IPv4), outsidePort).Once(ctx); r.Source.Addr() != at {
							t.Errorf("%s: container to the outside: %s", when, r)
						}
						if r := tcp(l.Client, netip.MustParseAddr("172.18.0.2"), 5353).Once(ctx); r.Outcome == lab.Answered {
							t.Errorf("%s: a port that is not published: %s", when, r)
						}
					}
				}
				check("before")
				dir := newDirectory(t)
				dir.write("web.yaml", web(l, pod, l.Nodes[1].Pods[0])...)
				dir.write("pod.yaml", podObject("web", pod, publish(hostPort)))
				state := filepath.Join(t.TempDir(), "state.json")
				a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--pod-masquerade", "auto", "--cni-conf-dir", t.TempDir(), "--state-file", state,
					"--iptables-localhost-nodeports=false") // KUBE-FIREWALL is not ours alone
				a.waitSynced(ctx, 0)
				a.waitLog(ctx, 0, 2, `part="services"`)
				if got := readState(t, state)["IPv4"]["podMasquerade"]; got.Owned == tt.masquerades {
					t.Errorf("podMasquerade: %+v, want it owned: %v", got, !tt.masquerades)
				}
				if diff := cmp.Diff(before, foreign(ctx, t, node, v)); diff != "" {
					t.Errorf("rules of others (-before +with the agent):\n%s", diff)
				}
				check("with the agent")
				checkSource(ctx, t, "host port", ask(l.Client, "tcp", node.Addr(model.IPv4)), l.Client.Addr(model.IPv4))
				checkSource(ctx, t, "pod to the outside", lab.Probe{From: pod, Network: "tcp", To: netip.AddrPortFrom(l.Client.Addr(model.IPv4), outsidePort)}, node.Addr(model.IPv4))
				seen := map[string]bool{}
				for range 20 {
					seen[webProbe(l.Client, model.IPv4, "tcp").Once(ctx).Server] = true
				}
				for _, want := range []string{pod.Label, l.Nodes[1].Pods[0].Label} {
					if !seen[want] {
						t.Errorf("the Service's endpoints: %v, want %s among them", seen, want)
					}
				}
				a.stop()
				cleanUp(ctx, t, node)
				if diff := cmp.Diff(before, everything(ctx, t, node, v)); diff != "" {
					t.Errorf("after cleanup (-before +after):\n%s", diff)
				}
				check("after cleanup")
			})
		})
	}
}

// TestKernelPolicyWins: what a policy engine drops is dropped, be it for a pod, a
// Service or a host port: rules that accept are below its own.
func TestKernelPolicyWins(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod := l.Nodes[0], l.Nodes[0].Pods[0]
		for _, f := range families() {
			if err := l.RouteClient(node, node.PodCIDR(f)); err != nil {
				t.Fatal(err)
			}
		}
		forwardDrop(ctx, t, node, v)
		dir := newDirectory(t)
		dir.write("web.yaml", exposed(l, pod)...)
		dir.write("pod.yaml", podObject("web", pod, publish(hostPort)))
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--pod-masquerade", "on", "--cni-conf-dir", t.TempDir())
		a.waitSynced(ctx, 0)
		check := func(when string, want lab.Outcome) {
			t.Helper()
			for _, f := range families() {
				for name, to := range map[string]netip.AddrPort{
					"pod":       netip.AddrPortFrom(pod.Addr(f), httpTarget),
					"host port": netip.AddrPortFrom(node.Addr(f), hostPort),
					"node port": netip.AddrPortFrom(node.Addr(f), 30080),
				} {
					p := lab.Probe{From: l.Client, Network: "tcp", To: to}
					if r := p.Once(ctx); r.Outcome != want {
						t.Errorf("%s: %s: %s: %s, want %s", when, name, p, r, want)
					}
				}
			}
		}
		check("nothing is accepted by others", lab.Answered)
		for _, f := range families() { // as policy engines do it: their chain, before what there was when they came
			rules := [][]string{
				{"-N", "POLICY"}, {"-A", "POLICY", "-d", pod.Addr(f).String(), "-j", "DROP"}, {"-I", "FORWARD", "-j", "POLICY"},
			}
			if *proxyMode == "ipvs" { // which sends what is for a Service as if the node did
				rules = append(rules, []string{"-I", "OUTPUT", "-j", "POLICY"})
			}
			for _, args := range rules {
				if err := node.Iptables(ctx, v, f, args...); err != nil {
					t.Fatal(err)
				}
			}
		}
		check("a policy drops it", lab.TimedOut)
		a.stop()
		a = startAgent(ctx, t, node, v, "--manifests", dir.path, "--pod-masquerade", "on", "--cni-conf-dir", t.TempDir())
		a.waitSynced(ctx, 0)
		check("after a restart", lab.TimedOut)
		if text := save(ctx, t, node, v); strings.Index(text, "-j POLICY") > strings.Index(text, "-j KUBE-POD-FORWARD") {
			t.Errorf("the rules that accept come first:\n%s", text)
		}
	})
}
