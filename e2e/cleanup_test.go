// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelCleanupParts: what is removed of Services, host ports and masquerading is
// what was asked for, and the others go on working.
func TestKernelCleanupParts(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node, pod, other := l.Nodes[0], l.Nodes[0].Pods[0], l.Nodes[0].Pods[1]
		dir := newDirectory(t)
		dir.write("web.yaml", append(web(l, pod), podObject("web", pod, publish(hostPort)))...)
		run := func() {
			t.Helper()
			a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--cni-conf-dir", t.TempDir(), "--host-ports", "on", "--pod-masquerade", "on")
			a.waitSynced(ctx, 0)
			a.stop()
		}
		check := func(when string, services, ports, masquerade bool) {
			t.Helper()
			for _, f := range families() {
				if got := webProbe(other, f, "tcp").Once(ctx).Outcome == lab.Answered; got != services {
					t.Errorf("%s: %s: a Service answers: %v, want %v", when, f, got, services)
				}
				if got := ask(l.Client, "tcp", node.Addr(f)).Once(ctx).Outcome == lab.Answered; got != ports {
					t.Errorf("%s: %s: a host port answers: %v, want %v", when, f, got, ports)
				}
				// From the pod itself it takes the chains that mark and masquerade, too.
				if got := ask(pod, "tcp", node.Addr(f)).Once(ctx).Outcome == lab.Answered; got != ports {
					t.Errorf("%s: %s: a host port answers its own pod: %v, want %v", when, f, got, ports)
				}
			}
			if got := masquerades(ctx, t, node, v); got != masquerade {
				t.Errorf("%s: pods are masqueraded: %v, want %v", when, got, masquerade)
			}
		}
		run()
		check("before", true, true, true)
		cleanUp(ctx, t, node, "--only=nat,portmap")
		check("without nat and portmap", true, false, false)
		run()
		cleanUp(ctx, t, node, "--only=services")
		check("without services", false, true, true)
		cleanUp(ctx, t, node, "--only=nat")
		check("with portmap alone", false, true, false)
		cleanUp(ctx, t, node, "--only=portmap")
		check("without any", false, false, false)
		if left := save(ctx, t, node, v); strings.Contains(left, "KUBE-") || strings.Contains(left, "fairlead") {
			t.Errorf("parts that were removed one after the other left:\n%s", left)
		}
		for args, want := range map[string][]string{
			"--only=hostports":           {"--only", `"hostports"`, "services, nat or portmap"},
			"--keep=ebpf":                {"--keep", `"ebpf"`, "iptables, ipvs or nftables"},
			"--keep=":                    {"--keep", `""`, "iptables, ipvs or nftables"},
			"--keep=iptables --only=nat": {"--keep", "--only", "exclude each other"},
			"--keep=nftables":            {"--keep=nftables", "no table kube-proxy", "start it first"},
		} {
			checkOneLine(t, node.Command(ctx, binary, append([]string{"cleanup"}, strings.Fields(args)...)...), want)
		}
	})
}

// TestKernelCleanupRefuses: as long as a service proxy answers on the node, nothing is
// removed unless that is asked for by --force. One in another namespace does not count.
func TestKernelCleanupRefuses(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node := l.Nodes[0]
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, node.Pods[0])...)
	a := startAgent(ctx, t, node, lab.NFT, "--manifests", dir.path)
	a.waitSynced(ctx, 0)
	before := save(ctx, t, node, lab.NFT)
	unchanged := func(when string) {
		t.Helper()
		if diff := cmp.Diff(before, save(ctx, t, node, lab.NFT)); diff != "" {
			t.Errorf("%s: what is refused has changed rules (-before +after):\n%s", when, diff)
		}
	}
	refused := func(when string, want ...string) {
		t.Helper()
		checkOneLine(t, node.Command(ctx, binary, "cleanup"), append([]string{"127.0.0.1:10256", "--force", "--keep=MODE --force"}, want...))
		unchanged(when)
	}
	refused("while the agent runs", "stop it", "answers 200")
	checkOneLine(t, node.Command(ctx, binary, "cleanup", "--keep=ipvs", "--force"), []string{"--keep=ipvs", "in another mode", fmt.Sprintf("answers %q", *proxyMode)})
	unchanged("with a mode to keep that is not the proxy's")
	a.stop()

	var mute net.Listener
	if err := node.Do(func() (err error) {
		mute, err = new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:10256")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	refused("while something listens and is silent", "does not answer")
	cleanUp(ctx, t, node, "--force")
	if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Outcome == lab.Answered {
		t.Errorf("after --force: %s", r)
	}
}

// cleanUp removes the agent's rules from a node.
func cleanUp(ctx context.Context, t *testing.T, n *lab.Node, args ...string) {
	t.Helper()
	if out, err := n.Command(ctx, binary, append([]string{"cleanup"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("cleanup %q: %v\n%s", args, err, out)
	}
}
