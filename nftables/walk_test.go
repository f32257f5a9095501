// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairlead/nftables/fake"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// -seed repeats one random walk.
var seed = flag.Uint64("seed", 0, "seed of the random walk; 0 for a few fixed ones")

// TestWalk: after any sequence of snapshots, restarts, foreign changes and failing calls
// of the kernel, what is left is what an agent makes that knows only the last snapshot.
func TestWalk(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	for _, s := range seeds {
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			t.Parallel()
			w := newWalk(t, s)
			for w.step = 0; w.step < 200 && !t.Failed(); w.step++ {
				w.next()
			}
			if w.settled < 8 && !t.Failed() {
				t.Errorf("compared %d times, which is too few to tell anything", w.settled)
			}
			if t.Failed() {
				t.Logf("repeat with: go test -run '^TestWalk$' ./nftables -seed=%d", s)
			}
		})
	}
}

// walk is an agent to which random things happen.
type walk struct {
	t      *testing.T
	rng    *rand.Rand
	cfg    Config
	kernel *fake.Kernel
	agent  *agent
	snap   *model.Snapshot
	// ports and pods are what there is besides Services, all nil at first.
	ports map[place]HostPort
	pods  *PodMasquerade
	// changed are the names that no Sync that succeeded has carried.
	changed       map[model.ServicePortName]bool
	faulty        bool
	step, settled int
}

func newWalk(t *testing.T, seed uint64) *walk {
	w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 0)), snap: model.NewSnapshot(), changed: map[model.ServicePortName]bool{}, faulty: true, ports: map[place]HostPort{}}
	w.cfg = config(model.Families()[seed%2])
	w.cfg.MasqueradeNeighbours = seed%4 < 2
	w.cfg.Counting = seed%8 > 3
	if seed%3 == 0 {
		w.cfg.PodCIDRs = nil
	}
	faults := []unix.Errno{unix.EBUSY, unix.ENOENT, unix.ENOBUFS, unix.EINTR, unix.ENOMEM, unix.EEXIST}
	w.kernel = &fake.Kernel{Fault: func(string) (error, bool) {
		if w.faulty && w.rng.IntN(40) == 0 {
			return faults[w.rng.IntN(len(faults))], w.rng.IntN(2) == 0
		}
		return nil, false
	}}
	w.agent = newAgent(t, w.cfg, w.kernel)
	w.count()
	return w
}

// count has a new agent count up to two ports by themselves, of as many as there may be.
func (w *walk) count() {
	if w.cfg.Counting {
		w.agent.traffic = NewTraffic(w.agent.Mode, rosterOf("*", 2), func() (Counters, error) { return w.kernel, nil })
	}
}

