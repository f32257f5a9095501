// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/nftables/fake"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

func TestSyncAgain(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.5:8080", "10.244.1.5:8080", "10.244.2.5:8080")
	a.sync(web)
	n := k.Applied
	if r := a.sync(web); r.Written != 0 || k.Applied != n {
		t.Errorf("a second Sync wrote %d", r.Written)
	}
	b := newAgent(t, config(model.IPv4), k)
	if r := b.sync(web); r.Written != 0 || k.Applied != n {
		t.Errorf("after a restart, Sync wrote %d: %v", r.Written, k.Last)
	}
}

// TestOneChange: an endpoint that comes or goes is a few elements, whatever its Service
// and however many others there are.
func TestOneChange(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	s, names := many(500, 10)
	a.syncChanged(s, names)
	for _, tc := range []struct {
		name   string
		change func(p *model.ServicePort)
		want   int
	}{
		{"one goes", func(p *model.ServicePort) { p.Endpoints = p.Endpoints[1:] }, 3}, // its slot, the last one's, and the move
		{"one comes", func(p *model.ServicePort) {
			p.Endpoints = append(slices.Clone(p.Endpoints), model.Endpoint{AddrPort: netip.MustParseAddrPort("10.250.0.1:8080")})
		}, 1},
		{"as many as to be of another class", func(p *model.ServicePort) { p.Endpoints = p.Endpoints[:8] }, 2 + 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := names[7]
			next := *s.Get(name)
			tc.change(&next)
			rules := k.Table()
			r := a.syncChanged(s.With(map[model.ServicePortName]*model.ServicePort{name: &next}), []model.ServicePortName{name})
			if extra := len(k.Table().Sets) - len(rules.Sets); extra == 0 && r.Written != tc.want {
				t.Errorf("wrote %d, want %d: %v", r.Written, tc.want, k.Last)
			}
			a.syncChanged(s, []model.ServicePortName{name})
		})
	}
}

// TestRefused: a port that the kernel does not take harms no other, is reported, and is
// tried again when it changes.
func TestRefused(t *testing.T) {
	bad := port(portName("shop", "bad", "", model.TCP), "10.96.0.66", 80, "10.244.1.1:80")
	good := port(portName("shop", "good", "", model.TCP), "10.96.0.10", 80, "10.244.1.1:80")
	more := port(portName("shop", "more", "", model.TCP), "10.96.0.11", 80, "10.244.1.1:80")
	k := &fake.Kernel{Refuse: func(set string, e table.Element) bool {
		return set == "endpoints" && strings.HasPrefix(e.Key, "\x0a\x60\x00\x42") && e.Data[7] == 0 && e.Data[5] == 80
	}}
	a := newAgent(t, config(model.IPv4), k)
	sync := func(want int, ports ...*model.ServicePort) {
		t.Helper()
		s, names := snapshot(ports...)
		r, err := a.Sync(t.Context(), proxier.Desired{Snapshot: s, Changed: names, Node: a.where, Prune: true})
		if err != nil || len(r.Refused) != want {
			t.Fatalf("Sync() = %+v, %v, want %d refused", r, err, want)
		}
		if got := len(k.Table().Elements["endpoints"]); got != len(ports)-want {
			t.Errorf("%d endpoints, want %d", got, len(ports)-want)
		}
	}
	sync(1, good, bad)
	sync(1, good, bad, more)
	fixed := port(bad.Name, "10.96.0.66", 80, "10.244.1.1:81")
	sync(0, good, fixed, more)
}

