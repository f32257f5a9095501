// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat/ipset"
	"fairlead/nat/nfacct"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// hostSets are the sets in a host's namespace.
type hostSets struct {
	h    *kerneltest.Host
	sets *ipset.Sets
}

var _ Sets = hostSets{}

func setsIn(h *kerneltest.Host, s kerneltest.Setup) Sets { return hostSets{h, ipset.New(s.IPv6)} }

func (s hostSets) List() (names []string, err error) {
	err = s.h.Enter(func() error { names, err = s.sets.List(); return err })
	slices.Sort(names)
	return names, err
}

func (s hostSets) Create(name string) error {
	return s.h.Enter(func() error { return s.sets.Create(name) })
}

func (s hostSets) Flush(name string) error {
	return s.h.Enter(func() error { return s.sets.Flush(name) })
}

func (s hostSets) Destroy(name string) error {
	return s.h.Enter(func() error { return s.sets.Destroy(name) })
}

// members returns the addresses in a set, with the seconds that they stay.
func members(t *testing.T, h *kerneltest.Host, set string) map[string]uint32 {
	t.Helper()
	out := map[string]uint32{}
	err := h.Enter(func() error {
		found, err := netlink.IpsetList(set)
		if err != nil {
			return err
		}
		for _, e := range found.Entries {
			out[e.IP.String()] = *e.Timeout
		}
		return nil
	})
	if err != nil {
		t.Fatalf("list set %s: %v", set, err)
	}
	return out
}

// crowd is a host with clients, endpoints and all their addresses on one
// loopback interface.
type crowd struct {
	t    *testing.T
	h    *kerneltest.Host
	cfg  RenderConfig
	port *model.ServicePort
}

// newCrowd starts a server at each of three endpoints of a UDP port with session
// affinity, which answers a request with its own address.
func newCrowd(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) *crowd {
	t.Helper()
	c := &crowd{t: t, h: h, cfg: without(v4())}
	name, vip := portName("shop", "web", "", model.UDP), "10.96.0.10"
	eps := []string{"10.244.0.1:8080", "10.244.0.2:8080", "10.244.0.3:8080"}
	h.Do("ip", "link", "set", "lo", "up")
	if s.IPv6 {
		c.cfg, vip = without(v6()), "fd00:96::a"
		eps = []string{"[fd00:244::1]:8080", "[fd00:244::2]:8080", "[fd00:244::3]:8080"}
		h.Do("ip", "-6", "route", "add", "local", "fd00::/16", "dev", "lo")
		h.Do("sh", "-c", "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind") // also to an address that a route alone makes local
	} else {
		h.Do("ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo")
	}
	c.port = with(port(name, vip, 80, eps...), affinity)
	for _, ep := range eps {
		c.serve(ep)
	}
	return c
}

func (c *crowd) serve(at string) {
	c.t.Helper()
	var conn *net.UDPConn
	err := c.h.Enter(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	go func() {
		for buf := make([]byte, 64); ; {
			_, peer, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort([]byte(at), peer) // the client notices
		}
	}()
}

func (c *crowd) client(i int) netip.Addr {
	if c.cfg.Family == model.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:c::%x", i+1))
	}
	return netip.AddrFrom4([4]byte{10, 128, byte(i >> 8), byte(i)})
}

// ask has clients from one number up to another make a connection each, and
// returns which endpoint each reached.
func (c *crowd) ask(from, to int) []string {
	c.t.Helper()
	var out []string
	err := c.h.Enter(func() error {
		for i := from; i < to; i++ {
			got, err := c.askOne(c.client(i))
			if err != nil {
				return err
			}
			out = append(out, got)
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *crowd) askOne(client netip.Addr) (string, error) {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(client, 0)),
		net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.port.ClusterIP, c.port.Port)))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// moved counts the clients that reached another endpoint than before.
func moved(before, now []string) int {
	n := 0
	for i := range before {
		if before[i] != now[i] {
			n++
		}
	}
	return n
}

// forFamilies runs a test with every variant and family that works here.
func forFamilies(t *testing.T, test func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host)) {
	for _, f := range model.Families() {
		onKernel(t, f, test)
	}
}

// manyClients is far above the 100 that a list of xt_recent has room for at
// each of three endpoints.
const manyClients = 3000

