// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"

	"fairlead/e2e/lab"
	"fairlead/iptables/ruleset"
)

// kubeProxyBinary is the kube-proxy that "make -C e2e/tools kube-proxy" builds.
func kubeProxyBinary(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("FAIRLEAD_TOOLS_BIN")
	if dir == "" {
		dir = filepath.Join("..", ".cache", "bin")
	}
	name, err := filepath.Abs(filepath.Join(dir, "kube-proxy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); err != nil {
		t.Skipf("%v: make -C e2e/tools kube-proxy builds it", err)
	}
	return name
}

// TestKernelKubeProxy: from kube-proxy to the agent, in another mode or in its own, and
// back with "cleanup --keep", not one request of clients that do not retry fails, and
// connections go on. Nothing is left then that kube-proxy alone would not have, and a
// Service answers that has had no endpoint until then.
func TestKernelKubeProxy(t *testing.T) {
	for _, c := range []struct {
		mode string // kube-proxy's
		// rounds are the agent's modes, one after the other, from kube-proxy and back.
		rounds [][]string
	}{
		{"iptables", [][]string{{"nftables"}, {"iptables"}}},
		// From iptables mode back to that, kube-proxy removes the rules before it has its own.
		{"nftables", [][]string{{"iptables", "nftables"}}},
		{"ipvs", [][]string{{"iptables"}, {"ipvs"}}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			h := newHandover(t, c.mode, c.mode == "ipvs")
			h.startTheirs()
			theirs := written(h.ctx, t, h.node, h.v)
			h.ask()
			h.check("kube-proxy")
			for _, round := range c.rounds {
				h.proxy.kill() // kube-proxy leaves its rules in any case
				for _, mode := range round {
					h.proxy = startAgent(h.ctx, t, h.node, h.v, "--proxy-mode", mode, "--kubeconfig", h.kubeconfig, "--pod-masquerade", "on")
					h.proxy.waitSynced(h.ctx, 0)
					h.check("to " + mode)
					h.proxy.stop()
				}
				when := round[len(round)-1] + " back to kube-proxy"
				h.startTheirs()
				h.check(when)
				cleanUp(h.ctx, t, h.node, "--keep="+c.mode, "--force")
				h.check(when + ", and cleaned up")
				left := slices.DeleteFunc(written(h.ctx, t, h.node, h.v), func(what string) bool { return slices.Contains(theirs, what) })
				if len(left) > 0 {
					t.Errorf("%s: left is what kube-proxy does not write:\n%s", when, strings.Join(left, "\n"))
				}
				h.serveLate(when)
			}
		})
	}
	t.Run("ipvs to another mode", fromIPVS)
}

// fromIPVS: from IPVS mode to kube-proxy in iptables mode connections by IPVS go on, too:
// "cleanup --keep" leaves what they need, says so, and removes all else.
func fromIPVS(t *testing.T) {
	h := newHandover(t, "iptables", true)
	h.startTheirs()
	theirs := written(h.ctx, t, h.node, h.v)
	h.proxy.kill()
	h.proxy = startAgent(h.ctx, t, h.node, h.v, "--proxy-mode", "ipvs", "--kubeconfig", h.kubeconfig, "--pod-masquerade", "on")
	h.proxy.waitSynced(h.ctx, 0)
	h.ask()
	h.check("in IPVS mode")
	h.proxy.stop()
	h.startTheirs()
	out, err := h.node.Command(h.ctx, binary, "cleanup", "--keep=iptables", "--force").CombinedOutput()
	if want := []string{"IPv4", "IPv6", "have connections", "run this again", "ipvsadm"}; exitStatus(err) <= 0 || !containsAll(string(out), want) {
		t.Errorf("cleanup while there are connections by IPVS: %v, want an error with all of %q:\n%s", err, want, out)
	}
	h.check("cleaned up")
	left := slices.DeleteFunc(written(h.ctx, t, h.node, h.v), func(what string) bool {
		return slices.Contains(theirs, what) || strings.HasPrefix(what, "set KUBE-") || strings.HasPrefix(what, "device kube-ipvs0")
	})
	if len(left) > 0 {
		t.Errorf("left is what connections do not need:\n%s", strings.Join(left, "\n"))
	}
	h.serveLate("after IPVS mode")
}

// handover is a node with kube-proxy and the agent, one after the other.
type handover struct {
	t                *testing.T
	ctx              context.Context
	mode             string // kube-proxy's
	l                *lab.Lab
	v                lab.Variant
	node             *lab.Node
	objects          kubernetes.Interface
	kubeconfig, path string
	proxy            *agent
	lines            *talks
	requests         *crowd
}

// latePort is the node port of the Service "late".
const latePort = 30081

