// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// removalCase is a port that loses endpoints.
type removalCase struct {
	name string
	cfg  RenderConfig
	port *model.ServicePort
	sets bool
}

func removalCases() []removalCase {
	four, six := many(v4(), 4), many(v6(), 4)
	here := func(p *model.ServicePort) { // all but the last are on this node
		p.Endpoints = slices.Clone(p.Endpoints)
		for i := range p.Endpoints[1:] {
			p.Endpoints[i].Local = true
		}
		p.LocalEndpoints = slices.DeleteFunc(slices.Clone(p.Endpoints), func(e model.Endpoint) bool { return !e.Local })
	}
	internal := func(p *model.ServicePort) { here(p); p.InternalTrafficLocal, p.Endpoints = true, nil }
	external := func(p *model.ServicePort) { here(p); p.ExternalTrafficLocal = true }
	udp := func(p *model.ServicePort) { p.Name.Protocol = model.UDP }
	neighbours, cidrs, bridge := v4(), v4(), v4()
	neighbours.MasqueradeNeighbours = true
	cidrs.PodCIDRs = append(cidrs.PodCIDRs, netip.MustParsePrefix("10.245.0.0/16"))
	bridge.PodCIDRs, bridge.PodInterface = nil, "cni+"
	return []removalCase{
		{name: "cluster IP", cfg: v4(), port: four},
		{name: "cluster IP of IPv6", cfg: v6(), port: six},
		{name: "UDP", cfg: v4(), port: with(four, udp)},
		{name: "affinity by lists", cfg: v4(), port: with(four, affinity)},
		{name: "affinity by lists of IPv6", cfg: v6(), port: with(six, affinity)},
		{name: "affinity by sets", cfg: v4(), port: with(four, affinity), sets: true},
		{name: "affinity by sets of IPv6", cfg: v6(), port: with(six, affinity), sets: true},
		{name: "node port", cfg: v4(), port: with(four, nodePort)},
		{name: "internal policy Local", cfg: v4(), port: with(four, internal)},
		{name: "external policy Local", cfg: v4(), port: with(four, nodePort, loadBalancer, external, healthCheck)},
		{name: "external policy Local and affinity by sets", cfg: v4(), port: with(four, nodePort, external, affinity), sets: true},
		{name: "source ranges", cfg: v4(), port: with(four, loadBalancer, ranges("192.0.2.0/25", "198.51.100.0/24"))},
		{name: "neighbours are masqueraded", cfg: neighbours, port: with(four, here, nodePort)},
		{name: "several pod CIDRs", cfg: cidrs, port: with(four, nodePort, external)},
		{name: "pods by their interface", cfg: bridge, port: with(four, nodePort, external)},
		{name: "groups", cfg: v4(), port: many(v4(), 130)},
		{name: "groups of IPv6 and affinity by sets", cfg: v6(), port: with(many(v6(), 130), affinity), sets: true},
		{name: "groups without comments", cfg: v4(), port: many(v4(), 1010)},
	}
}

// less returns the port without one endpoint.
func (c removalCase) less() *model.ServicePort {
	gone := slices.Concat(c.port.Endpoints, c.port.LocalEndpoints)[1].AddrPort
	is := func(e model.Endpoint) bool { return e.AddrPort == gone }
	return with(c.port, func(p *model.ServicePort) {
		p.Endpoints = slices.DeleteFunc(slices.Clone(p.Endpoints), is)
		p.LocalEndpoints = slices.DeleteFunc(slices.Clone(p.LocalEndpoints), is)
	})
}

// none returns the port without endpoints.
func (c removalCase) none() *model.ServicePort {
	return with(c.port, func(p *model.ServicePort) { p.Endpoints, p.LocalEndpoints, p.Usable = nil, nil, false })
}

