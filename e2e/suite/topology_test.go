// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// The ports of every Service and endpoint of the suite. TCP and UDP share them.
const (
	servicePort = 80
	// otherPort is one that the Service "web" does not have.
	otherPort       = 81
	targetPort      = 8080
	nodePortNumber  = 30080
	healthCheckPort = 30090

	clusterCIDR  = "10.244.0.0/16,fd00:10:244::/48"
	serviceCIDRs = "10.96.0.0/16,fd00:10:96::/112"
	podsPerNode  = 3
	zoneLabel    = "topology.kubernetes.io/zone"
)

// outside is who answers what leaves a node untranslated.
const outside = "outside"

// The last parts of virtual IPs: cluster IPs and external ones are numbered the
// same way in both families.
const (
	webHost    = 10
	thiefHost  = 11
	markerHost = 30
	idleHost   = 40 // and the next
	publicHost = 20 // an external IP; load balancers have that of their Service
	heldHost   = 21 // a load balancer's, which node-1 has itself
)

// clusterAddr is the cluster IP of that number, publicAddr an address outside
// of all networks of the lab.
func clusterAddr(f model.Family, host int) netip.Addr {
	return numbered(f, "10.96.0.%d", "fd00:10:96::%d", host)
}
func publicAddr(f model.Family, host int) netip.Addr {
	return numbered(f, "203.0.113.%d", "2001:db8:f::%d", host)
}

func numbered(f model.Family, v4, v6 string, host int) netip.Addr {
	if f == model.IPv4 {
		return netip.MustParseAddr(fmt.Sprintf(v4, host))
	}
	return netip.MustParseAddr(fmt.Sprintf(v6, host))
}

// topology is a lab with everything that answers in it. The client reaches
// virtual IPs by node-1.
type topology struct {
	lab *lab.Lab
	// hosts are the nodes, their pods and the client by label.
	hosts map[string]*lab.NS
	// names tell what endpoints can see: the addresses in symbolic terms.
	names map[netip.Addr]string
	// ports are the source ports of each host for each kind of flow, and direct those
	// of nodes that ask another one at its own address, if these are others.
	ports, direct map[string]map[flow]*lab.Ports
}

// portsOf returns the source ports of a host's requests to an address. They do not soon
// recur: IPVS knows a flow by client and endpoint alone, and would take an answer that
// a node forwards, of a flow that another node has translated, for one of a flow of its
// own, if that had the same client and port. What a node masquerades has its address,
// too, and a port that the kernel chooses (nf_nat_core.c): from 1 to 511 for ports below
// 512, from 600 to 1023 for those from 512 on, and from 1024 on for others. So what a
// node sends to another one as it is has the ports between 511 and 600, of no server.
func (topo *topology) portsOf(from string, f flow, to netip.Addr) *lab.Ports {
	if name, ok := topo.names[to]; ok && !strings.HasPrefix(name, from) && topo.direct[from] != nil {
		return topo.direct[from][f]
	}
	return topo.ports[from][f]
}

// keepApart has requests between nodes come from ports that neither masquerades to, for
// IPVS. There are few of these.
func (topo *topology) keepApart() {
	for _, n := range topo.lab.Nodes {
		topo.direct[n.Label] = portsFrom(512, 599)
	}
}

// portsFrom are source ports for each kind of flow.
func portsFrom(first, last uint16) map[flow]*lab.Ports {
	out := map[flow]*lab.Ports{}
	for _, f := range model.Families() {
		for _, network := range []string{"tcp", "udp"} {
			out[flow{family: f, network: network}] = lab.NewPorts(first, last)
		}
	}
	return out
}

func labConfig() lab.Config {
	return lab.Config{Nodes: 2, Pods: podsPerNode, ClientRoutes: []netip.Prefix{
		netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
		netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:f::/64"),
	}}
}