func newHandover(t *testing.T, mode string, withIPVS bool) *handover {
	t.Helper()
	kubeProxyBinary(t)
	l, v := labFor(t, withIPVS)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute) // kube-proxy has to come up beside the clients
	t.Cleanup(cancel)
	h := &handover{t: t, ctx: ctx, mode: mode, l: l, v: v, node: l.Nodes[0], path: t.TempDir()}
	if err := v.Link(h.path); err != nil {
		t.Fatal(err)
	}
	cl, kubeconfig := startCluster(ctx, t, l)
	h.objects, h.kubeconfig = cl.Clientset(), kubeconfig
	late := service("late", 20)
	late.Spec.Type, late.Spec.Ports = corev1.ServiceTypeNodePort, late.Spec.Ports[:1]
	late.Spec.Ports[0].NodePort = latePort
	create(ctx, t, h.objects, append(web(l, h.node.Pods[0], l.Nodes[1].Pods[0]), nodeObject(h.node), late)...)
	return h
}

// startTheirs starts kube-proxy, and waits until it has written its rules.
func (h *handover) startTheirs() {
	h.t.Helper()
	cmd := h.node.Command(h.ctx, kubeProxyBinary(h.t), "-v=4", "--proxy-mode", h.mode, "--kubeconfig", h.kubeconfig,
		"--hostname-override", h.node.Label, "--cluster-cidr", clusterCIDR, "--oom-score-adj=0",
		// Limits of the machine's kernel are not for a lab to change.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
	cmd.Env = append(os.Environ(), "PATH="+h.path+":"+os.Getenv("PATH"))
	h.proxy = startProxy(h.t, h.node, cmd)
	for _, f := range families() {
		h.proxy.waitLog(h.ctx, 0, 1, "yncProxyRules complete", fmt.Sprintf("ipFamily=%q", f))
	}
}

// ask has clients use the Service "web" all the time, until the end of the test.
func (h *handover) ask() {
	h.t.Helper()
	clients := []*lab.NS{h.node.Pods[1], h.node.NS, h.l.Client}
	h.lines, h.requests = talk(h.ctx, h.t, 1, clients...), startCrowd(h.ctx, clients, 6, patience)
	h.t.Cleanup(h.requests.stop)
}

func (h *handover) check(when string) {
	h.t.Helper()
	h.requests.check(h.t, when)
	h.lines.check(h.t, when)
}

// serveLate gives the Service "late" an endpoint, waits until it answers, and takes the
// endpoint away.
func (h *handover) serveLate(when string) {
	h.t.Helper()
	h.write(endpointSlices("late", h.l, h.node.Pods[0]))
	for _, f := range families() {
		for _, p := range []lab.Probe{
			{From: h.node.Pods[1], Network: "tcp", To: netip.AddrPortFrom(vip(f, 20), httpPort)},
			{From: h.l.Client, Network: "tcp", To: netip.AddrPortFrom(h.node.Addr(f), latePort)},
		} {
			ctx, cancel := context.WithTimeout(h.ctx, 30*time.Second)
			if _, err := p.WaitUntil(ctx, lab.Answered); err != nil {
				h.t.Errorf("%s: a Service that has got its first endpoint: %v", when, err)
			}
			cancel()
		}
	}
	h.write(endpointSlices("late", h.l))
}

func (h *handover) write(slices []*discoveryv1.EndpointSlice) {
	h.t.Helper()
	for _, s := range slices {
		create(h.ctx, h.t, h.objects, s)
	}
}

// written lists what a service proxy writes on a node, by name: chains, rules in the
// built-in ones, sets, dummy devices, tables of nf_tables besides those of iptables, and
// whether packets for 127.0.0.1 are routed.
func written(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) []string {
	t.Helper()
	var out []string
	eachChain(ctx, t, n, v, func(table string, c ruleset.DumpChain) {
		if c.Policy == "-" {
			out = append(out, table+" chain "+c.Name)
			return
		}
		for _, r := range c.Rules {
			out = append(out, table+" rule -A "+c.Name+" "+string(r))
		}
	})
	for _, set := range setsOn(ctx, t, n) {
		out = append(out, "set "+set)
	}
	links, err := n.Run(ctx, "ip", "-o", "link", "show", "type", "dummy")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(links) {
		out = append(out, "device "+strings.Fields(line)[1])
	}
	out = append(out, "route_localnet "+routeLocalnet(t, n))
	if v != lab.NFT {
		return out // nf_tables is not in that kernel
	}
	for line := range strings.Lines(tables(ctx, t, n)) {
		if words := strings.Fields(line); !slices.Contains([]string{"filter", "nat", "mangle"}, words[len(words)-1]) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// labFor is a lab, in a kernel that has IPVS or nf_tables, and the variant of iptables
// there.
func labFor(t *testing.T, withIPVS bool) (*lab.Lab, lab.Variant) {
	t.Helper()
	if withIPVS {
		return ipvsLab(t)
	}
	if err := lab.VariantSupported(testContext(t), lab.NFT); err != nil {
		t.Skip(err)
	}
	return newLab(t), lab.NFT
}
