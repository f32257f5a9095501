// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/nat/ipset"
	fakeset "fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// loopHost is a kernel in memory on which rules may have the compact form.
type loopHost struct {
	t     *testing.T
	k     *fake.Kernel
	sets  *fakeset.Sets
	loops *fakeset.Set
	// calls are the operations on loops that were asked for, by their verbs, since it
	// was emptied; fault may have one fail.
	calls []string
	fault func(verb string) error
}

func newLoopHost(t *testing.T) *loopHost {
	h := &loopHost{t: t, loops: fakeLoops(model.IPv4)}
	h.k, h.sets = fakeHost()
	h.loops.Kernel.Rules = h.k.Save
	h.loops.Kernel.Fault = func(op string) error {
		verb, _, _ := strings.Cut(op, " ")
		h.calls = append(h.calls, verb)
		if h.fault != nil {
			return h.fault(verb)
		}
		return nil
	}
	clients := h.k.Refuse
	h.k.Refuse = func(k ruleset.ChainKey, r ruleset.Rule) bool { return clients(k, r) || h.loops.Missing(string(r)) }
	return h
}

func (h *loopHost) agent(cfg RenderConfig) *agent {
	return fakeAgentWithLoops(h.t, h.k, h.sets, h.loops, cfg)
}

// check checks what is in the set: "tcp 10.244.0.1:80". With nil there is none.
func (h *loopHost) check(what string, want []string) {
	h.t.Helper()
	in := h.loops.In()
	if (in == nil) != (want == nil) {
		h.t.Errorf("%s: the set is there: %t, want %t", what, in != nil, want != nil)
	}
	got := map[string]bool{}
	for e := range in {
		got[map[uint8]string{6: "tcp ", 17: "udp ", 132: "sctp "}[e.Protocol]+netip.AddrPortFrom(e.Addr, e.Port).String()] = true
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" && len(want)+len(got) > 0 {
		h.t.Errorf("%s: in the set (-want +got):\n%s", what, diff)
	}
}

// everyHere puts all endpoints onto this node.
func everyHere(p *model.ServicePort) {
	p.Endpoints = slices.Clone(p.Endpoints)
	for i := range p.Endpoints {
		p.Endpoints[i].Local = true
	}
}

// hosted returns a port all of whose endpoints are on this node.
func hosted(svc, vip string, proto model.Protocol, endpoints ...string) *model.ServicePort {
	return with(port(portName("shop", svc, "", proto), vip, 80, endpoints...), everyHere)
}

// TestLoopsFollowTheChange: the set has this node's endpoints of Services without
// affinity, as long as any of these has them, each change touching its own.
func TestLoopsFollowTheChange(t *testing.T) {
	h := newLoopHost(t)
	a := h.agent(compact(v4()))
	const one, two = "10.244.0.1:80", "10.244.0.2:80"
	web := hosted("web", "10.96.0.1", model.TCP, one)
	a.sync(web)
	h.check("at start", []string{"tcp " + one})
	for _, tt := range []struct {
		name  string
		ports []*model.ServicePort
		ops   []string
		want  []string
	}{
		{"nothing", []*model.ServicePort{web}, nil, []string{"tcp " + one}},
		{"another Service of the same endpoint", []*model.ServicePort{hosted("same", "10.96.0.2", model.TCP, one)}, nil, []string{"tcp " + one}},
		{"an endpoint more", []*model.ServicePort{hosted("web", "10.96.0.1", model.TCP, one, two)}, []string{"add"}, []string{"tcp " + one, "tcp " + two}},
		{"the first less, which the other has", []*model.ServicePort{hosted("web", "10.96.0.1", model.TCP, two)}, nil, []string{"tcp " + one, "tcp " + two}},
		{"the other has affinity now", []*model.ServicePort{with(hosted("same", "10.96.0.2", model.TCP, one), affinity)}, []string{"remove"}, []string{"tcp " + two}},
		{"endpoints elsewhere", []*model.ServicePort{port(portName("shop", "far", "", model.TCP), "10.96.0.3", 80, "10.244.9.9:80")}, nil, []string{"tcp " + two}},
		{"other protocols", []*model.ServicePort{hosted("u", "10.96.0.4", model.UDP, two), hosted("s", "10.96.0.5", model.SCTP, two)},
			[]string{"add"}, []string{"sctp " + two, "tcp " + two, "udp " + two}},
		{"local endpoints alone", []*model.ServicePort{with(hosted("web", "10.96.0.1", model.TCP, two), internalLocal(one))},
			[]string{"add", "remove"}, []string{"sctp " + two, "tcp " + one, "udp " + two}},
		{"external policy Local, by which pods of other nodes come with their own address",
			[]*model.ServicePort{with(port(portName("shop", "far", "", model.TCP), "10.96.0.3", 80, "10.244.9.9:80"), nodePort, externalLocal())},
			[]string{"add"}, []string{"sctp " + two, "tcp " + one, "tcp 10.244.9.9:80", "udp " + two}},
	} {
		h.calls = nil
		s, names := snapshot(tt.ports...)
		a.syncChanged(s, names)
		if diff := cmp.Diff(tt.ops, h.calls); diff != "" {
			t.Errorf("%s: operations on the set (-want +got):\n%s", tt.name, diff)
		}
		h.check(tt.name, tt.want)
	}
	s, _ := snapshot()
	a.syncChanged(s, []model.ServicePortName{web.Name, portName("shop", "far", "", model.TCP), portName("shop", "u", "", model.UDP), portName("shop", "s", "", model.SCTP)})
	h.check("all gone", []string{})
}

