// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead/nftables/fake"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// elements returns the elements of some sets, as nft writes them.
func elements(k *fake.Kernel, names ...string) []string {
	var out []string
	for _, s := range k.Table().Sets {
		for _, e := range k.Table().Elements[s.Name] {
			if slices.Contains(names, s.Name) {
				out = append(out, s.Name+" "+s.ElementText(e))
			}
		}
	}
	slices.Sort(out)
	return out
}

// syncSome hands over no port, and with prune not set is not told all that there is.
func (a *agent) syncSome(prune bool) {
	a.t.Helper()
	r, err := a.Sync(context.Background(), proxier.Desired{Snapshot: model.NewSnapshot(), Node: a.where, Prune: prune})
	if err != nil || len(r.Refused) > 0 {
		a.t.Fatalf("Sync() = %+v, %v", r, err)
	}
}

func want(t *testing.T, when string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", when, got, want)
	}
}

// TestHostPortMoves: one that moves to another pod is two elements, wherever it was.
func TestHostPortMoves(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	all := hostPortsOfPods()
	a.SetHostPorts(nil, all)
	a.sync()
	moved := all[1]
	moved.To = netip.MustParseAddrPort("10.244.0.7:5353")
	moved.Masqueraded = []netip.Prefix{netip.MustParsePrefix("10.244.0.7/32")}
	a.SetHostPorts(all[1:2], []HostPort{moved})
	if r := a.sync(); r.Written != 4 {
		t.Errorf("a host port that moves: %d written, want 4", r.Written)
	}
	want(t, "moved", elements(k, hostPorts), `host-ports tcp . 8080 comment "shop/web" : 10.244.0.5 . 80`, `host-ports udp . 53 comment "shop/dns" : 10.244.0.7 . 5353`)
	a.SetHostPorts(all, nil)
	a.sync()
	want(t, "gone", elements(k, hostPorts, hostPortsOnAddress, hostPortsExcept, hostPortsMasq))
}

// TestSharedByHostPorts: what two host ports need stays until the last of them goes.
func TestSharedByHostPorts(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	all := hostPortsOfPods()
	a.SetHostPorts(nil, all)
	a.sync()
	a.SetHostPorts(all[:1], nil)
	a.sync()
	want(t, "one of two gone", elements(k, hostPortsMasq),
		"host-ports-masqueraded 10.244.0.5 . tcp . 80 . 10.244.0.5", "host-ports-masqueraded 10.244.0.6 . udp . 5353 . 10.244.0.6")
}

// TestAnnexStays: an agent that does not know all yet, or not who is masqueraded, leaves
// what an earlier one has left, and removes it once it does.
func TestAnnexStays(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	sets := []string{hostPorts, hostPortsOnAddress, hostPortsExcept, hostPortsMasq, masqueradedPods, nonMasquerade}
	a.SetHostPorts(nil, hostPortsOfPods())
	pods := PodMasquerade{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Exempt: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	a.SetPodMasquerade(pods)
	a.sync()
	before := elements(k, sets...)

	b := newAgent(t, config(model.IPv4), k)
	b.syncSome(false)
	b.syncSome(false)
	want(t, "nothing is known", elements(k, sets...), before...)
	b.SetHostPorts(nil, hostPortsOfPods()[:1])
	b.syncSome(false)
	want(t, "some are known", elements(k, sets...), before...)
	b.SetHostPorts(hostPortsOfPods()[:1], nil)
	b.syncSome(false)
	want(t, "what may not be removed is gone", elements(k, sets...), before...)
	b.syncSome(true)
	want(t, "all host ports are known", elements(k, sets...), "masqueraded-pods 10.244.0.0/16", "non-masquerade-cidrs 10.0.0.0/8")
	b.SetPodMasquerade(PodMasquerade{})
	b.syncSome(true)
	want(t, "nobody is masqueraded", elements(k, sets...))
}

// TestRangesOverlap: ranges that are in the way go, others stay while nothing may be
// removed.
func TestRangesOverlap(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	wide := PodMasquerade{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.250.0.0/16")}}
	a.SetPodMasquerade(wide)
	a.sync()
	b := newAgent(t, config(model.IPv4), k)
	b.SetPodMasquerade(PodMasquerade{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
	b.syncSome(false)
	want(t, "not all is known", elements(k, masqueradedPods), "masqueraded-pods 10.244.1.0/24", "masqueraded-pods 10.250.0.0/16")
	b.syncSome(true)
	want(t, "all is known", elements(k, masqueradedPods), "masqueraded-pods 10.244.1.0/24")
}

// TestHostPortRefused: one that the kernel does not take harms nothing else, and is tried
// again with the next check.
func TestHostPortRefused(t *testing.T) {
	bad := true
	k := &fake.Kernel{Refuse: func(set string, e table.Element) bool {
		return bad && set == hostPorts && e.Comment == "shop/dns"
	}}
	a := newAgent(t, config(model.IPv4), k)
	a.SetHostPorts(nil, hostPortsOfPods())
	d := proxier.Desired{Snapshot: model.NewSnapshot(), Node: a.where, Prune: true}
	r, err := a.Sync(context.Background(), d)
	if err != nil || len(r.Refused) != 1 || r.Refused[0] != fmt.Sprintf("host port 53/udp: step 0: table.AddElements: %v", unix.EINVAL) {
		t.Errorf("Sync() = %+v, %v", r, err)
	}
	want(t, "the others", elements(k, hostPorts), `host-ports tcp . 8080 comment "shop/web" : 10.244.0.5 . 80`)
	bad = false
	d.Verify = true
	if r, err := a.Sync(context.Background(), d); err != nil || len(r.Refused) > 0 {
		t.Errorf("Sync() = %+v, %v", r, err)
	}
	if got := elements(k, hostPorts); len(got) != 2 {
		t.Errorf("once the kernel takes it: %q", got)
	}
}

// TestAdoptedHostPorts: where clients could send UDP to by host ports is told.
func TestAdoptedHostPorts(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	on := HostPort{HostIP: netip.MustParseAddr("192.0.2.11"), Protocol: model.UDP, Port: 54, To: netip.MustParseAddrPort("10.244.0.6:53")}
	a.SetHostPorts(nil, append(hostPortsOfPods(), on))
	a.sync()
	b := newAgent(t, config(model.IPv4), k)
	b.sync()
	if got := fmt.Sprint(b.AdoptedUDP()); got != "[invalid AddrPort 192.0.2.11:54]" {
		t.Errorf("got %s", got)
	}
	if got := b.AdoptedUDP(); len(got) != 2 || got[0].Port() != 53 {
		t.Errorf("got %v", got)
	}
}
