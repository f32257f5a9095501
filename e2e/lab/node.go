// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// The outside network: the last parts of the addresses on it, written the same
// way in both families.
const (
	discardPort  = 9
	gatewayHost  = 1
	firstHost    = 11 // node-1, and the first pod of a pod CIDR
	clientHost   = 100
	maxNodes     = clientHost - firstHost
	maxPods      = 200
	lanBridge    = "lan0"
	podBridge    = "cni0"
	outsideBits4 = 24
	outsideBits6 = 64
)

// Node is a namespace that forwards: it has pods behind a bridge, cni0, and an
// address on the outside network on eth0.
type Node struct {
	*NS
	// Pods are the node's pods in order. Each reaches the world by eth0.
	Pods []*NS

	lab    *Lab
	index  int
	routed bool // pods route to each other through the node's network layer
}

// LANAddr is the address on the outside network whose last part is host.
func LANAddr(f model.Family, host int) netip.Addr {
	if f == model.IPv4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(host)})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", host))
}

// PodCIDR is the node's pod CIDR of a family.
func (n *Node) PodCIDR(f model.Family) netip.Prefix {
	return netip.PrefixFrom(n.podAddr(f, 0), outsideBits(f)).Masked()
}

func (n *Node) podAddr(f model.Family, host int) netip.Addr {
	if f == model.IPv4 {
		return netip.AddrFrom4([4]byte{10, 244, byte(n.index), byte(host)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%x::%d", n.index, host))
}

func outsideBits(f model.Family) int {
	if f == model.IPv4 {
		return outsideBits4
	}
	return outsideBits6
}

// addLAN makes the switch that connects nodes and client. Its own address is
// everybody's default gateway, and as it does not forward, a dead end.
func (l *Lab) addLAN(ctx context.Context) error {
	l.lan = plan("lan", func(f model.Family) netip.Addr { return LANAddr(f, gatewayHost) })
	if err := l.create(ctx, l.lan); err != nil {
		return err
	}
	if err := l.lan.setSysctls(loudSysctls); err != nil {
		return err
	}
	if err := l.lan.addGateway(lanBridge, l.lan.Addr); err != nil {
		return err
	}
	return l.lan.addBlackhole()
}

// addGateway makes a bridge with an address in each family.
func (ns *NS) addGateway(bridge string, addr func(model.Family) netip.Addr) error {
	if err := ns.addBridge(bridge, addr(model.IPv4)); err != nil {
		return err
	}
	for _, f := range model.Families() {
		if err := ns.AddAddr(bridge, netip.PrefixFrom(addr(f), outsideBits(f))); err != nil {
			return err
		}
	}
	return ns.setUp(bridge)
}

// addHost makes a namespace and connects it to the outside network.
func (l *Lab) addHost(ctx context.Context, ns *NS) error {
	if err := l.create(ctx, ns); err != nil {
		return err
	}
	if err := l.lan.plug(lanBridge, ns.Label, ns); err != nil {
		return err
	}
	for _, f := range model.Families() {
		if err := ns.connect(ctx, outsideBits(f), l.lan.Addr(f)); err != nil {
			return err
		}
	}
	return nil
}

// connect gives eth0 its address of the gateway's family and the default route,
// and waits until it reaches the gateway: the kernel discards packets for some
// milliseconds after a link has come up. That nothing listens there is the answer
// it waits for.
func (ns *NS) connect(ctx context.Context, bits int, gateway netip.Addr) error {
	addr := ns.Addr(familyOf(gateway))
	if err := ns.AddAddr("eth0", netip.PrefixFrom(addr, bits)); err != nil {
		return err
	}
	any4or6 := netip.PrefixFrom(addr, 0).Masked()
	if err := ns.addRoute(any4or6, gateway); err != nil {
		return err
	}
	p := Probe{From: ns, Network: "udp", To: netip.AddrPortFrom(gateway, discardPort)}
	_, err := p.WaitUntil(ctx, Refused)
	return err
}

// AddNode adds a node, and routes between its pods and those of the others.
func (l *Lab) AddNode(ctx context.Context) (*Node, error) {
	n := l.planNode()
	if n.index >= maxNodes {
		return nil, fmt.Errorf("add node: at most %d are possible", maxNodes)
	}
	if err := l.addHost(ctx, n.NS); err != nil {
		return nil, err
	}
	if err := n.setSysctls(slices.Concat(loudSysctls, nodeSysctls)); err != nil {
		return nil, err
	}
	gateway := func(f model.Family) netip.Addr { return n.podAddr(f, gatewayHost) }
	if err := n.addGateway(podBridge, gateway); err != nil {
		return nil, err
	}
	filtered, err := n.bridgeNetfilter()
	if err != nil {
		return nil, err
	}
	n.routed = !filtered
	for _, other := range l.Nodes {
		if err := routeBetween(n, other); err != nil {
			return nil, err
		}
	}
	l.Nodes = append(l.Nodes, n)
	return n, nil
}

func routeBetween(a, b *Node) error {
	for _, f := range model.Families() {
		if err := a.addRoute(b.PodCIDR(f), b.Addr(f)); err != nil {
			return err
		}
		if err := b.addRoute(a.PodCIDR(f), a.Addr(f)); err != nil {
			return err
		}
	}
	return nil
}

// AddPod adds a pod to the node. Where the kernel shows bridged packets to
// iptables, pods are neighbours on the bridge. Elsewhere an answer from one pod
// to another would bypass the rules that its request went through, so there
// each pod knows only the node, which then routes between them.
func (n *Node) AddPod(ctx context.Context) (*NS, error) {
	number := len(n.Pods) + 1
	if number > maxPods {
		return nil, fmt.Errorf("add pod to %s: at most %d are possible", n.Label, maxPods)
	}
	pod := n.planPod()
	if err := n.lab.create(ctx, pod); err != nil {
		return nil, err
	}
	if err := n.plug(podBridge, fmt.Sprintf("pod-%d", number), pod); err != nil {
		return nil, err
	}
	for _, f := range model.Families() {
		bits := outsideBits(f)
		if n.routed {
			bits = pod.Addr(f).BitLen()
		}
		if err := pod.connect(ctx, bits, n.podAddr(f, gatewayHost)); err != nil {
			return nil, err
		}
	}
	n.Pods = append(n.Pods, pod)
	return pod, nil
}
