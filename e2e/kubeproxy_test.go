// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fairlead/e2e/lab"
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

// TestKernelKubeProxy: from kube-proxy to the agent, in another mode or in its own, and but
// for nftables mode back to kube-proxy, not one request of clients that do not retry fails,
// and connections go on.
func TestKernelKubeProxy(t *testing.T) {
	for _, c := range []struct {
		mode string // kube-proxy's
		ours []string
		back bool
	}{
		{"iptables", []string{"nftables", "iptables"}, true},
		// Back to that, tables have to be removed (docs/migrate.md).
		{"nftables", []string{"nftables", "iptables"}, false},
		{"ipvs", []string{"iptables", "ipvs"}, true},
	} {
		t.Run(c.mode, func(t *testing.T) {
			binary := kubeProxyBinary(t)
			l, v := labFor(t, c.mode)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // kube-proxy has to come up beside the clients
			defer cancel()
			node := l.Nodes[0]
			cl, kubeconfig := startCluster(ctx, t, l)
			create(ctx, t, cl.Clientset(), append(web(l, node.Pods[0], l.Nodes[1].Pods[0]), nodeObject(node))...)
			dir := t.TempDir()
			if err := v.Link(dir); err != nil {
				t.Fatal(err)
			}
			startTheirs := func() *agent {
				cmd := node.Command(ctx, binary, "-v=4", "--proxy-mode", c.mode, "--kubeconfig", kubeconfig,
					"--hostname-override", node.Label, "--cluster-cidr", clusterCIDR, "--oom-score-adj=0",
					// Limits of the machine's kernel are not for a lab to change.
					"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
				cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
				k := startProxy(t, node, cmd)
				k.waitLog(ctx, 0, len(families()), "yncProxyRules complete")
				return k
			}
			proxy := startTheirs()
			clients := []*lab.NS{node.Pods[1], node.NS, l.Client}
			lines, requests := talk(ctx, t, 1, clients...), startCrowd(ctx, clients, 6, patience)
			defer requests.stop()
			check := func(when string) {
				t.Helper()
				requests.check(t, when)
				lines.check(t, when)
			}
			check("kube-proxy")
			for _, mode := range c.ours {
				proxy.kill() // kube-proxy leaves its rules in any case
				proxy = startAgent(ctx, t, node, v, "--proxy-mode", mode, "--kubeconfig", kubeconfig)
				proxy.waitSynced(ctx, 0)
				check("to " + mode)
			}
			if c.back {
				proxy.stop()
				startTheirs()
				check("back to kube-proxy")
			}
		})
	}
}

// labFor is a lab in a kernel that has a mode, and the variant of iptables there.
func labFor(t *testing.T, mode string) (*lab.Lab, lab.Variant) {
	t.Helper()
	if mode == "ipvs" {
		return ipvsLab(t)
	}
	if err := lab.VariantSupported(testContext(t), lab.NFT); err != nil {
		t.Skip(err)
	}
	return newLab(t), lab.NFT
}