// TestUniform: each endpoint is as likely as the others, by the slots and the rules that
// there are.
func TestUniform(t *testing.T) {
	for n := 1; n <= 130; n++ {
		slots := slotsFor(n)
		// A slot of all is tried so often, then one of the lower half.
		miss, chance := 1.0, make([]float64, n)
		attempts := 1
		if slots > 2 {
			attempts = tries
		}
		for range attempts {
			for i := range n {
				chance[i] += miss / float64(slots)
			}
			miss *= 1 - float64(n)/float64(slots)
		}
		if slots > 2 {
			for i := range slots / 2 {
				chance[i] += miss / float64(slots/2)
			}
		} else if miss > 0 {
			t.Errorf("%d endpoints: a connection may have none", n)
		}
		for i, c := range chance {
			if c*float64(n) < 0.995 || c*float64(n) > 1.005 {
				t.Errorf("%d endpoints: number %d has %.4f of its share", n, i, c*float64(n))
			}
		}
	}
}

// TestForgottenClients: what is remembered of an endpoint that goes is removed, and
// nothing else.
func TestForgottenClients(t *testing.T) {
	k := &fake.Kernel{}
	a := newAgent(t, config(model.IPv4), k)
	sticky := func(p *model.ServicePort) { p.AffinityTimeout = time.Hour }
	web := with(port(portName("shop", "web", "", model.TCP), "10.96.0.10", 80, "10.244.1.1:80", "10.244.1.2:80"), sticky)
	a.sync(web)
	client := func(n byte, ep string) table.Element {
		return table.Element{
			Key:  string(table.Key(nil).Addr(netip.AddrFrom4([4]byte{192, 0, 2, n}))) + string(places(web)[0].key()),
			Data: string(endpointData(netip.MustParseAddrPort(ep))),
		}
	}
	set := a.render.allSets()[slices.IndexFunc(a.render.allSets(), func(s *table.Set) bool { return s.Name == affinity })]
	if err := k.Disturb(table.AddElements{Set: set, Elements: []table.Element{client(1, "10.244.1.1:80"), client(2, "10.244.1.2:80")}}); err != nil {
		t.Fatal(err)
	}
	a.sync(with(port(web.Name, "10.96.0.10", 80, "10.244.1.2:80", "10.244.1.3:80"), sticky))
	if got, want := k.Table().Elements[affinity], []table.Element{client(2, "10.244.1.2:80")}; !slices.Equal(got, want) {
		t.Errorf("remembered are %v, want %v", got, want)
	}
}

// TestProbe: what the kernel cannot do is named.
func TestProbe(t *testing.T) {
	for _, tc := range []struct {
		name string
		lack func(table.Step) bool
		want string
	}{
		{"nothing lacks", func(table.Step) bool { return false }, ""},
		{"no nf_tables", func(table.Step) bool { return true }, "CONFIG_NF_TABLES"},
		{"no ranges of several values", func(s table.Step) bool {
			add, ok := s.(table.AddSet)
			return ok && add.Interval && len(add.Key) > 1
		}, "source-ranges"},
		{"no masquerading", func(s table.Step) bool {
			set, ok := s.(table.SetRules)
			return ok && slices.ContainsFunc(set.Rules, func(r table.Rule) bool { return strings.Contains(r.Text, "masquerade fully-random") })
		}, "masquerade fully-random"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Probe(model.IPv4, func(table.Family, string) (Kernel, error) { return lacking{lack: tc.lack}, nil })
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Probe() = %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// TestProbeCounting: a kernel without sets that count has all else.
func TestProbeCounting(t *testing.T) {
	open := func(table.Family, string) (Kernel, error) {
		return lacking{lack: func(s table.Step) bool {
			add, ok := s.(table.AddSet)
			return ok && add.Counter
		}}, nil
	}
	const want = "counting what Services carry needs sets that the kernel does not have: traffic "
	if err := ProbeCounting(model.IPv4, open); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("ProbeCounting() = %v, want %q", err, want)
	}
	if err := Probe(model.IPv4, open); err != nil {
		t.Error(err)
	}
}

// lacking is a kernel that does not take some steps.
type lacking struct {
	Kernel
	lack func(table.Step) bool
}

func (l lacking) Apply(steps []table.Step) error {
	if slices.ContainsFunc(steps, l.lack) {
		return unix.EOPNOTSUPP
	}
	return nil
}
