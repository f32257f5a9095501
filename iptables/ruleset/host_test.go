// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

// service is what one unit of the tests stands for: a dispatch rule in the
// shared nat/KUBE-SERVICES and chains of its own, or a rule in the shared
// filter/KUBE-SERVICES where it has no endpoints.
type service struct {
	vip       string
	endpoints []string
}

type services map[string]service

func svcKey(name string) ruleset.ChainKey {
	return ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-SVC-" + name}
}

func sepKey(name, ep string) ruleset.ChainKey {
	return ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-SEP-" + name + "-" + ep}
}

var (
	natServices    = ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-SERVICES"}
	filterServices = ruleset.ChainKey{Table: ruleset.Filter, Name: "KUBE-SERVICES"}
	markMasq       = ruleset.ChainKey{Table: ruleset.NAT, Name: "KUBE-MARK-MASQ"}
	forward        = ruleset.ChainKey{Table: ruleset.Filter, Name: "KUBE-FORWARD"}
)

// chains renders services. It is pure.
func (s services) chains() map[ruleset.ChainKey]*ruleset.Chain {
	lead, reject := &ruleset.Chain{}, &ruleset.Chain{}
	out := map[ruleset.ChainKey]*ruleset.Chain{
		natServices:    lead,
		filterServices: reject,
		markMasq:       {Rules: []ruleset.Rule{"-j MARK --set-xmark 0x4000/0x4000"}},
		forward:        {Rules: []ruleset.Rule{"-m mark --mark 0x4000/0x4000 -j ACCEPT"}},
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		svc := s[name]
		match := "-d " + svc.vip + "/32 "
		if len(svc.endpoints) == 0 {
			reject.Rules = append(reject.Rules, ruleset.Rule(match+"-j REJECT"))
			continue
		}
		lead.Rules = append(lead.Rules, ruleset.Rule(match+"-j "+svcKey(name).Name))
		rules := []ruleset.Rule{ruleset.Rule("! -s 10.244.0.0/16 " + match + "-j " + markMasq.Name)}
		for _, ep := range svc.endpoints {
			rules = append(rules, ruleset.Rule(`-m comment --comment "to `+ep+`" -j `+sepKey(name, ep).Name))
			out[sepKey(name, ep)] = &ruleset.Chain{Unit: name, Rules: []ruleset.Rule{
				ruleset.Rule("-s " + ep + "/32 -j " + markMasq.Name),
				ruleset.Rule("-p tcp -m tcp -j DNAT --to-destination " + ep + ":80"),
			}}
		}
		out[svcKey(name)] = &ruleset.Chain{Unit: name, Rules: rules}
	}
	return out
}

func contribution() ruleset.Contribution {
	jump := func(t ruleset.Table, from, to string) ruleset.Jump {
		return ruleset.Jump{
			ChainKey: ruleset.ChainKey{Table: t, Name: from},
			Rule:     ruleset.Rule(`-m comment --comment "test portals" -j ` + to),
		}
	}
	return ruleset.Contribution{
		Name: "test",
		Owns: []ruleset.ChainKey{
			natServices, filterServices, markMasq, forward,
			svcKey("*"), {Table: ruleset.NAT, Name: "KUBE-SEP-*"},
			{Table: ruleset.Mangle, Name: "KUBE-PROXY-CANARY"},
		},
		Jumps: []ruleset.Jump{
			jump(ruleset.Filter, "FORWARD", forward.Name),
			jump(ruleset.Filter, "FORWARD", filterServices.Name),
			jump(ruleset.Filter, "OUTPUT", filterServices.Name),
			jump(ruleset.NAT, "PREROUTING", natServices.Name),
			jump(ruleset.NAT, "OUTPUT", natServices.Name),
		},
	}
}

func owned(k ruleset.ChainKey) bool {
	return k == natServices || k == filterServices || k == markMasq || k == forward ||
		k.Table == ruleset.NAT && (strings.HasPrefix(k.Name, "KUBE-SVC-") || strings.HasPrefix(k.Name, "KUBE-SEP-")) ||
		k == ruleset.ChainKey{Table: ruleset.Mangle, Name: "KUBE-PROXY-CANARY"}
}

// host is a kernel and the engine that writes to it.
type host struct {
	t       *testing.T
	kernel  *fake.Kernel
	variant ruleset.Variant
	engine  *ruleset.Engine
	staged  map[ruleset.ChainKey]*ruleset.Chain
	// exec is what the engine sees of kernel.
	exec ruleset.Exec
	// auditor watches the engine's restores.
	auditor *auditor
}

func newHost(t *testing.T) *host {
	h := &host{t: t, kernel: &fake.Kernel{}, variant: ruleset.NFT}
	h.exec = h.kernel
	h.restart()
	return h
}