// want returns the rules of a new agent, in the order in which dumps are
// compared.
func (c removalCase) want(t *testing.T, ports ...*model.ServicePort) string {
	t.Helper()
	k, sets := fakeHost()
	if c.sets {
		fakeAgentWithSets(t, k, sets, c.cfg).sync(ports...)
	} else {
		fakeAgent(t, k, c.cfg).sync(ports...)
	}
	d, err := ruleset.Parse(strings.NewReader(k.Save()))
	if err != nil {
		t.Fatal(err)
	}
	return ordered(d).String()
}

// recorder keeps what restore commands are fed.
type recorder struct {
	*kerneltest.Host

	mu  sync.Mutex // commands overlap
	fed strings.Builder
	// failed are the errors of all commands.
	failed []error
}

// Run implements ruleset.Exec.
func (r *recorder) Run(ctx context.Context, c ruleset.Command) error {
	var fed strings.Builder
	if strings.HasSuffix(c.Name, "-restore") {
		c.Stdin = io.TeeReader(c.Stdin, &fed)
	}
	err := r.Host.Run(ctx, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fed.WriteString(fed.String())
	if err != nil {
		r.failed = append(r.failed, err)
	}
	return err
}

// added returns the rules of a table that have been written since the last call.
func (r *recorder) added(table ruleset.Table) []string {
	var out []string
	in := false
	for line := range strings.Lines(r.fed.String()) {
		if strings.HasPrefix(line, "*") {
			in = strings.TrimSpace(line[1:]) == string(table)
		}
		if in && (strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, "-I ")) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	r.fed.Reset()
	return out
}

// TestKernelRemovals: on the nft variant what goes from table nat is deleted by
// the text of its rules, and the kernel finds each. What is left are the rules of
// a new agent, but for the odds of the endpoints until they are settled.
func TestKernelRemovals(t *testing.T) {
	for _, tt := range removalCases() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := kerneltest.Setup{Variant: ruleset.NFT, IPv6: tt.cfg.Family == model.IPv6}
			r := &recorder{Host: kerneltest.New(t, s)}
			var sets Sets
			if tt.sets {
				sets = setsIn(r.Host, s)
			}
			a := newAgent(t, r, s.Commands(), s.Variant, tt.cfg, sets, loopsIn(r.Host, s))
			for _, step := range []struct {
				name      string
				ports     []*model.ServicePort
				settle    bool
				writes    bool // to table nat
				unsettled bool
			}{
				{name: "all endpoints", ports: []*model.ServicePort{tt.port}, writes: true},
				{name: "one less", ports: []*model.ServicePort{tt.less()}, unsettled: true},
				{name: "settled", ports: []*model.ServicePort{tt.less()}, settle: true, writes: true},
				{name: "no endpoints", ports: []*model.ServicePort{tt.none()}},
				{name: "all again", ports: []*model.ServicePort{tt.port}, writes: true},
				{name: "no Service"},
			} {
				snap, _ := snapshot(step.ports...)
				report, err := a.Sync(t.Context(), proxier.Desired{
					Snapshot: snap, Node: everywhere, Prune: true, Settle: step.settle, Changed: []model.ServicePortName{tt.port.Name},
				})
				if err != nil || len(report.Refused)+len(r.failed) > 0 || report.Unsettled > 0 != step.unsettled {
					t.Fatalf("%s: Sync() = %+v, %v, failed: %v", step.name, report, err, r.failed)
				}
				if added := r.added(ruleset.NAT); len(added) > 0 != step.writes {
					t.Errorf("%s: %d rules of table nat are written, first of all %q", step.name, len(added), slices.Concat(added, []string{""})[0])
				}
				want, got := tt.want(t, step.ports...), ordered(r.Save(s)).String()
				if step.unsettled {
					want, got = anyOdds.ReplaceAllString(want, ""), anyOdds.ReplaceAllString(got, "")
				}
				if diff := gocmp.Diff(want, got); diff != "" {
					t.Errorf("%s: rules (-want +kernel):\n%.4000s", step.name, diff)
				}
			}
		})
	}
}
