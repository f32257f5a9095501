// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelLocalhostNodePorts: node ports answer on 127.0.0.1 if asked to, by
// a setting that is made after the rule that keeps neighbours away from the
// node's loopback, and taken back before that rule goes.
func TestKernelLocalhostNodePorts(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", exposed(l, node.Pods[0])...)
		local := lab.Probe{From: node.NS, Network: "tcp", To: netip.MustParseAddrPort("127.0.0.1:30080")}
		check := func(when, setting string, answered, rule bool) {
			t.Helper()
			if got := routeLocalnet(t, node); got != setting {
				t.Errorf("%s: route_localnet is %s, want %s", when, got, setting)
			}
			if got := local.Once(ctx).Outcome == lab.Answered; got != answered {
				t.Errorf("%s: node port on 127.0.0.1 answered: %v, want %v", when, got, answered)
			}
			text, err := node.Save(ctx, v, model.IPv4)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(text, "block incoming localnet connections"); got != rule {
				t.Errorf("%s: rule that drops neighbours' packets: %v, want %v", when, got, rule)
			}
		}
		check("before", "0", false, false)
		off := startAgent(ctx, t, node, v, "--manifests", dir.path, "--iptables-localhost-nodeports=false")
		off.waitSynced(ctx, 0)
		check("not asked for", "0", false, false)
		off.stop()
		on := startAgent(ctx, t, node, v, "--manifests", dir.path)
		on.waitSynced(ctx, 0)
		check("asked for", "1", true, true)
		on.stop()
		cleanUp(ctx, t, node)
		check("after cleanup", "0", false, false)
	})
}

// routeLocalnet reads the setting in a node.
func routeLocalnet(t *testing.T, n *lab.Node) string {
	t.Helper()
	var text []byte
	err := n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/ipv4/conf/all/route_localnet")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