// TestLoopsRestart: a restart adopts what is there and writes nothing; what a
// crashed agent has left goes.
func TestLoopsRestart(t *testing.T) {
	h := newLoopHost(t)
	web := hosted("web", "10.96.0.1", model.TCP, "10.244.0.1:80")
	h.agent(compact(v4())).sync(web)
	h.calls = nil
	got := written(h.k, func() {
		if r := h.agent(compact(v4())).sync(web); r.Written > 0 {
			t.Errorf("after a restart, %d objects were written, want none", r.Written)
		}
	})
	if len(got) > 0 {
		t.Errorf("the restart ran %d restores, want none", len(got))
	}
	if diff := cmp.Diff([]string{"list"}, h.calls); diff != "" {
		t.Errorf("operations on the set (-want +got):\n%s", diff)
	}
	if err := h.loops.Add(ipset.Loop(6, netip.MustParseAddrPort("10.244.0.7:80"))); err != nil {
		t.Fatal(err)
	}
	h.agent(compact(v4())).sync(web)
	h.check("a leftover", []string{"tcp 10.244.0.1:80"})
	others := ipset.Loop(6, netip.MustParseAddrPort("10.244.0.7:80"))
	others.Net = ipset.Single(netip.MustParseAddr("10.244.0.8"))
	h.loops.Kernel.Put(h.loops.Name(), ipset.HashIPPortIP, false, others)
	h.agent(compact(v4())).sync(web)
	h.check("of two addresses, which is somebody else's", []string{"tcp 10.244.0.1:80", "tcp 10.244.0.7:80"})
}

// TestLoopsNothingRemoved: while nothing may be removed, nothing is.
func TestLoopsNothingRemoved(t *testing.T) {
	h := newLoopHost(t)
	h.agent(compact(v4())).sync(hosted("web", "10.96.0.1", model.TCP, "10.244.0.1:80"))
	a := h.agent(compact(v4()))
	s, names := snapshot(hosted("web", "10.96.0.1", model.TCP, "10.244.0.2:80"))
	d := proxier.Desired{Snapshot: s, Node: everywhere, Changed: names}
	for _, tt := range []struct {
		prune bool
		want  []string
	}{{false, []string{"tcp 10.244.0.1:80", "tcp 10.244.0.2:80"}}, {true, []string{"tcp 10.244.0.2:80"}}} {
		d.Prune = tt.prune
		if _, err := a.Sync(context.Background(), d); err != nil {
			t.Fatal(err)
		}
		h.check("endpoint replaced", tt.want)
		if had := strings.Contains(h.k.Save(), "--to-destination 10.244.0.1:80"); had == tt.prune {
			t.Errorf("prune %t: rules have the old endpoint: %t", tt.prune, had)
		}
	}
}

// TestLoopsHeal: who empties or destroys the set has it back with the next check,
// which says so.
func TestLoopsHeal(t *testing.T) {
	h := newLoopHost(t)
	a := h.agent(compact(v4()))
	web := hosted("web", "10.96.0.1", model.TCP, "10.244.0.1:80", "10.244.0.2:80")
	a.sync(web)
	s, _ := snapshot(web)
	for name, harm := range map[string]func() error{
		"an element removed": func() error {
			return h.loops.Remove(ipset.Loop(6, netip.MustParseAddrPort("10.244.0.2:80")))
		},
		"the set destroyed": func() error {
			h.k.Flush(ruleset.NAT)
			return h.loops.Destroy()
		},
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Prune: true, Verify: true})
		if err != nil || len(r.Refused) > 0 || !slices.Contains(r.Repaired, "set KUBE-LOOP-BACK") {
			t.Errorf("%s: Sync() = %+v, %v, want the set repaired", name, r, err)
		}
		h.check(name, []string{"tcp 10.244.0.1:80", "tcp 10.244.0.2:80"})
	}
}

