// SPDX-License-Identifier: Apache-2.0

package nodeaddr

import (
	"net/netip"
	"strings"
	"testing"

	"fairlead/e2e/lab"
)

// TestKernelAstray: an address leads somewhere by any route but the default one.
func TestKernelAstray(t *testing.T) {
	ctx := t.Context()
	if err := lab.Supported(ctx); err != nil {
		t.Skip(err)
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Pods: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	node := l.Nodes[0]
	ip := func(args string) {
		t.Helper()
		if out, err := node.Run(ctx, "ip", strings.Fields(args)...); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		for addr, why := range want {
			var got string
			if err := node.Do(func() error { got = Astray(netip.MustParseAddr(addr)); return nil }); err != nil {
				t.Fatal(err)
			}
			if got != why {
				t.Errorf("%s: %s %q, want %q", when, addr, got, why)
			}
		}
	}
	ip("route flush default")
	ip("-6 route flush default")
	check("no default route", map[string]string{
		"10.244.0.11": "", "fd00:10:244::11": "", // on a bridge
		"192.0.2.77": "", "2001:db8::77": "", // on the network of the node
		"10.244.0.1": isOwn, "fd00:10:244::1": isOwn, "192.0.2.11": isOwn, "2001:db8::11": isOwn,
		"198.51.100.9": isNowhere, "2001:db8:1::9": isNowhere,
	})
	ip("route add default via 192.0.2.100")
	ip("-6 route add default via 2001:db8::100")
	check("a default route", map[string]string{"10.244.0.11": "", "192.0.2.77": "", "198.51.100.9": isNowhere, "2001:db8:1::9": isNowhere})
	ip("route add 198.51.100.9/32 dev cni0")
	ip("-6 route add 2001:db8:1::9/128 dev cni0")
	ip("route add blackhole 198.51.100.64/26") // as Calico has for what it may give to pods
	ip("-6 route add unreachable 2001:db8:1:1::/64")
	check("routes to pods", map[string]string{
		"198.51.100.9": "", "2001:db8:1::9": "", "198.51.100.10": isNowhere, "198.51.100.65": isNowhere, "2001:db8:1:1::1": isNowhere,
	})
}
