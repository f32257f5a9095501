// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"net/netip"
	"os"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

func TestKernelServeRange(t *testing.T) {
	l := newLab(t, lab.Config{Pods: 2})
	n := l.Nodes[0]
	server := n.Pods[0]
	echo(t, server)
	echo(t, n.Pods[1])
	if err := n.ServeRange(server, netip.MustParsePrefix("10.128.0.0/10")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from *lab.NS
		to   string
		want string
	}{
		{n.NS, "10.128.0.0", server.Label},
		{n.NS, "10.191.255.255", server.Label},
		{n.Pods[1], "10.150.1.2", server.Label},
		{n.NS, n.Pods[1].Addr(model.IPv4).String(), n.Pods[1].Label}, // it is in no such range
	} {
		p := lab.Probe{From: c.from, Network: "tcp", To: netip.AddrPortFrom(netip.MustParseAddr(c.to), port)}
		if r := p.Once(t.Context()); r.Server != c.want {
			t.Errorf("%s from %s: %s, want an answer of %s", c.to, c.from.Label, r, c.want)
		}
	}
}

// TestKernelRemoveNode: what was the node's is gone when RemoveNode returns, and
// the next node is another one.
func TestKernelRemoveNode(t *testing.T) {
	l := newLab(t, lab.Config{Pods: 1})
	old := l.Nodes[0]
	echo(t, old.Pods[0])
	if err := l.RemoveNode(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old.Path()); !os.IsNotExist(err) {
		t.Errorf("namespace of the removed node: %v, want that it does not exist", err)
	}
	next, err := l.AddNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Nodes) != 1 || l.Nodes[0] != next {
		t.Errorf("the lab has nodes %v, want the new one", l.Nodes)
	}
	if next.Label == old.Label || next.Addr(model.IPv4) == old.Addr(model.IPv4) {
		t.Errorf("the new node is %s with %s, as the old one was", next.Label, next.Addr(model.IPv4))
	}
	echo(t, next.NS)
	p := lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(next.Addr(model.IPv4), port)}
	if r := p.Once(t.Context()); r.Server != next.Label {
		t.Errorf("the client asks the new node: %s", r)
	}
}