func (w *walk) next() {
	for range w.rng.IntN(4) {
		w.change()
	}
	if w.rng.IntN(4) == 0 {
		w.changeAnnex()
	}
	if w.rng.IntN(15) == 0 {
		w.restart()
	}
	if w.rng.IntN(10) == 0 {
		w.agent.where = w.node()
	}
	if w.rng.IntN(10) == 0 {
		w.disturb()
	}
	d := w.desired()
	d.Prune, d.Verify, d.Settle = w.rng.IntN(6) > 0, w.rng.IntN(10) == 0, w.rng.IntN(4) == 0
	r, err := w.agent.Sync(context.Background(), d)
	if err != nil {
		return
	}
	if len(r.Refused) > 0 {
		w.t.Fatalf("step %d: refused %v", w.step, r.Refused)
	}
	w.check(d)
	w.checkCounted(d)
	clear(w.changed)
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

// check holds a Sync that succeeded to what it has said: every endpoint of a cluster IP
// has a slot, unless others have just changed the table.
func (w *walk) check(d proxier.Desired) {
	w.t.Helper()
	t := w.kernel.Table()
	if w.agent.watch.suspect || t == nil {
		return
	}
	have := map[string]bool{}
	for _, e := range t.Elements["endpoints"] {
		have[e.Key[:len(e.Key)-4]+" "+e.Data] = true
	}
	taken := map[string]int{}
	for p := range d.Snapshot.All() {
		taken[string(places(p)[0].key())]++
	}
	for p := range d.Snapshot.All() {
		key := string(places(p)[0].key())
		if p.InternalTrafficLocal || taken[key] > 1 {
			continue
		}
		for _, ep := range p.Endpoints {
			if !have[key+" "+string(endpointData(ep.AddrPort))] {
				w.t.Errorf("step %d: %s: endpoint %s has no slot", w.step, p.Name, ep.AddrPort)
			}
		}
	}
}

// checkCounted follows a Sync that succeeded, and holds it to counting the ports on the
// roster at their places, unless others have just changed the table, and no other port.
func (w *walk) checkCounted(d proxier.Desired) {
	w.t.Helper()
	if !w.cfg.Counting {
		return
	}
	if err := w.agent.traffic.Follow(context.Background(), d); err != nil {
		w.t.Fatal(err)
	}
	t := w.kernel.Table()
	if w.agent.watch.suspect || t == nil {
		return
	}
	have := map[string]string{}
	for _, set := range []string{countConnections, countConnectionsNP} {
		for _, e := range t.Elements[set] {
			have[e.Key] = e.Comment
		}
	}
	for pl, name := range w.agent.traffic.places {
		if got := have[string(pl.key())]; got != name.String() || !w.agent.roster.Has(name) {
			w.t.Errorf("step %d: %s is counted for %q, want %s", w.step, pl, got, name)
		}
	}
	if len(have) > len(w.agent.traffic.places) && d.Prune && d.Verify {
		w.t.Errorf("step %d: counted are %v, want %v", w.step, have, w.agent.traffic.places)
	}
}

// settle ends all failures, and compares with what a new agent makes.
func (w *walk) settle() {
	w.t.Helper()
	w.settled++
	w.faulty = false
	defer func() { w.faulty = true }()
	d := w.desired()
	d.Verify, d.Settle = true, true
	if r, err := w.agent.Sync(context.Background(), d); err != nil || len(r.Refused) > 0 {
		w.t.Fatalf("step %d: Sync() without faults = %+v, %v", w.step, r, err)
	}
	clear(w.changed)
	applied := w.kernel.Applied
	if r, err := w.agent.Sync(context.Background(), w.desired()); err != nil || r.Written != 0 || w.kernel.Applied != applied {
		w.t.Fatalf("step %d: Sync() once more = %+v, %v", w.step, r, err)
	}
	fresh := &fake.Kernel{}
	full := newAgent(w.t, w.cfg, fresh)
	full.where = w.agent.where
	full.roster = w.agent.roster // who is on it hangs on who was before
	w.tell(full)
	var ports []*model.ServicePort
	for p := range w.snap.All() {
		ports = append(ports, p)
	}
	full.sync(ports...)
	if diff := cmp.Diff(same(fresh.Table()).String(), same(w.kernel.Table()).String()); diff != "" {
		w.t.Errorf("step %d (-full +incremental):\n%s", w.step, diff)
	}
}

// restart starts a new agent, to which every port is new.
func (w *walk) restart() {
	where := w.agent.where
	w.agent = newAgent(w.t, w.cfg, w.kernel)
	w.agent.where = where
	w.count()
	w.tell(w.agent)
	clear(w.changed)
	for p := range w.snap.All() {
		w.changed[p.Name] = true
	}
}

// tell tells an agent all that there is besides Services.
func (w *walk) tell(a *agent) {
	for _, h := range w.ports {
		a.SetHostPorts(nil, []HostPort{h})
	}
	if w.pods != nil {
		a.SetPodMasquerade(*w.pods)
	}
}

// changeAnnex changes what there is besides Services: a host port, or who is masqueraded.
func (w *walk) changeAnnex() {
	if w.rng.IntN(3) == 0 {
		w.pods = &PodMasquerade{}
		if w.rng.IntN(3) > 0 {
			pods := w.addr(244, 0)
			w.pods.Pods = []netip.Prefix{netip.PrefixFrom(pods, pods.BitLen()-8*w.rng.IntN(3)).Masked()}
			for i := range w.rng.IntN(4) {
				exempt := w.addr(50+i, 0)
				w.pods.Exempt = append(w.pods.Exempt, netip.PrefixFrom(exempt, exempt.BitLen()-4*w.rng.IntN(4)).Masked())
			}
		}
		w.agent.SetPodMasquerade(*w.pods)
		return
	}
	pod := w.addr(244, w.rng.IntN(3))
	h := HostPort{
		Protocol: model.Protocol([]model.Protocol{model.TCP, model.UDP}[w.rng.IntN(2)]), Port: uint16(8000 + w.rng.IntN(3)),
		To: netip.AddrPortFrom(pod, uint16(80+w.rng.IntN(2))), Comment: "shop/" + fmt.Sprint(w.rng.IntN(3)),
		Masqueraded: []netip.Prefix{netip.PrefixFrom(pod, pod.BitLen())},
	}
	if w.rng.IntN(3) == 0 {
		h.HostIP = w.agent.where.Addrs[0]
	} else if w.rng.IntN(3) == 0 {
		h.Except = w.agent.where.Addrs[:1]
	}
	if w.cfg.MasqueradeNeighbours {
		h.Masqueraded[0] = netip.PrefixFrom(pod, pod.BitLen()-8).Masked()
	}
	at := h.at()
	if old, ok := w.ports[at]; ok && w.rng.IntN(2) == 0 {
		delete(w.ports, at)
		w.agent.SetHostPorts([]HostPort{old}, nil)
		return
	}
	w.ports[at] = h
	w.agent.SetHostPorts(nil, []HostPort{h})
}

// disturb changes the table as others may.
func (w *walk) disturb() {
	t := w.kernel.Table()
	if t == nil {
		return
	}
	w.agent.watch.suspect = w.rng.IntN(3) > 0 || w.agent.watch.suspect
	switch w.rng.IntN(5) {
	case 0:
		w.agent.watch.suspect = true
		w.kernel.Flush()
	case 1:
		w.agent.watch.suspect = true
		c := t.Chains[w.rng.IntN(len(t.Chains))]
		w.must(table.SetRules{Chain: c.Name, Rules: []table.Rule{table.On(t.Family).New().Drop()}})
	case 2:
		w.agent.watch.suspect = true
		w.must(table.AddSet{Set: &table.Set{Name: "foreign", Key: []table.Type{table.InetProto}}})
	default:
		s := t.Sets[w.rng.IntN(len(t.Sets))]
		if es := t.Elements[s.Name]; len(es) > 0 && !s.Dynamic {
			w.agent.watch.suspect = true
			w.must(table.DeleteElements{Set: s, Elements: es[w.rng.IntN(len(es)):][:1]})
		}
	}
}

func (w *walk) must(s table.Step) {
	_ = w.kernel.Disturb(s) // which may be there already
}

// node is a node with some of three addresses, and node ports on some of them.
func (w *walk) node() proxier.NodeState {
	n := here(w.cfg.Family)
	if w.rng.IntN(3) == 0 {
		n.IP = w.addr(113, 1)
	}
	if w.rng.IntN(3) == 0 {
		n.NodePorts = proxier.NodePorts{Addrs: n.Addrs[:1+w.rng.IntN(len(n.Addrs))]}
	}
	return n
}

func (w *walk) addr(third, last int) netip.Addr {
	if w.cfg.Family == model.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", third, last+1))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", third, last+1))
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
		if some(40) {
			p.Balancing = model.Maglev
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
			from := w.addr(51, 0)
			p.SourceRanges = []netip.Prefix{netip.PrefixFrom(from, from.BitLen()-w.rng.IntN(2)*8).Masked(), netip.PrefixFrom(from, from.BitLen()-4).Masked()}
		}
		w.endpoints(p)
	}
	w.snap = w.snap.With(map[model.ServicePortName]*model.ServicePort{name: p})
	w.changed[name] = true
}

// endpoints gives a port some of seven.
func (w *walk) endpoints(p *model.ServicePort) {
	for i := range 7 {
		if w.rng.IntN(2) == 0 {
			p.Endpoints = append(p.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(w.addr(244, i), 8080), Local: w.rng.IntN(2) == 0})
			p.Usable = true
			p.Known++
		}
	}
	*p = *with(p)
}