// TestKernelManyClients: with sets every client keeps its endpoint, however
// many they are and through a restart; the lists forget all but the last.
func TestKernelManyClients(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		c := newCrowd(t, s, h)
		kernelAgentWithSets(t, s, h, c.cfg).sync(c.port)
		first := c.ask(0, manyClients)
		if n := moved(first, c.ask(0, manyClients)); n > 0 {
			t.Errorf("with sets, %d of %d clients changed their endpoint, want none", n, manyClients)
		}
		checkStableAgent(t, h, kernelAgentWithSets(t, s, h, c.cfg), c.port)
		if n := moved(first, c.ask(0, manyClients)); n > 0 {
			t.Errorf("after a restart, %d of %d clients changed their endpoint, want none", n, manyClients)
		}
		kernelAgent(t, s, h, c.cfg).sync(c.port)
		first = c.ask(0, manyClients)
		if n := moved(first, c.ask(0, manyClients)); n < manyClients/3 {
			t.Errorf("with lists, %d of %d clients changed their endpoint: have the lists grown?", n, manyClients)
		}
	})
}

// TestKernelAffinityTimeout: a client is forgotten after its time, which starts
// anew with each connection. A new timeout changes the rules, and no set.
func TestKernelAffinityTimeout(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		c := newCrowd(t, s, h)
		a := kernelAgentWithSets(t, s, h, c.cfg)
		a.sync(c.port)
		set := func(ep string) string { return endpointChain(c.port.Name, netip.MustParseAddrPort(ep)) }
		left := func(i int, ep string) (uint32, bool) {
			sec, ok := members(t, h, set(ep))[c.client(i).String()]
			return sec, ok
		}
		first := c.ask(0, 30)
		for i, ep := range first {
			if sec, ok := left(i, ep); !ok || sec < 10700 || sec > 10800 {
				t.Fatalf("client %d is in the set of %s for %d s (%t), want three hours", i, ep, sec, ok)
			}
		}
		short := with(c.port, func(p *model.ServicePort) { p.AffinityTimeout = 2 * time.Second })
		a.sync(short)
		if n := moved(first, c.ask(0, 30)); n > 0 {
			t.Errorf("when the timeout changed, %d of 30 clients changed their endpoint, want none", n)
		}
		// Client 0 comes again until client 1 has been forgotten.
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			if c.ask(0, 1)[0] != first[0] {
				t.Fatal("a client that comes often changed its endpoint")
			}
			if _, ok := left(1, first[1]); !ok {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a client that does not come any more is not forgotten")
			}
		}
		if n := moved(first[1:], c.ask(1, 30)); n == 0 {
			t.Error("after the timeout, every client has its endpoint still")
		}
	})
}

// awaitSets waits until the sets are those that are wanted, and has the agent
// sync again meanwhile.
func awaitSets(t *testing.T, a *agent, sets Sets, want []string, ports ...*model.ServicePort) {
	t.Helper()
	slices.Sort(want)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got, err := sets.List()
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sets: %q, want %q", got, want)
		}
		a.sync(ports...)
	}
}

// TestKernelSetsComeAndGo: sets are there as long as rules name them, and what
// is not ours stays.
func TestKernelSetsComeAndGo(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		c, sets := newCrowd(t, s, h), setsIn(h, s)
		family := map[bool]string{false: "inet", true: "inet6"}
		leftover := endpointChain(c.port.Name, netip.MustParseAddrPort("1.2.3.4:5"))
		h.Do("ipset", "create", leftover, "hash:ip", "family", family[s.IPv6], "timeout", "600")
		foreign := []string{"KUBE-SEP-MINE", "OTHER"}
		for _, name := range foreign {
			h.Do("ipset", "create", name, "hash:ip", "family", family[s.IPv6], "timeout", "600")
		}
		other := endpointChain(c.port.Name, netip.MustParseAddrPort("1.2.3.4:6"))
		h.Do("ipset", "create", other, "hash:ip", "family", family[!s.IPv6], "timeout", "600")
		all := func(eps ...model.Endpoint) []string {
			out := slices.Clone(foreign)
			for _, ep := range eps {
				out = append(out, endpointChain(c.port.Name, ep.AddrPort))
			}
			return out
		}
		a := kernelAgentWithSets(t, s, h, c.cfg)
		a.sync(c.port)
		awaitSets(t, a, sets, all(c.port.Endpoints...), c.port)
		fewer := with(c.port, func(p *model.ServicePort) { p.Endpoints = p.Endpoints[1:] })
		a.sync(fewer)
		awaitSets(t, a, sets, all(fewer.Endpoints...), fewer)
		plain := with(c.port, func(p *model.ServicePort) { p.AffinityTimeout = 0 })
		a.sync(plain)
		awaitSets(t, a, sets, all(), plain)
		a.sync(c.port)
		awaitSets(t, a, sets, all(c.port.Endpoints...), c.port)
		snap, _ := snapshot()
		a.syncChanged(snap, []model.ServicePortName{c.port.Name})
		awaitSets(t, a, sets, all())
		a.sync(c.port)
		if _, err := a.engine.Clean(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := CleanSets(context.Background(), sets, loopsIn(h, s)); err != nil {
			t.Fatal(err)
		}
		if got, err := sets.List(); err != nil || !slices.Equal(got, foreign) {
			t.Errorf("after a clean-up, sets are %q, %v, want %q", got, err, foreign)
		}
		h.Do("ipset", "list", other)
	})
}