// TestLoopRefused: a port whose endpoints the kernel does not take into the set
// has the ordinary form, and the next check mends it.
func TestLoopRefused(t *testing.T) {
	h := newLoopHost(t)
	a := h.agent(compact(v4()))
	h.fault = func(verb string) error {
		if verb == "add" {
			return errors.New("set is full")
		}
		return nil
	}
	web := hosted("web", "10.96.0.1", model.TCP, "10.244.0.1:80")
	far := port(portName("shop", "far", "", model.TCP), "10.96.0.3", 80, "10.244.9.9:80")
	s, names := snapshot(web, far)
	d := proxier.Desired{Snapshot: s, Node: everywhere, Changed: names, Prune: true}
	r, err := a.Sync(context.Background(), d)
	want := []string{"shop/web/tcp: compact rules: add KUBE-LOOP-BACK: set is full"}
	if diff := cmp.Diff(want, r.Refused); err != nil || diff != "" {
		t.Errorf("Sync() = %v, refused (-want +got):\n%s", err, diff)
	}
	checkFates(t, newTracer(t, h.k.Save(), nodeIP).loops(h.loops).trace(packet{"10.244.0.1", "10.96.0.1", "tcp", 80, false}),
		fate{"10.244.0.1:80", true, "ACCEPT"})
	if got := h.k.Save(); strings.Contains(got, endpointChain(far.Name, far.Endpoints[0].AddrPort)) {
		t.Errorf("the port without endpoints here is not compact:\n%s", got)
	}
	h.fault = nil
	d.Changed, d.Verify = nil, true
	if r, err := a.Sync(context.Background(), d); err != nil || len(r.Refused) > 0 {
		t.Errorf("check after the fault = %+v, %v", r, err)
	}
	if got := h.k.Save(); strings.Contains(got, endpointPrefix) {
		t.Errorf("an endpoint has a chain still:\n%s", got)
	}
}

// TestCompactAndBack: switching the form converts the rules in place: at no time
// does a Service lose an endpoint, or a pod that reaches itself its masquerading.
func TestCompactAndBack(t *testing.T) {
	h := newLoopHost(t)
	web := hosted("web", "10.96.0.1", model.TCP, "10.244.0.1:80", "10.244.0.2:80")
	cart := with(hosted("cart", "10.96.0.2", model.TCP, "10.244.0.1:80"), affinity)
	for _, form := range []bool{false, true, false, true} {
		cfg := v4()
		cfg.Compact = form
		h.agent(cfg).sync(web, cart)
		rules := h.k.Save()
		if got := strings.Contains(rules, endpointChain(web.Name, web.Endpoints[0].AddrPort)); got == form {
			t.Errorf("compact %t: the endpoint has a chain: %t", form, got)
		}
		if form {
			h.check("compact", []string{"tcp 10.244.0.1:80", "tcp 10.244.0.2:80"})
		} else {
			h.check("ordinary", nil)
		}
		tr := newTracer(t, rules, nodeIP).loops(h.loops)
		checkFates(t, tr.trace(packet{"10.244.0.1", "10.96.0.1", "tcp", 80, false}),
			fate{"10.244.0.1:80", true, "ACCEPT"}, fate{"10.244.0.2:80", false, "ACCEPT"})
		checkFates(t, tr.trace(packet{"10.244.0.1", "10.96.0.2", "tcp", 80, false}), fate{"10.244.0.1:80", true, "ACCEPT"})
	}
}

// TestTraceCompact: packets fare as under the ordinary form.
func TestTraceCompact(t *testing.T) {
	web := hosted("web", "10.96.0.10", model.TCP, "10.244.0.1:8080", "10.244.0.2:8080")
	many := make([]string, 250)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}).String() + ":80"
	}
	var remote []model.Endpoint
	remote = append(remote, port(web.Name, "10.96.0.1", 1, "10.244.1.2:8080").Endpoints...)
	local := with(web, nodePort, loadBalancer, ranges("192.0.2.0/25"), externalLocal("10.244.0.1:8080", "10.244.0.2:8080"),
		func(p *model.ServicePort) { p.Endpoints = append(slices.Clone(p.Endpoints), remote...) })
	for _, tt := range []struct {
		name string
		port *model.ServicePort
	}{
		{"cluster IP", web},
		{"node port, load balancer, local policy", local},
		{"external IP", with(web, externalIP)},
		{"internal policy local", with(web, internalLocal("10.244.0.1:8080"))},
		{"internal policy local, none here", with(web, internalLocal())},
		{"affinity", with(web, affinity)},
		{"groups", hosted("many", "10.96.0.10", model.TCP, many...)},
		{"udp", hosted("dns", "10.96.0.10", model.UDP, "10.244.0.1:53")},
		{"sctp", hosted("sig", "10.96.0.10", model.SCTP, "10.244.0.1:53")},
		{"no endpoints", port(web.Name, "10.96.0.10", 80)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ordinary := traced(t, v4(), tt.port)
			h := newLoopHost(t)
			h.agent(compact(v4())).sync(tt.port)
			form := newTracer(t, h.k.Save(), nodeIP).loops(h.loops)
			for _, src := range []string{pod, "10.244.0.1", "10.244.0.2", "10.244.1.7", outside, nodeIP} {
				for _, dst := range []string{"10.96.0.10:80", "203.0.113.5:80", "203.0.113.80:80", nodeIP + ":30080", "10.244.0.1:8080"} {
					to := netip.MustParseAddrPort(dst)
					p := packet{src, to.Addr().String(), tt.port.Name.Protocol.Lower(), to.Port(), src == nodeIP}
					near := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
					if diff := cmp.Diff(ordinary.trace(p), form.trace(p), cmp.AllowUnexported(fate{}), near); diff != "" {
						t.Errorf("%+v (-ordinary +compact):\n%s", p, diff)
					}
				}
			}
		})
	}
}