// topologyOf knows the hosts of a lab, in which nothing answers yet.
func topologyOf(l *lab.Lab) *topology {
	topo := &topology{
		lab: l, hosts: map[string]*lab.NS{}, names: map[netip.Addr]string{},
		ports: map[string]map[flow]*lab.Ports{}, direct: map[string]map[flow]*lab.Ports{},
	}
	add := func(ns *lab.NS) {
		topo.hosts[ns.Label] = ns
		topo.ports[ns.Label] = portsFrom(11000, 29999) // of no server, and not the kernel's own choice
		for _, f := range model.Families() {
			topo.names[ns.Addr(f)] = ns.Label
		}
	}
	add(l.Client)
	for _, n := range l.Nodes {
		add(n.NS)
		for _, f := range model.Families() {
			topo.names[bridgeAddr(n, f)] = n.Label + " bridge"
		}
		for _, pod := range n.Pods {
			add(pod)
		}
	}
	return topo
}

// newTopology builds the lab: echo servers on the target port of each pod and
// each node, and outside on the addresses of the Services.
func newTopology(ctx context.Context) (*topology, error) {
	l, err := lab.New(ctx, labConfig())
	if err != nil {
		return nil, err
	}
	topo := topologyOf(l)
	if err := topo.furnish(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return topo, nil
}

func (topo *topology) furnish(ctx context.Context) error {
	for _, n := range topo.lab.Nodes {
		if err := topo.furnishNode(ctx, n); err != nil {
			return err
		}
	}
	var away []netip.Addr
	for _, f := range model.Families() {
		held := publicAddr(f, heldHost)
		if err := topo.hosts["node-1"].AddAddr("cni0", netip.PrefixFrom(held, held.BitLen())); err != nil {
			return err
		}
		away = append(away, clusterAddr(f, webHost), publicAddr(f, webHost), publicAddr(f, publicHost),
			clusterAddr(f, markerHost), clusterAddr(f, idleHost), clusterAddr(f, idleHost+1))
	}
	return topo.lab.AddOutside(ctx, outside, away, servicePort, otherPort)
}

func (topo *topology) furnishNode(ctx context.Context, n *lab.Node) error {
	for _, f := range model.Families() {
		// The client would ask its gateway for the pods of a node, too.
		if err := topo.lab.RouteClient(n, n.PodCIDR(f)); err != nil {
			return err
		}
		// On one address, as the answer of a UDP server on all may come from
		// another one than was asked.
		if _, err := n.Echo(ctx, n.Label, netip.AddrPortFrom(n.Addr(f), targetPort)); err != nil {
			return err
		}
	}
	for _, pod := range n.Pods {
		if _, err := pod.EchoPort(ctx, targetPort); err != nil {
			return err
		}
	}
	return nil
}

// bridgeAddr is the node's address towards its pods.
func bridgeAddr(n *lab.Node, f model.Family) netip.Addr { return n.PodCIDR(f).Addr().Next() }

// addrs are the addresses that a node has, those of loopback apart.
func addrs(n *lab.Node, f model.Family) []netip.Addr {
	out := []netip.Addr{n.Addr(f), bridgeAddr(n, f)}
	if n.Label == "node-1" {
		out = append(out, publicAddr(f, heldHost))
	}
	return out
}

// name returns an address in symbolic terms.
func (topo *topology) name(a netip.Addr) string {
	if name, ok := topo.names[a]; ok {
		return name
	}
	return a.String()
}

// nodeOf returns the name of the node that a pod or a node itself is on.
func nodeOf(label string) string { return label[:len("node-1")] }

// zoneOf returns the zone of a node: zone-1, zone-2.
func zoneOf(node string) string { return "zone" + node[len("node"):] }

// forget makes all nodes forget their connections.
func (topo *topology) forget() error {
	var errs []error
	for _, n := range topo.lab.Nodes {
		errs = append(errs, n.FlushConntrack())
	}
	return errors.Join(errs...)
}

// onNodes calls fn for each family on each node, all at once.
func (topo *topology) onNodes(ctx context.Context, fn func(ctx context.Context, n *lab.Node, f model.Family) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range topo.lab.Nodes {
		for _, f := range model.Families() {
			g.Go(func() error { return fn(ctx, n, f) })
		}
	}
	return g.Wait()
}
