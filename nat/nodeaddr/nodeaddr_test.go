// SPDX-License-Identifier: Apache-2.0

package nodeaddr

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// TestKernelWatch: addresses that come and go are seen as they do.
func TestKernelWatch(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := lab.Supported(ctx); err != nil {
		t.Skip(err)
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	node := l.Nodes[0]

	seen := make(chan Addrs, 64)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() {
		ended <- node.Do(func() error { return Watch(watching, "cni0", func(a Addrs) { seen <- a }) })
	}()
	extra := netip.MustParsePrefix("198.51.100.7/32")
	await := func(what string, want bool) {
		t.Helper()
		for {
			select {
			case addrs := <-seen:
				if slices.Contains(addrs.Addrs, extra.Addr()) == want && slices.Contains(addrs.Addrs, netip.MustParseAddr("192.0.2.11")) {
					checkLinks(t, addrs.Links)
					return
				}
			case <-ctx.Done():
				t.Fatalf("%s: not seen", what)
			}
		}
	}
	await("at start", false)
	if err := node.AddAddr("eth0", extra); err != nil {
		t.Fatal(err)
	}
	await("added", true)
	if err := node.DelAddr("eth0", extra); err != nil {
		t.Fatal(err)
	}
	await("removed", false)
	// Those of the interface to leave out are neither listed nor awaited.
	if err := node.AddAddr("cni0", extra); err != nil {
		t.Fatal(err)
	}
	other := netip.MustParsePrefix("198.51.100.8/32")
	if err := node.AddAddr("eth0", other); err != nil {
		t.Fatal(err)
	}
	for a := range seen {
		addrs := a.Addrs
		if slices.Contains(addrs, extra.Addr()) || slices.ContainsFunc(addrs, netip.MustParsePrefix("10.244.0.0/16").Contains) {
			t.Fatalf("got %v, with addresses of the interface to leave out", addrs)
		}
		if slices.Contains(addrs, other.Addr()) {
			break
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// checkLinks checks that links are the lab's, none of a single address and none of the
// interface to leave out.
func checkLinks(t *testing.T, links []netip.Prefix) {
	t.Helper()
	var got []string
	for _, l := range links {
		got = append(got, l.String())
	}
	if want := "192.0.2.0/24 2001:db8::/64"; strings.Join(got, " ") != want {
		t.Errorf("links %v, want %s", got, want)
	}
}
