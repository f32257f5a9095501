// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// endpointPort is where the pods answer.
const endpointPort = 8080

// fixture is a node with two pods that answer, between a client and the virtual
// IPs.
type fixture struct {
	*lab.Lab
	t      *testing.T
	family model.Family
	node   *lab.Node
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	for _, err := range []error{lab.Supported(t.Context()), lab.VariantSupported(t.Context(), lab.NFT)} {
		if errors.Is(err, lab.ErrNotSupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	l, err := lab.New(t.Context(), lab.Config{Pods: 2, ClientRoutes: []netip.Prefix{
		netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, pod := range l.Nodes[0].Pods {
		if _, err := pod.EchoPort(t.Context(), endpointPort); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range model.Families() {
		if err := l.RouteClient(l.Nodes[0], l.Nodes[0].PodCIDR(f)); err != nil {
			t.Fatal(err)
		}
	}
	fx := &fixture{Lab: l, t: t, node: l.Nodes[0]}
	for _, fx.family = range model.Families() { // nothing is tracked before a rule asks for it
		fx.rule("-A FORWARD -m conntrack --ctstate INVALID -j DROP")
	}
	return fx
}

// vip is a virtual IP with a port.
func (fx *fixture) vip(port uint16) netip.AddrPort {
	addr := netip.MustParseAddr("10.96.0.10")
	if fx.family == model.IPv6 {
		addr = netip.MustParseAddr("fd00:10:96::10")
	}
	return netip.AddrPortFrom(addr, port)
}

func (fx *fixture) endpoint(pod int) netip.AddrPort {
	return netip.AddrPortFrom(fx.node.Pods[pod-1].Addr(fx.family), endpointPort)
}

// rule adds a rule, or with -D in place of -A removes one.
func (fx *fixture) rule(format string, args ...any) {
	fx.t.Helper()
	if err := fx.node.Iptables(fx.t.Context(), lab.NFT, fx.family, strings.Fields(fmt.Sprintf(format, args...))...); err != nil {
		fx.t.Fatal(err)
	}
}

// dnat translates what is sent to a frontend; op is -A or -D.
func (fx *fixture) dnat(op, protocol string, to, endpoint netip.AddrPort) {
	fx.t.Helper()
	fx.rule("-t nat %s PREROUTING -d %s -p %s --dport %d -j DNAT --to-destination %s", op, to.Addr(), protocol, to.Port(), endpoint)
}

// client is a client with one socket.
type client struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func (fx *fixture) dial(network string, to netip.AddrPort) *client {
	fx.t.Helper()
	conn, err := fx.Client.Dial(fx.t.Context(), network, to.String())
	if err != nil {
		fx.t.Fatal(err)
	}
	fx.t.Cleanup(func() { conn.Close() })
	return &client{fx.t, conn, bufio.NewReader(conn)}
}

// source is the client's own address and port.
func (c *client) source() netip.AddrPort {
	return netip.MustParseAddrPort(c.conn.LocalAddr().String())
}

// ask sends something and returns the answer's first word; an error is the
// answer "none".
func (c *client) ask(timeout time.Duration) string {
	c.t.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.conn.Write([]byte("hello\n")); err != nil {
		return "none"
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "none"
	}
	server, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	return server
}

const (
	answering = 5 * time.Second
	silent    = 100 * time.Millisecond
)

// want checks who answers.
func (c *client) want(when, server string) {
	c.t.Helper()
	timeout := answering
	if server == "none" {
		timeout = silent
	}
	if got := c.ask(timeout); got != server {
		c.t.Errorf("%s: got an answer of %s, want %s", when, got, server)
	}
}

// flows returns the UDP flows that the node has, by the client's address.
func (fx *fixture) flows() map[netip.AddrPort]Flow {
	fx.t.Helper()
	out := map[netip.AddrPort]Flow{}
	err := fx.node.Do(func() error {
		return Netlink{}.Flows(fx.t.Context(), fx.family, func(f Flow) bool {
			out[f.Src] = f
			return true
		})
	})
	if err != nil {
		fx.t.Fatal(err)
	}
	return out
}

// reconcile reconciles, and checks how many flows that cuts.
func (fx *fixture) reconcile(tab *Table, want int) {
	fx.t.Helper()
	r := New(Config{Family: fx.family, Kernel: Netlink{}, Metrics: NewMetrics(prometheus.NewRegistry(), model.Families())})
	var cut int
	err := fx.node.Do(func() (err error) { cut, err = r.Reconcile(fx.t.Context(), tab); return err })
	if cut != want || err != nil {
		fx.t.Errorf("got %d flows cut, error %v, want %d", cut, err, want)
	}
}

// bystanders are flows that nothing may happen to: straight to a pod, by
// somebody else's rule, to a port of another address, and TCP of a frontend.
func (fx *fixture) bystanders(frontend netip.AddrPort) (check func()) {
	fx.t.Helper()
	foreign := fx.vip(7000)
	fx.dnat("-A", "udp", foreign, fx.endpoint(1))
	fx.dnat("-A", "tcp", frontend, fx.endpoint(1))
	straight, others, tcp := fx.dial("udp", fx.endpoint(2)), fx.dial("udp", foreign), fx.dial("tcp", frontend)
	straight.want("straight to a pod", "node-1-pod-2")
	others.want("by a foreign rule", "node-1-pod-1")
	tcp.want("over TCP", "node-1-pod-1")
	before := fx.flows()
	return func() {
		fx.t.Helper()
		after := fx.flows()
		for name, c := range map[string]*client{"straight to a pod": straight, "by a foreign rule": others} {
			if f, ok := after[c.source()]; !ok || f != before[c.source()] {
				fx.t.Errorf("flow %s: got %v, want it untouched: %v", name, f, before[c.source()])
			}
		}
		// The greeting was the first line; now comes what was sent.
		tcp.want("over TCP, afterwards", "hello")
	}
}

// TestKernelReconcile: of real flows exactly the stale ones are cut, and their
// clients move on with the socket that they have.
func TestKernelReconcile(t *testing.T) {
	fx := newFixture(t)
	for _, f := range model.Families() {
		t.Run(f.String(), func(t *testing.T) {
			fx := &fixture{Lab: fx.Lab, node: fx.node, family: f, t: t}
			check := fx.bystanders(fx.vip(6000))
			for i, tt := range []struct {
				name string
				run  func(fx *fixture, port uint16)
			}{
				{"endpoint removed", endpointRemoved},
				{"scaled to zero", scaledToZero},
				{"Service deleted", serviceDeleted},
				{"Service deleted while the agent was down", serviceDeletedUnseen},
				{"node port", nodePort},
				{"never translated", neverTranslated},
				{"in a zone", inZone},
			} {
				t.Run(tt.name, func(t *testing.T) {
					fx := *fx
					fx.t = t
					tt.run(&fx, uint16(6000+i))
				})
			}
			check()
		})
	}
}

func frontendOf(at netip.AddrPort) []Frontend { return []Frontend{{at.Addr(), at.Port()}} }

func endpointRemoved(fx *fixture, port uint16) {
	vip, tab := fx.vip(port), NewTable()
	fx.dnat("-A", "udp", vip, fx.endpoint(1))
	tab.Set("x", frontendOf(vip), []netip.AddrPort{fx.endpoint(1)})
	c := fx.dial("udp", vip)
	c.want("at first", "node-1-pod-1")
	fx.reconcile(tab, 0)

	fx.dnat("-D", "udp", vip, fx.endpoint(1))
	fx.dnat("-A", "udp", vip, fx.endpoint(2))
	tab.Set("x", frontendOf(vip), []netip.AddrPort{fx.endpoint(2)})
	c.want("after the rules have changed", "node-1-pod-1")
	fx.reconcile(tab, 1)
	c.want("after the flow was cut", "node-1-pod-2")
	tab.Recheck()
	fx.reconcile(tab, 0)
}

func scaledToZero(fx *fixture, port uint16) {
	vip, tab := fx.vip(port), NewTable()
	fx.dnat("-A", "udp", vip, fx.endpoint(1))
	tab.Set("x", frontendOf(vip), []netip.AddrPort{fx.endpoint(1)})
	c := fx.dial("udp", vip)
	c.want("at first", "node-1-pod-1")

	fx.rule("-A FORWARD -d %s -p udp --dport %d -m conntrack --ctstate NEW -j REJECT", vip.Addr(), port)
	fx.dnat("-D", "udp", vip, fx.endpoint(1))
	tab.Set("x", frontendOf(vip), nil)
	c.want("after the rules have changed", "node-1-pod-1")
	fx.reconcile(tab, 1)
	c.want("after the flow was cut", "none")

	fx.dnat("-A", "udp", vip, fx.endpoint(2))
	tab.Set("x", frontendOf(vip), []netip.AddrPort{fx.endpoint(2)})
	fx.reconcile(tab, 0)
	fx.dial("udp", vip).want("after there is an endpoint again", "node-1-pod-2")
}

func serviceDeleted(fx *fixture, port uint16) {
	vip, tab := fx.vip(port), NewTable()
	fx.dnat("-A", "udp", vip, fx.endpoint(1))
	tab.Set("x", frontendOf(vip), []netip.AddrPort{fx.endpoint(1)})
	c := fx.dial("udp", vip)
	c.want("at first", "node-1-pod-1")
	fx.reconcile(tab, 0)

	fx.dnat("-D", "udp", vip, fx.endpoint(1))
	tab.Set("x", nil, nil)
	c.want("after the rules have changed", "node-1-pod-1")
	fx.reconcile(tab, 1)
	c.want("after the flow was cut", "none")
	tab.Adopt(frontendOf(vip)...)
	fx.reconcile(tab, 0) // what goes nowhere now is not ours to cut
}

func serviceDeletedUnseen(fx *fixture, port uint16) {
	vip, tab := fx.vip(port), NewTable()
	fx.dnat("-A", "udp", vip, fx.endpoint(1))
	c := fx.dial("udp", vip)
	c.want("at first", "node-1-pod-1")
	fx.dnat("-D", "udp", vip, fx.endpoint(1))
	tab.Adopt(frontendOf(vip)...)
	fx.reconcile(tab, 1)
	c.want("after the flow was cut", "none")
}

func nodePort(fx *fixture, port uint16) {
	tab := NewTable()
	node := netip.AddrPortFrom(fx.node.Addr(fx.family), port)
	elsewhere := fx.vip(port) // the port alone is the same
	for _, to := range []netip.AddrPort{node, elsewhere} {
		fx.dnat("-A", "udp", to, fx.endpoint(1))
	}
	tab.SetNodeAddrs([]netip.Addr{node.Addr()})
	tab.Set("x", []Frontend{{Port: port}}, []netip.AddrPort{fx.endpoint(1)})
	c, other := fx.dial("udp", node), fx.dial("udp", elsewhere)
	c.want("at first", "node-1-pod-1")
	other.want("elsewhere, at first", "node-1-pod-1")
	before := fx.flows()[other.source()]
	fx.reconcile(tab, 0)

	fx.dnat("-D", "udp", node, fx.endpoint(1))
	fx.dnat("-A", "udp", node, fx.endpoint(2))
	tab.Set("x", []Frontend{{Port: port}}, []netip.AddrPort{fx.endpoint(2)})
	fx.reconcile(tab, 1)
	c.want("after the flow was cut", "node-1-pod-2")
	fx.dnat("-D", "udp", node, fx.endpoint(2))
	tab.Set("x", nil, nil)
	fx.reconcile(tab, 1)
	if after := fx.flows()[other.source()]; after != before {
		fx.t.Errorf("flow to the port of another address: got %v, want it untouched: %v", after, before)
	}
}

func neverTranslated(fx *fixture, port uint16) {
	vip, tab := fx.vip(port), NewTable()
	tab.Set("x", frontendOf(vip), nil)
	c := fx.dial("udp", vip)
	c.want("at first", "none")
	fx.reconcile(tab, 0)

	fx.dnat("-A", "udp", vip, fx.endpoint(1))
	tab.Set("x", frontendOf(vip), []netip.AddrPort{fx.endpoint(1)})
	c.want("after the rules have changed", "none")
	fx.reconcile(tab, 1)
	c.want("after the flow was cut", "node-1-pod-1")
}

// inZone: flows in zones, of whichever direction, are found by the kernel.
func inZone(fx *fixture, port uint16) {
	vip, tab := fx.vip(port), NewTable()
	for _, zone := range []struct{ requests, answers string }{
		{"--zone 7", "--zone 7"}, {"--zone-orig 8", ""}, {"--zone-reply 9", "--zone 9"},
	} {
		rules := []string{fmt.Sprintf("PREROUTING -d %s -p udp --dport %d -j CT %s", vip.Addr(), port, zone.requests)}
		if zone.answers != "" {
			rules = append(rules, fmt.Sprintf("PREROUTING -s %s -p udp --sport %d -j CT %s", fx.endpoint(1).Addr(), endpointPort, zone.answers))
		}
		for _, r := range rules {
			fx.rule("-t raw -A %s", r)
		}
		fx.dnat("-A", "udp", vip, fx.endpoint(1))
		c := fx.dial("udp", vip)
		c.want(zone.requests, "node-1-pod-1")
		if f := fx.flows()[c.source()]; !f.Ref.inZone() {
			fx.t.Errorf("%s: got %+v, want it in the zone", zone.requests, f)
		}
		fx.dnat("-D", "udp", vip, fx.endpoint(1))
		tab.Adopt(frontendOf(vip)...)
		fx.reconcile(tab, 1)
		if _, still := fx.flows()[c.source()]; still {
			fx.t.Errorf("%s: still there", zone.requests)
		}
		for _, r := range rules {
			fx.rule("-t raw -D %s", r)
		}
	}
}

// TestKernelDelete: a flow that has taken the place of another is not deleted
// in its stead.
func TestKernelDelete(t *testing.T) {
	fx := newFixture(t)
	fx.family = model.IPv4
	vip := fx.vip(6000)
	fx.dnat("-A", "udp", vip, fx.endpoint(1))
	c := fx.dial("udp", vip)
	c.want("at first", "node-1-pod-1")
	first := fx.flows()[c.source()]
	fx.delete(first, 1)
	fx.dnat("-D", "udp", vip, fx.endpoint(1))
	fx.dnat("-A", "udp", vip, fx.endpoint(2))
	c.want("afterwards", "node-1-pod-2")
	fx.delete(first, 0)
	second, ok := fx.flows()[c.source()]
	if !ok || second.ReplySrc != fx.endpoint(2) {
		t.Errorf("got %v, %t, want a flow to the other endpoint", second, ok)
	}
	fx.delete(second, 1)
}

// delete deletes a flow, and checks how many that are.
func (fx *fixture) delete(f Flow, want int) {
	fx.t.Helper()
	var n int
	err := fx.node.Do(func() (err error) {
		n, err = Netlink{}.Delete(fx.t.Context(), fx.family, []Flow{f})
		return err
	})
	if n != want || err != nil {
		fx.t.Errorf("got %d flows deleted, error %v, want %d", n, err, want)
	}
}

// TestKernelFilter: what is read is the same where the kernel leaves out what is
// not UDP and where it does not.
func TestKernelFilter(t *testing.T) {
	fx := newFixture(t)
	for _, f := range model.Families() {
		fx.family = f
		fx.dial("udp", fx.endpoint(1)).want("UDP", "node-1-pod-1")
		fx.dial("tcp", fx.endpoint(1)).want("TCP", "node-1-pod-1")
	}
	for _, f := range model.Families() {
		got := map[bool]map[netip.AddrPort]bool{}
		err := fx.node.Do(func() error {
			return withSocket(func(s *socket) error {
				for _, filtered := range []bool{true, false} {
					seen := map[netip.AddrPort]bool{}
					got[filtered] = seen
					err := s.dump(t.Context(), f, func(f Flow) bool { seen[f.Src] = true; return true }, filtered)
					if err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got[false], got[true], cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || len(got[true]) == 0 {
			t.Errorf("%s: got %v, -unfiltered +filtered:\n%s", f, got[true], diff)
		}
	}
}
