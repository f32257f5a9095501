// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// TestKernelCompact: the form of the rules changes with a restart, under
// connections that stay and a pod that reaches itself at every step; a restart
// without a change writes nothing, and a clean-up leaves no set.
func TestKernelCompact(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		pod, client := node.Pods[0], node.Pods[1]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, pod)...)
		var held []*lab.Held
		for _, step := range []struct {
			name    string
			flags   []string
			compact bool
		}{
			{"ordinary", nil, false},
			{"compact", []string{"--iptables-compact"}, true},
			{"compact again", []string{"--iptables-compact"}, true},
			{"ordinary again", nil, false},
			{"compact before the end", []string{"--iptables-compact"}, true},
		} {
			logged := newLoggedCommands(t)
			a := startAgentEnv(ctx, t, node, v, []string{logged.path()}, append([]string{iptablesMode, "--manifests", dir.path}, step.flags...)...)
			a.waitSynced(ctx, 0)
			for _, f := range families() {
				checkForm(t, node, v, f, step.name, step.compact)
				h, err := webProbe(client, f, "tcp").Hold(ctx)
				if err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				defer h.Close()
				held = append(held, h)
			}
			if wrote := logged.matching("-restore --noflush"); step.name == "compact again" && len(wrote) > 0 {
				t.Errorf("%s: the restart ran %q, want no restore", step.name, wrote)
			}
			checkHairpin(ctx, t, node, pod)
			for _, h := range held {
				if r := h.Ping(ctx); r.Outcome != lab.Answered {
					t.Errorf("%s: a connection made before: %s", step.name, r)
				}
			}
			a.stop()
		}
		if out, err := node.Run(ctx, binary, "cleanup"); err != nil {
			t.Fatalf("cleanup: %v\n%s", err, out)
		}
		if sets, err := node.Run(ctx, "ipset", "list", "-n"); err != nil || strings.Contains(sets, "LOOP-BACK") {
			t.Errorf("after a clean-up there are sets %q, %v", sets, err)
		}
	})
}

// checkForm checks which form the rules of a node have, and whether there is a set
// for it.
func checkForm(t *testing.T, n *lab.Node, v lab.Variant, f model.Family, step string, compact bool) {
	t.Helper()
	rules, err := n.Run(t.Context(), v.Tool(f, "-save"), "-t", "nat")
	if err != nil {
		t.Fatal(err)
	}
	sets, err := n.Run(t.Context(), "ipset", "list", "-n")
	if err != nil {
		t.Fatal(err)
	}
	loopBack := nat.LoopBack(f == model.IPv6)
	for what, got := range map[string]bool{
		"no chains of endpoints": !strings.Contains(rules, "KUBE-SEP-"),
		"rule with the set":      strings.Contains(rules, " "+loopBack+" dst,dst,src "),
		"set":                    strings.Contains("\n"+sets, "\n"+loopBack+"\n"),
	} {
		if got != compact {
			t.Errorf("%s, %s: %s: %t, want %t", step, f, what, got, compact)
		}
	}
}