// TestKernelSetsHeal: who flushes the rules and destroys the sets has both back
// with the next check.
func TestKernelSetsHeal(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		c := newCrowd(t, s, h)
		a := kernelAgentWithSets(t, s, h, c.cfg)
		a.sync(c.port)
		if _, err := kernelAgent(t, s, h, c.cfg).engine.Clean(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := CleanSets(context.Background(), setsIn(h, s), loopsIn(h, s)); err != nil {
			t.Fatal(err)
		}
		snap, _ := snapshot(c.port)
		r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: snap, Node: everywhere, Prune: true, Verify: true})
		if err != nil || len(r.Refused) > 0 || len(r.Repaired) == 0 {
			t.Fatalf("Sync() = %+v, %v, want repairs", r, err)
		}
		if first := c.ask(0, 100); moved(first, c.ask(0, 100)) > 0 {
			t.Error("clients changed their endpoint")
		}
	})
}

// TestKernelProbeSets: the probe finds sets, and an iptables that cannot use
// them, and leaves nothing.
func TestKernelProbeSets(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		ctx, sets := context.Background(), setsIn(h, s)
		before := ordered(h.Save(s)).String()
		if err := ProbeSets(ctx, h, s.Commands(), sets); err != nil {
			t.Errorf("ProbeSets() = %v", err)
		}
		lacking := execFunc(func(ctx context.Context, c ruleset.Command) error {
			c.Stdin = strings.NewReader("*nat\n-A OUTPUT -m there-is-no-such-match\nCOMMIT\n")
			return h.Run(ctx, c)
		})
		var failed *ruleset.CommandError
		if err := ProbeSets(ctx, lacking, s.Commands(), sets); !errors.As(err, &failed) {
			t.Errorf("ProbeSets() where a match is missing = %v, want the command's error", err)
		}
		if got, err := sets.List(); err != nil || len(got) > 0 {
			t.Errorf("sets %q are left, %v", got, err)
		}
		if got := ordered(h.Save(s)).String(); got != before {
			t.Errorf("rules are left:\n%s", got)
		}
	})
}

// TestKernelProbeCounter: the probe finds whether rules can count, and leaves
// nothing.
func TestKernelProbeCounter(t *testing.T) {
	forFamilies(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		before := ordered(h.Save(s)).String()
		if err := h.Enter(func() error { return nfacct.Create(nfacct.InvalidDropped) }); err != nil {
			t.Fatal(err)
		}
		if err := ProbeCounter(t.Context(), h, s.Commands(), nfacct.InvalidDropped); err != nil {
			t.Errorf("ProbeCounter() = %v", err)
		}
		if err := ProbeCounter(t.Context(), h, s.Commands(), "a name that is none"); err == nil {
			t.Error("ProbeCounter() of a rule that iptables does not take = nil, want an error")
		}
		if got := ordered(h.Save(s)).String(); got != before {
			t.Errorf("rules are left:\n%s", got)
		}
	})
}

type execFunc func(ctx context.Context, c ruleset.Command) error

func (f execFunc) Run(ctx context.Context, c ruleset.Command) error { return f(ctx, c) }
