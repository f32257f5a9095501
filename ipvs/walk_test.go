// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/idiom"
	rulesfake "fairlead/iptables/ruleset/fake"
	"fairlead/ipvs/drain"
	"fairlead/ipvs/servers"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// -seed repeats one random walk.
var seed = flag.Uint64("seed", 0, "seed of the random walk; 0 for a few fixed ones")

// TestWalk: after any sequence of snapshots, restarts, connections and failing calls
// of the kernel, what is left once all has drained is what an agent makes that knows
// only the last snapshot.
func TestWalk(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	for _, s := range seeds {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			w := newWalk(t, s)
			for w.step = 0; w.step < 400 && !t.Failed(); w.step++ {
				w.next()
			}
			if t.Failed() {
				t.Logf("repeat with: go test -run '^TestWalk$' ./ipvs -seed=%d", s)
			}
		})
	}
}

// walk is an agent to which random things happen.
type walk struct {
	t     *testing.T
	rng   *rand.Rand
	cfg   Config
	host  *host
	agent *agent
	snap  *model.Snapshot
	// changed are the names that no Sync that succeeded has carried.
	changed map[model.ServicePortName]bool
	faulty  bool
	step    int
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 0)), snap: model.NewSnapshot(), changed: map[model.ServicePortName]bool{}, faulty: true}
	w.cfg = config(model.Families()[seed%2])
	if seed%3 == 0 {
		w.cfg.PodCIDRs = nil
	}
	w.host = newHost(w.cfg.Family)
	fault := func(string) error {
		if w.faulty && w.rng.IntN(60) == 0 {
			return errors.New("injected failure")
		}
		return nil
	}
	w.host.servers.Fault, w.host.device.Fault, w.host.sets.Fault = fault, fault, fault
	w.host.rules.Fault = func() rulesfake.Fault {
		if w.faulty && w.rng.IntN(8) == 0 {
			return []rulesfake.Fault{rulesfake.FailBefore, rulesfake.FailBetween, rulesfake.FailAfter, rulesfake.Busy}[w.rng.IntN(4)]
		}
		return rulesfake.NoFault
	}
	w.agent = w.host.agent(t, w.cfg)
	return w
}

func (w *walk) next() {
	for range w.rng.IntN(4) {
		w.change()
	}
	if w.rng.IntN(15) == 0 {
		w.restart()
	}
	if w.rng.IntN(10) == 0 {
		w.agent.where = w.node()
	}
	w.connect()
	w.host.now = w.host.now.Add(time.Duration(w.rng.IntN(120)) * time.Second)
	d := w.desired()
	d.Prune, d.Verify, d.Settle = w.rng.IntN(6) > 0, w.rng.IntN(10) == 0, w.rng.IntN(4) == 0
	r, err := w.agent.Sync(context.Background(), d)
	if err != nil {
		return
	}
	w.check(d)
	if len(r.Refused) == 0 {
		clear(w.changed)
	}
	if w.rng.IntN(8) == 0 {
		w.settle()
	}
}

func (w *walk) desired() proxier.Desired {
	return proxier.Desired{
		Snapshot: w.snap, Node: w.agent.where, Prune: true,
		Changed: slices.SortedFunc(maps.Keys(w.changed), model.ServicePortName.Compare),
	}
}

// check holds a Sync that succeeded to what it has said: every endpoint of a Service
// takes connections.
func (w *walk) check(d proxier.Desired) {
	w.t.Helper()
	have := map[servers.Key]map[netip.AddrPort]int{}
	for _, l := range w.host.servers.Servers() {
		have[l.Key] = map[netip.AddrPort]int{}
		for _, s := range l.Destinations {
			have[l.Key][s.Addr] = s.Weight
		}
	}
	for p := range d.Snapshot.All() {
		if p.InternalTrafficLocal {
			continue
		}
		key := servers.Key{Addr: p.ClusterIP, Protocol: servers.Protocol(idiom.ProtocolNumber(p.Name.Protocol)), Port: p.Port}
		for _, ep := range p.Endpoints {
			if have[key][ep.AddrPort] != 1 {
				w.t.Errorf("step %d: %s: endpoint %s has weight %d", w.step, p.Name, ep.AddrPort, have[key][ep.AddrPort])
			}
		}
	}
}

// settle ends all connections and failures, and compares with what a new agent makes.
func (w *walk) settle() {
	w.t.Helper()
	w.faulty = false
	defer func() { w.faulty = true }()
	for _, l := range w.host.servers.Servers() {
		for _, d := range l.Destinations {
			w.host.servers.SetConns(l.Key, d.Addr, 0, 0)
		}
	}
	for range 3 { // a failure to look is made up for the next time
		w.host.now = w.host.now.Add(drain.Interval)
		d := w.desired()
		d.Verify, d.Settle = true, true
		if r, err := w.agent.Sync(context.Background(), d); err != nil || len(r.Refused) > 0 {
			w.t.Fatalf("step %d: Sync() without faults = %+v, %v", w.step, r, err)
		}
	}
	clear(w.changed)
	fresh := newHost(w.cfg.Family)
	full := fresh.agent(w.t, w.cfg)
	full.where = w.agent.where
	var ports []*model.ServicePort
	for p := range w.snap.All() {
		ports = append(ports, p)
	}
	full.sync(ports...)
	if diff := cmp.Diff(fresh.save(), w.host.save()); diff != "" {
		w.t.Errorf("step %d (-full +incremental):\n%s", w.step, diff)
	}
}

