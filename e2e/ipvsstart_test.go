// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelIPVSAbsent: an agent that is to have IPVS mode and nothing else says in one
// line which module is missing and how to load it, and leaves rules alone; with a list
// of modes it takes the next one. One that runs goes on where its file changes to that mode.
func TestKernelIPVSAbsent(t *testing.T) {
	ctx := testContext(t)
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil {
		t.Skip("this kernel has IPVS")
	}
	l := newLab(t)
	node, v := l.Nodes[0], lab.Legacy
	if err := lab.VariantSupported(ctx, v); err != nil {
		t.Skip(err)
	}
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, node.Pods[0])...)
	checkOneLine(t, node.Command(ctx, binary, "--manifests", dir.path, "--proxy-mode", "ipvs", "--iptables-variant", string(v)),
		[]string{"--proxy-mode ipvs", "modprobe ip_vs"})
	if rules := save(ctx, t, node, v); strings.Contains(rules, "KUBE-") {
		t.Errorf("it has left rules:\n%s", rules)
	}
	a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--proxy-mode", "ipvs,iptables")
	a.waitSynced(ctx, 0)
	a.waitLog(ctx, 0, 1, "cannot have a mode that is preferred", "modprobe ip_vs")
	a.stop()

	cm := newConfigMap(t)
	cm.set("mode: iptables\n")
	a = startAgent(ctx, t, node, v, "--manifests", dir.path, "--config", cm.file())
	a.waitSynced(ctx, 0)
	from := len(a.log())
	cm.set("mode: ipvs\n") // makes sense, but not here: the agent goes on as it is
	a.waitLog(ctx, from, 1, "Refused the changed configuration", cm.file()+":4: mode ipvs: ", "modprobe ip_vs")
	if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Outcome != lab.Answered {
		t.Error(r)
	}
	if status, body := fetch(ctx, t, a, "http://127.0.0.1:10249/proxyMode"); status != 200 || body != "iptables" {
		t.Errorf("/proxyMode: got %d %s", status, body)
	}
	a.stop()
}

// ipvsState is what IPVS mode may leave besides rules.
func ipvsState(ctx context.Context, t *testing.T, n *lab.Node) string {
	t.Helper()
	var b strings.Builder
	for _, cmd := range [][]string{{"ipvsadm", "-Sn"}, {"ipset", "save"}, {"ip", "-o", "addr"}, {"ip", "-o", "link"}} {
		out, err := n.Run(ctx, cmd[0], cmd[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if !strings.Contains(line, "ipset") || !strings.Contains(line, "initval") { // hash seeds
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// TestKernelIPVSCleanup: cleanup, after agents of either mode and of one that was
// killed, leaves no device, set or virtual server of ours, and those of others as they
// were, whether these are elsewhere or in an excluded network.
func TestKernelIPVSCleanup(t *testing.T) {
	l, v := ipvsLab(t)
	ctx := testContext(t)
	node := l.Nodes[0]
	for _, cmd := range []string{
		"ipvsadm -A -t 198.51.100.7:80 -s wlc", "ipvsadm -a -t 198.51.100.7:80 -r 10.244.0.11:8080 -m -w 3",
		"ipvsadm -A -t 10.97.0.1:443 -s rr", "ipvsadm -A -u [2001:db8:5::1]:53 -s sh", "ipvsadm -A -f 7 -s rr",
		"ipset create OTHERS hash:ip", "ipset add OTHERS 192.0.2.77",
	} {
		args := strings.Fields(cmd)
		if _, err := node.Run(ctx, args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	before := ipvsState(ctx, t, node)
	dir := newDirectory(t)
	dir.write("web.yaml", exposed(l, node.Pods[0], l.Nodes[1].Pods[0])...)
	const exclude = "--ipvs-exclude-cidrs=10.97.0.0/16"
	for _, end := range []func(*agent){func(a *agent) { a.stop() }, (*agent).kill} {
		a := startAgent(ctx, t, node, v, "--proxy-mode", "ipvs", "--manifests", dir.path, exclude)
		a.waitSynced(ctx, 0)
		while := ipvsState(ctx, t, node)
		for _, want := range []string{"kube-ipvs0", "10.96.0.10:80", "KUBE-CLUSTER-IP", "198.51.100.7:80", "10.97.0.1:443", "[2001:db8:5::1]:53"} {
			if !strings.Contains(while, want) {
				t.Errorf("while the agent runs, there is no %s:\n%s", want, while)
			}
		}
		h, err := webProbe(node.Pods[1], families()[0], "tcp").Hold(ctx) // what has connections goes, too
		if err != nil {
			t.Fatal(err)
		}
		end(a)
		if out, err := node.Command(ctx, binary, "cleanup", exclude).CombinedOutput(); err != nil {
			t.Fatalf("cleanup: %v\n%s", err, out)
		}
		h.Close()
		if diff := cmp.Diff(before, ipvsState(ctx, t, node)); diff != "" {
			t.Errorf("after cleanup (-before +after):\n%s", diff)
		}
		if rules := save(ctx, t, node, v); strings.Contains(rules, "KUBE-") {
			t.Errorf("rules are left:\n%s", rules)
		}
	}
}
