// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/nat/ipset/fake"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

var _ Sets = (*fake.Sets)(nil)

// sticky returns a port with session affinity.
func sticky(svc string, vip string, endpoints ...string) *model.ServicePort {
	return with(port(portName("shop", svc, "", model.TCP), vip, 80, endpoints...), affinity)
}

// setsNamed returns the names of the sets of ports, sorted.
func setsNamed(ports ...*model.ServicePort) []string {
	var out []string
	for _, p := range ports {
		for n := range setsOf(p) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func checkSets(t *testing.T, what string, s *fake.Sets, want ...*model.ServicePort) {
	t.Helper()
	if diff := cmp.Diff(setsNamed(want...), s.Names()); diff != "" {
		t.Errorf("%s: sets (-want +got):\n%s", what, diff)
	}
}

// TestSetsFollowTheChange: a change touches the sets of what changed, makes
// them before the rules, and destroys them after.
func TestSetsFollowTheChange(t *testing.T) {
	k, sets := fakeHost() // which refuses rules whose sets are missing, and to destroy sets in use
	a := fakeAgentWithSets(t, k, sets, v4())
	web, db := sticky("web", "10.96.0.1", "10.244.0.1:80", "10.244.0.2:80"), sticky("db", "10.96.0.2", "10.244.0.3:80")
	a.sync(web, db)
	checkSets(t, "at start", sets, web, db)
	step := func(what string, now *model.ServicePort, want ...string) {
		t.Helper()
		sets.Ops()
		ports := []*model.ServicePort{db}
		if now != nil {
			ports = append(ports, now)
		}
		s, _ := snapshot(ports...)
		a.syncChanged(s, []model.ServicePortName{web.Name})
		if diff := cmp.Diff(want, sets.Ops()); diff != "" {
			t.Errorf("%s: operations on sets (-want +got):\n%s", what, diff)
		}
		checkSets(t, what, sets, ports...)
	}
	name := func(ep string) string { return setsNamed(sticky("web", "10.96.0.1", ep))[0] }
	step("nothing", web)
	step("another timeout", with(web, func(p *model.ServicePort) { p.AffinityTimeout = time.Minute }))
	more := sticky("web", "10.96.0.1", "10.244.0.1:80", "10.244.0.2:80", "10.244.0.4:80")
	step("an endpoint more", more, "create "+name("10.244.0.4:80"))
	less := sticky("web", "10.96.0.1", "10.244.0.2:80", "10.244.0.4:80")
	step("an endpoint less", less, "destroy "+name("10.244.0.1:80"))
	one := sticky("web", "10.96.0.1", "10.244.0.2:80")
	step("another less", one, "destroy "+name("10.244.0.4:80"))
	sets.Ops()
	s, _ := snapshot(db)
	a.syncChanged(s, []model.ServicePortName{web.Name})
	checkSets(t, "the Service gone", sets, db)
}

// TestSetsRestart: a restart touches no set that rules name, and removes what a
// crashed agent has left; others' sets stay.
func TestSetsRestart(t *testing.T) {
	k, sets := fakeHost()
	web := sticky("web", "10.96.0.1", "10.244.0.1:80", "10.244.0.2:80")
	fakeAgentWithSets(t, k, sets, v4()).sync(web)
	name := setsNamed(web)[0]
	sets.Add(name, "10.244.0.9")
	leftover := idiom.HashName(endpointPrefix, "leftover")
	foreign := []string{"KUBE-SEP-MINE", "KUBE-SEP-aaaaaaaaaaaaaaaa", "KUBE-CLUSTER-IP", idiom.HashName(servicePrefix, "x")}
	for _, n := range append(foreign, leftover) {
		if err := sets.Create(n); err != nil {
			t.Fatal(err)
		}
	}
	sets.Ops()
	if got := written(k, func() { fakeAgentWithSets(t, k, sets, v4()).sync(web) }); len(got) > 0 {
		t.Errorf("the restart ran %d restores, want none", len(got))
	}
	if diff := cmp.Diff([]string{"list", "destroy " + leftover}, sets.Ops()); diff != "" {
		t.Errorf("operations on sets (-want +got):\n%s", diff)
	}
	if !sets.Has(name, "10.244.0.9") {
		t.Error("a client was forgotten")
	}
	for _, n := range foreign {
		if !slices.Contains(sets.Names(), n) {
			t.Errorf("the set %s is gone, which is not ours", n)
		}
	}
}

// TestSetsNothingRemoved: while nothing may be removed, no set is, and what
// comes back knows its clients.
func TestSetsNothingRemoved(t *testing.T) {
	k, sets := fakeHost()
	a := fakeAgentWithSets(t, k, sets, v4())
	web, db := sticky("web", "10.96.0.1", "10.244.0.1:80"), sticky("db", "10.96.0.2", "10.244.0.3:80")
	a.sync(web)
	s, names := snapshot(db)
	d := proxier.Desired{Snapshot: s, Node: everywhere, Changed: append(names, web.Name)}
	if _, err := a.Sync(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	checkSets(t, "incomplete", sets, web, db)
	client := "10.244.0.9"
	sets.Add(setsNamed(web)[0], client)
	s, names = snapshot(web, db)
	if _, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: names}); err != nil {
		t.Fatal(err)
	}
	if !sets.Has(setsNamed(web)[0], client) {
		t.Error("a client was forgotten")
	}
	d.Prune = true
	if _, err := a.Sync(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	checkSets(t, "complete", sets, db)
}

// TestSetRefused: an endpoint whose set the kernel does not make has a list of
// xt_recent, all else is as ever, and the next check mends it.
func TestSetRefused(t *testing.T) {
	k, sets := fakeHost()
	a := fakeAgentWithSets(t, k, sets, v4())
	web, db := sticky("web", "10.96.0.1", "10.244.0.1:80", "10.244.0.2:80"), sticky("db", "10.96.0.2", "10.244.0.3:80")
	bad := setsNamed(web)[0]
	sets.Fault = func(op, name string) error {
		if op == "create" && name == bad {
			return errors.New("max sets reached")
		}
		return nil
	}
	s, names := snapshot(web, db)
	sync := func(d proxier.Desired) proxier.Report {
		t.Helper()
		d.Snapshot, d.Node, d.Prune = s, everywhere, true
		r, err := a.Sync(context.Background(), d)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for range 2 { // again without trying again
		want := []string{"shop/web/tcp: endpoints that remember more than 100 clients: create set " + bad + ": max sets reached"}
		if diff := cmp.Diff(want, sync(proxier.Desired{Changed: names}).Refused); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
		names = nil
	}
	if n := strings.Count(k.Save(), "-m recent"); n != 2 {
		t.Errorf("%d rules with lists, want the two of one endpoint:\n%s", n, k.Save())
	}
	sets.Fault = nil
	if r := sync(proxier.Desired{Verify: true}); len(r.Refused) > 0 || r.Written == 0 {
		t.Errorf("check after the fault = %+v, want it mended", r)
	}
	fresh, freshSets := fakeHost()
	fakeAgentWithSets(t, fresh, freshSets, v4()).sync(web, db)
	if diff := cmp.Diff(fresh.Save(), k.Save()); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// TestSetsUnlisted: sets that cannot be listed are made all the same, and
// leftovers go when they can be.
func TestSetsUnlisted(t *testing.T) {
	k, sets := fakeHost()
	web := sticky("web", "10.96.0.1", "10.244.0.1:80")
	if err := sets.Create(idiom.HashName(endpointPrefix, "leftover")); err != nil {
		t.Fatal(err)
	}
	sets.Fault = func(op, _ string) error {
		if op == "list" {
			return errors.New("no memory")
		}
		return nil
	}
	a := fakeAgentWithSets(t, k, sets, v4())
	s, names := snapshot(web)
	r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: names, Prune: true})
	if err != nil || !slices.Equal(r.Refused, []string{"list sets: no memory"}) || strings.Contains(k.Save(), "-m recent") {
		t.Errorf("Sync() = %+v, %v, want the failure to list, and rules with sets", r, err)
	}
	sets.Fault = nil
	a.syncChanged(s, nil)
	checkSets(t, "listed", sets, web)
}

// TestSetOfReturningEndpoint: an endpoint that went and came back does not know
// the clients that have gone elsewhere meanwhile, even if its set was still
// there.
func TestSetOfReturningEndpoint(t *testing.T) {
	k, sets := fakeHost()
	a := fakeAgentWithSets(t, k, sets, v4())
	two, one := sticky("web", "10.96.0.1", "10.244.0.1:80", "10.244.0.2:80"), sticky("web", "10.96.0.1", "10.244.0.2:80")
	gone := endpointChain(two.Name, two.Endpoints[0].AddrPort)
	a.sync(two)
	sets.Add(gone, "10.244.0.9")
	sets.Fault = func(op, _ string) error { // the kernel frees rules later
		if op == "destroy" {
			return fake.ErrBusy
		}
		return nil
	}
	a.sync(one)
	checkSets(t, "busy", sets, two)
	a.sync(two)
	if sets.Has(gone, "10.244.0.9") {
		t.Error("the endpoint that came back knows a client still")
	}
	a.sync(one)
	sets.Fault = nil
	s, _ := snapshot(one)
	a.syncChanged(s, nil)
	checkSets(t, "not busy any more", sets, one)
}

// TestSetsAndRefusedUnits: a port that the kernel refuses harms no other, and
// the sets that its rules in the kernel name stay.
func TestSetsAndRefusedUnits(t *testing.T) {
	k, sets := fakeHost()
	k.Refuse = func(_ ruleset.ChainKey, r ruleset.Rule) bool {
		return sets.Missing(string(r)) || strings.Contains(string(r), "10.66.0.1:80")
	}
	a := fakeAgentWithSets(t, k, sets, v4())
	web, db := sticky("web", "10.96.0.1", "10.244.0.1:80"), sticky("db", "10.96.0.2", "10.244.0.3:80")
	a.sync(web)
	bad := sticky("web", "10.96.0.1", "10.66.0.1:80")
	s, names := snapshot(bad, db)
	r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: s, Node: everywhere, Changed: names, Prune: true})
	if err != nil || len(r.Refused) != 1 || !strings.HasPrefix(r.Refused[0], "shop/web/tcp: ") {
		t.Fatalf("Sync() = %+v, %v, want shop/web/tcp refused", r, err)
	}
	checkSets(t, "refused", sets, web, bad, db)
	good := sticky("web", "10.96.0.1", "10.244.0.4:80")
	a.sync(good, db)
	checkSets(t, "mended", sets, good, db)
}

// TestCleanSets: what a rule names stays, and is waited for.
func TestCleanSets(t *testing.T) {
	_, sets := fakeHost()
	web := sticky("web", "10.96.0.1", "10.244.0.1:80", "10.244.0.2:80")
	for _, n := range append(setsNamed(web), "OTHER") {
		if err := sets.Create(n); err != nil {
			t.Fatal(err)
		}
	}
	busy := 3
	sets.Fault = func(op, _ string) error {
		if op == "destroy" && busy > 0 {
			busy--
			return fake.ErrBusy
		}
		return nil
	}
	loops := fakeLoops(model.IPv4)
	if err := loops.Create(0); err != nil {
		t.Fatal(err)
	}
	loops.Kernel.Fault = func(op string) error { verb, name, _ := strings.Cut(op, " "); return sets.Fault(verb, name) }
	if err := CleanSets(context.Background(), sets, loops); err != nil {
		t.Fatal(err)
	}
	if got := sets.Names(); !slices.Equal(got, []string{"OTHER"}) {
		t.Errorf("sets %q are left, want OTHER alone", got)
	}
	if loops.In() != nil {
		t.Errorf("the set %s is left", loops.Name())
	}
}