// restart starts a new agent, to which every port is new.
func (w *walk) restart() {
	where := w.agent.where
	w.agent = w.host.agent(w.t, w.cfg)
	w.agent.where = where
	clear(w.changed)
	for p := range w.snap.All() {
		w.changed[p.Name] = true
	}
}

// connect gives some destinations connections, and takes them from others.
func (w *walk) connect() {
	list := w.host.servers.Servers()
	slices.SortFunc(list, func(a, b servers.Listed) int { return a.Key.Compare(b.Key) })
	for _, l := range list {
		slices.SortFunc(l.Destinations, func(a, b servers.Status) int { return a.Addr.Compare(b.Addr) })
		for _, d := range l.Destinations {
			if w.rng.IntN(10) == 0 {
				w.host.servers.SetConns(l.Key, d.Addr, w.rng.IntN(2), w.rng.IntN(2))
			}
		}
	}
}

// node is a node with some of three addresses, and node ports on some of them.
func (w *walk) node() proxier.NodeState {
	n := here(w.cfg.Family)
	if w.rng.IntN(2) == 0 {
		n.Addrs = append(slices.Clone(n.Addrs), w.addr(113, 1))
		slices.SortFunc(n.Addrs, netip.Addr.Compare)
	}
	if w.rng.IntN(3) == 0 {
		n.NodePorts = proxier.NodePorts{Addrs: n.Addrs[:1+w.rng.IntN(len(n.Addrs))]}
	}
	return n
}

// change adds, changes or removes one port.
func (w *walk) change() {
	n := w.rng.IntN(12)
	some := func(one int) bool { return w.rng.IntN(one) == 0 }
	name := portName("ns", fmt.Sprintf("svc%d", n/3), fmt.Sprintf("p%d", n%3), []model.Protocol{model.TCP, model.UDP, model.SCTP}[w.rng.IntN(3)])
	var p *model.ServicePort
	if !some(4) {
		p = &model.ServicePort{Name: name, ClusterIP: w.addr(96, n/3), Port: uint16(80 + n%3 + 3*w.rng.IntN(2))}
		p.AffinityTimeout = time.Duration(w.rng.IntN(2)) * time.Hour
		p.InternalTrafficLocal, p.ExternalTrafficLocal = some(3), some(3)
		if p.InternalTrafficLocal || p.ExternalTrafficLocal {
			p.SparePort = p.Port + 1000
		}
		if some(2) {
			p.NodePort = uint16(30000 + w.rng.IntN(3)) // also another one's
		}
		if some(3) {
			p.ExternalIPs = []netip.Addr{w.addr(113, w.rng.IntN(3))}
		}
		if some(3) {
			p.LoadBalancerIPs = []netip.Addr{w.addr(113, w.rng.IntN(3))}
			p.Restricted = some(2)
		}
		if p.Restricted {
			p.SourceRanges = []netip.Prefix{netip.PrefixFrom(w.addr(51, 0), w.addr(51, 0).BitLen()-w.rng.IntN(2)*8).Masked()}
		}
		if some(5) {
			p.Scheduler = model.Scheduler{Name: "mh", Port: some(2)}
		}
		w.endpoints(p)
	}
	w.snap = w.snap.With(map[model.ServicePortName]*model.ServicePort{name: p})
	w.changed[name] = true
}

// endpoints gives a port some of five.
func (w *walk) endpoints(p *model.ServicePort) {
	for i := range 5 {
		if w.rng.IntN(2) == 0 {
			ep := model.Endpoint{AddrPort: netip.AddrPortFrom(w.addr(244, i), 8080), Local: w.rng.IntN(2) == 0}
			p.Endpoints = append(p.Endpoints, ep)
			if ep.Local && p.UsesLocal() {
				p.LocalEndpoints = append(p.LocalEndpoints, ep)
			}
			p.Usable = true
		}
	}
	if !p.UsesCluster() {
		p.Endpoints = nil
	}
}

func (w *walk) addr(net, host int) netip.Addr {
	if w.cfg.Family == model.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", net, host+1))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", net, host+1))
}

// TestOneChange: a change of endpoints concerns the virtual servers of one port, and
// no rule.
func TestOneChange(t *testing.T) {
	web := portName("shop", "web", "http", model.TCP)
	before := with(port(web, "10.96.0.10", 80, one, three), balanced)
	after := with(port(web, "10.96.0.10", 80, one, two), balanced)
	cfg := config(model.IPv4)
	cfg.LocalhostNodePorts = false
	h := newHost(cfg.Family)
	a := h.agent(t, cfg)
	a.sync(before, port(portName("shop", "other", "", model.TCP), "10.96.0.11", 80, two))
	h.servers.Ops()
	h.sets.Ops()
	h.device.Ops()
	restores, saves := len(h.rules.Restores()), h.rules.Saves()
	s, _ := snapshot(after, port(portName("shop", "other", "", model.TCP), "10.96.0.11", 80, two))
	a.syncChanged(s, []model.ServicePortName{web})
	var want []string
	for _, to := range []string{"10.96.0.10:80", "10.244.0.1:30080", "192.0.2.11:30080", "203.0.113.10:80"} {
		want = append(want, "-a -t "+to+" -r "+two+" -m -w 1", "-e -t "+to+" -r "+three+" -m -w 0",
			"-L -t "+to, "-d -t "+to+" -r "+three)
	}
	if diff := cmp.Diff(want, h.servers.Ops()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if got := append(h.sets.Ops(), h.device.Ops()...); len(got) > 0 {
		t.Errorf("sets and device: %q", got)
	}
	if len(h.rules.Restores()) != restores || h.rules.Saves() != saves {
		t.Errorf("rules were written or read:\n%s", strings.Join(h.rules.Restores()[restores:], ""))
	}
}
