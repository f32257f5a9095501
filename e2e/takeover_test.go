// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// nftFamily is a family as nft spells it.
func nftFamily(f model.Family) string {
	return map[model.Family]string{model.IPv4: "ip", model.IPv6: "ip6"}[f]
}

// leaveNftables makes a node as kube-proxy's nftables mode leaves it when it is
// stopped, with a stale endpoint, and somebody else's table beside it.
func leaveNftables(ctx context.Context, t *testing.T, n *lab.Node, stale *lab.NS) {
	t.Helper()
	for _, f := range families() {
		family := nftFamily(f)
		rules := fmt.Sprintf(`
			table %s kube-proxy {
				chain nat-prerouting {
					type nat hook prerouting priority dstnat; policy accept;
					%[1]s daddr %s meta l4proto { tcp, udp } dnat to %s
				}
			}
			table %[1]s others { }`, family, vip(f, 10), stale.Addr(f))
		cmd := n.Command(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	}
}

// TestKernelNftablesLeftovers: once an agent's rules are in place, those of
// kube-proxy's nftables mode go, which would decide before them. So they do with
// a clean-up.
func TestKernelNftablesLeftovers(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
			t.Skip(err)
		}
		node, server := l.Nodes[0], l.Nodes[1].Pods[0]
		leaveNftables(ctx, t, node, l.Nodes[1].Pods[1])
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, server)...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		a.waitLog(ctx, 0, len(families()), "nftables mode")
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			if r := webProbe(node.Pods[1], f, network).Once(ctx); r.Server != server.Label {
				t.Errorf("%s, want an answer of %s", r, server.Label)
			}
		})
		checkTables(ctx, t, node, "others")
		a.stop()

		other := l.Nodes[1]
		leaveNftables(ctx, t, other, server)
		cleanUp(ctx, t, other)
		checkTables(ctx, t, other, "others")
	})
}

// checkTables checks that a node has this table of nf_tables in each family, and
// none of kube-proxy's.
func checkTables(ctx context.Context, t *testing.T, n *lab.Node, want string) {
	t.Helper()
	out, err := n.Run(ctx, "nft", "list", "tables")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families() {
		if !strings.Contains(out, "table "+nftFamily(f)+" "+want+"\n") || strings.Contains(out, "kube-proxy") {
			t.Errorf("tables on %s:\n%s", n.Label, out)
		}
	}
}