// restart replaces the engine with a new one, to which nothing is staged.
func (h *host) restart() {
	h.staged = map[ruleset.ChainKey]*ruleset.Chain{}
	h.engine = ruleset.NewEngine(ruleset.Config{
		Exec: h.exec, Variant: h.variant,
		Commands:      ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
		Contributions: []ruleset.Contribution{contribution()},
	})
	h.auditor = &auditor{t: h.t, kernel: h.kernel}
	h.engine.Watch(h.auditor)
}

// want stages what differs from what was staged before.
func (h *host) want(s services) {
	next, stage := s.chains(), map[ruleset.ChainKey]*ruleset.Chain{}
	for k := range h.staged {
		if next[k] == nil {
			stage[k] = nil
		}
	}
	for k, c := range next {
		if old := h.staged[k]; old == nil || !cmp.Equal(old, c) {
			stage[k] = c
		}
	}
	h.engine.Stage(stage)
	h.staged = next
}

func (h *host) apply(o ruleset.Options) ruleset.Result {
	h.t.Helper()
	res, err := h.engine.Apply(context.Background(), o)
	if err != nil {
		h.t.Fatalf("Apply(%+v) = %v", o, err)
	}
	return res
}

// prune applies, with removals.
func (h *host) prune() ruleset.Result {
	h.t.Helper()
	return h.apply(ruleset.Options{Prune: true})
}

// restores returns the inputs of the restore commands that f runs.
func (h *host) restores(f func()) []string {
	before := len(h.kernel.Restores())
	f()
	return h.kernel.Restores()[before:]
}

func (h *host) edit(text string) {
	h.t.Helper()
	if err := h.kernel.Edit(text); err != nil {
		h.t.Fatalf("edit rules as somebody else: %v", err)
	}
}

func (h *host) dump() ruleset.Dump { return parse(h.t, h.kernel.Save()) }

func parse(t *testing.T, text string) ruleset.Dump {
	t.Helper()
	d, err := ruleset.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// chainsOf returns a dump's chains.
func chainsOf(d ruleset.Dump) map[ruleset.ChainKey][]ruleset.Rule {
	out := map[ruleset.ChainKey][]ruleset.Rule{}
	for _, t := range d {
		for _, c := range t.Chains {
			out[ruleset.ChainKey{Table: t.Name, Name: c.Name}] = c.Rules
		}
	}
	return out
}

// split parts a dump into what is ours and what is not, each a line a rule.
// Jumps of ours are in no order: one that was lost comes back on top.
func split(d ruleset.Dump) (ours, others []string) {
	isJump := map[ruleset.Jump]bool{}
	for _, j := range contribution().Jumps {
		isJump[j] = true
	}
	var jumps []string
	for _, t := range d {
		for _, c := range t.Chains {
			k := ruleset.ChainKey{Table: t.Name, Name: c.Name}
			list := &others
			if owned(k) {
				list = &ours
			}
			if c.Policy == "-" {
				*list = append(*list, k.String()+" exists")
			}
			for _, r := range c.Rules {
				line := fmt.Sprintf("%s %s", k, r)
				if isJump[ruleset.Jump{ChainKey: k, Rule: r}] {
					jumps = append(jumps, line)
				} else {
					*list = append(*list, line)
				}
			}
		}
	}
	return append(sorted(jumps), ours...), others
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// full returns what a new host has of ours after one Apply of s.
func full(t *testing.T, s services) []string {
	t.Helper()
	h := newHost(t)
	h.want(s)
	h.prune()
	ours, _ := split(h.dump())
	return ours
}

// checkOurs checks that the kernel has exactly what s wants.
func (h *host) checkOurs(s services) {
	h.t.Helper()
	got, _ := split(h.dump())
	if diff := cmp.Diff(full(h.t, s), got); diff != "" {
		h.t.Errorf("rules of ours differ from those of a new host (-want +got):\n%s", diff)
	}
}

// checkQuiet checks that another Apply has nothing to write.
func (h *host) checkQuiet() {
	h.t.Helper()
	if got := h.restores(func() { h.prune() }); len(got) > 0 {
		h.t.Errorf("Apply() with nothing changed ran %d restores, want none:\n%s", len(got), strings.Join(got, ""))
	}
}

// Rules of others, among them one that leads to a chain of ours.
const (
	othersFilter = `*filter
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -s 192.0.2.0/24 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A DOCKER-USER -j RETURN
COMMIT
`
	othersNAT = `*nat
:DOCKER - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`
	othersPin = "*nat\n-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT\n"
)

// web and dns are two services with endpoints, idle one without.
func someServices() services {
	return services{
		"WEB":  {"10.96.0.10", []string{"10.244.0.1", "10.244.0.2"}},
		"DNS":  {"10.96.0.11", []string{"10.244.0.3"}},
		"IDLE": {"10.96.0.12", nil},
	}
}

// with returns a copy of s with one service changed.
func (s services) with(name string, svc service) services {
	out := maps.Clone(s)
	out[name] = svc
	return out
}

// without returns a copy of s without one service.
func (s services) without(name string) services {
	out := maps.Clone(s)
	delete(out, name)
	return out
}
