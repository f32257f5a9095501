// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/nftables/fake"
	"fairlead/nftables/nfnetlink"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// inNamespace runs a test in a network namespace of its own.
func inNamespace(t testing.TB, test func()) {
	t.Helper()
	if err := lab.VariantSupported(context.Background(), lab.NFT); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(context.Background(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Client.Do(func() error { test(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// open opens the table of a family in the namespace of the thread.
func open(t testing.TB, f model.Family) *nfnetlink.Kernel {
	t.Helper()
	k, err := nfnetlink.New(Config{Family: f}.table(), TableName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func onKernel(t testing.TB, cfg Config, w Watcher) (*Mode, *nfnetlink.Kernel) {
	k := open(t, cfg.Family)
	return New(cfg, k, w, nil), k
}

func mustSync(t testing.TB, m *Mode, d proxier.Desired) proxier.Report {
	t.Helper()
	r, err := m.Sync(context.Background(), d)
	if err != nil || len(r.Refused) > 0 {
		t.Fatalf("Sync() = %+v, %v", r, err)
	}
	return r
}

// nft runs the command of nftables.
func nft(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var elementLines = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)

// sorted is a table as nft lists it, with elements, sets and chains in order: the
// kernel's is that of its hash tables.
func sorted(listed string) string {
	listed = elementLines.ReplaceAllStringFunc(listed, func(s string) string {
		parts := regexp.MustCompile(`,\s+`).Split(elementLines.FindStringSubmatch(s)[1], -1)
		slices.Sort(parts)
		return "elements = { " + strings.Join(parts, ", ") + " }"
	})
	listed = regexp.MustCompile(`packets \d+ bytes \d+ `).ReplaceAllString(listed, "")
	head, rest, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(listed), "}"), "\n")
	comment := ""
	if first, more, ok := strings.Cut(rest, "\n"); ok && strings.HasPrefix(first, "\tcomment") {
		comment, rest = first+"\n", more
	}
	objects := strings.Split(strings.TrimRight(rest, "\n"), "\n\n")
	for i := range objects {
		objects[i] = strings.TrimRight(objects[i], "\n")
	}
	slices.Sort(objects)
	return head + "\n" + comment + strings.Join(objects, "\n\n") + "\n}\n"
}

// TestKernelGolden: what golden files say is what nft lists, and what it lists it reads.
func TestKernelGolden(t *testing.T) {
	for _, g := range goldens() {
		for _, f := range model.Families() {
			t.Run(g.name+"/"+f.String(), func(t *testing.T) {
				inNamespace(t, func() {
					cfg, node, ports := g.at(f)
					m, _ := onKernel(t, cfg, nil)
					g.tell(m, f)
					s, names := snapshot(ports...)
					d := proxier.Desired{Snapshot: s, Changed: names, Node: node, Prune: true}
					mustSync(t, m, d)
					listed := nft(t, "", "list", "table", cfg.table().String(), TableName)
					if diff := cmp.Diff(sorted(string(readGolden(t, g.file(f)))), sorted(listed)); diff != "" {
						t.Errorf("nft lists something else than the golden file (-golden +listed):\n%s", diff)
					}
					if g.name == "affinity" && f == model.IPv6 {
						return // nft 1.0.6 runs out of registers when it reads what it lists, and aborts
					}
					nft(t, "flush ruleset\n"+listed, "-f", "-")
					if again := nft(t, "", "list", "table", cfg.table().String(), TableName); sorted(again) != sorted(listed) {
						t.Errorf("what nft has read back it lists otherwise:\n%s", cmp.Diff(sorted(listed), sorted(again)))
					}
					// What nft has written has no IDs, but all elements are as they were.
					fresh, _ := onKernel(t, cfg, nil)
					g.tell(fresh, f)
					mustSync(t, fresh, d)
					if got := nft(t, "", "list", "table", cfg.table().String(), TableName); sorted(got) != sorted(listed) {
						t.Errorf("after a repair:\n%s", cmp.Diff(sorted(listed), sorted(got)))
					}
				})
			})
		}
	}
}

// TestKernelRestart: a restart with unchanged Services writes nothing, whatever the
// table has.
func TestKernelRestart(t *testing.T) {
	for _, g := range goldens() {
		for _, f := range model.Families() {
			t.Run(g.name+"/"+f.String(), func(t *testing.T) {
				inNamespace(t, func() {
					cfg, node, ports := g.at(f)
					s, names := snapshot(ports...)
					d := proxier.Desired{Snapshot: s, Changed: names, Node: node, Prune: true, Verify: true}
					m, _ := onKernel(t, cfg, nil)
					g.tell(m, f)
					mustSync(t, m, d)
					again, _ := onKernel(t, cfg, nil)
					g.tell(again, f)
					if r := mustSync(t, again, d); r.Written > 0 || len(r.Repaired) > 0 {
						t.Errorf("a restart wrote %d, repaired %v", r.Written, r.Repaired)
					}
					again.deep = true
					again.known = false
					if r := mustSync(t, again, d); r.Written > 0 {
						t.Errorf("with all elements listed it wrote %d", r.Written)
					}
				})
			})
		}
	}
}

// TestKernelFakeDoesTheSame: the fake accepts and refuses what the kernel does.
func TestKernelFakeDoesTheSame(t *testing.T) {
	set := &table.Set{Name: "s", Key: []table.Type{table.IPv4Addr}}
	data := &table.Set{Name: "m", Key: []table.Type{table.InetProto, table.InetService}, Data: []table.Type{table.IPv4Addr, table.InetService}}
	ranges := &table.Set{Name: "r", Key: []table.Type{table.IPv4Addr, table.InetProto}, Interval: true}
	single := &table.Set{Name: "c", Key: []table.Type{table.IPv4Addr}, Interval: true}
	counting := &table.Set{Name: "n", Key: []table.Type{table.InetProto, table.CTDir}, Counter: true}
	counted := table.Element{Key: string(table.Key(nil).Proto(6).Direction(true)), Comment: "shop/web"}
	key := func(last byte) string { return string(table.Key(nil).Addr(netip.AddrFrom4([4]byte{10, 0, 0, last}))) }
	wide := func(from, to byte) table.Element {
		return table.Element{Key: key(from) + "\x06\x00\x00\x00", End: key(to) + "\x06\x00\x00\x00"}
	}
	elem := func(port uint16, last byte) table.Element {
		return table.Element{Key: string(table.Key(nil).Proto(6).Port(port)), Data: key(last) + "\x00\x50\x00\x00"}
	}
	chain := &table.Chain{Name: "c"}
	in := table.On(table.IPv4).In(set, table.Source(table.IPv4)).Drop()
	add := func(s *table.Set, es ...table.Element) table.Step { return table.AddElements{Set: s, Elements: es} }
	del := func(s *table.Set, es ...table.Element) table.Step { return table.DeleteElements{Set: s, Elements: es} }
	script := [][]table.Step{
		{table.AddSet{Set: set}},
		{table.AddTable{}, table.AddSet{Set: set}, table.AddSet{Set: data}, table.AddSet{Set: ranges}, table.AddSet{Set: single}},
		{table.AddTable{}},
		{table.AddSet{Set: set}},
		{add(set, table.Element{Key: key(1)}), add(data, elem(80, 1))},
		{add(set, table.Element{Key: key(1)}), add(data, elem(80, 1))},
		{add(data, elem(80, 2))},
		{del(data, elem(80, 1)), add(data, elem(80, 2))},
		{del(data, elem(81, 2))},
		{add(data, elem(82, 1)), del(data, elem(81, 2))},
		{del(data, elem(82, 1))},
		{add(ranges, wide(0, 15))},
		{add(ranges, wide(8, 31))},
		{add(ranges, wide(16, 31))},
		{add(single, table.Element{Key: key(0), End: key(15)})},
		{add(single, table.Element{Key: key(16), End: key(255)})},
		{del(single, table.Element{Key: key(0), End: key(15)})},
		{table.AddSet{Set: counting}, add(counting, counted)},
		{del(counting, counted), add(counting, table.Element{Key: counted.Key, Comment: "shop/db"})},
		{add(counting, counted)},
		{table.AddChain{Chain: chain}, table.SetRules{Chain: "c", Rules: []table.Rule{in}}},
		{table.DeleteSet{Name: "s"}},
		{table.SetRules{Chain: "c", Rules: []table.Rule{table.On(table.IPv4).New().Goto("nowhere")}}},
		{table.SetRules{Chain: "c"}, table.DeleteChain{Name: "c"}, table.DeleteSet{Name: "s"}},
		{table.DeleteTable{}, table.AddTable{}, table.AddSet{Set: set}},
		{table.DeleteTable{}},
		{table.DeleteTable{}},
	}
	inNamespace(t, func() {
		k, f := open(t, model.IPv4), &fake.Kernel{Family: table.IPv4, Name: TableName}
		for i, steps := range script {
			a, b := k.Apply(steps), f.Apply(steps)
			if (a == nil) != (b == nil) || a != nil && doubtful(a) != doubtful(b) {
				t.Errorf("step %d: %v: the kernel says %v, the fake %v", i, steps, a, b)
			}
			x, err := k.Read()
			y, _ := f.Read()
			if diff := cmp.Diff(y, x); diff != "" || err != nil {
				t.Fatalf("step %d: read (-fake +kernel): %s %v", i, diff, err)
			}
			if x == nil {
				continue
			}
			for _, s := range []*table.Set{set, data, ranges, single, counting} {
				if x.Sets[s.Name] == "" {
					continue
				}
				var got, want []table.Element
				if err := k.Elements(s, func(e table.Element) { got = append(got, e) }); err != nil {
					t.Fatal(err)
				}
				_ = f.Elements(s, func(e table.Element) { want = append(want, e) })
				table.SortElements(got)
				table.SortElements(want)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("step %d: elements of %s (-fake +kernel): %s", i, s.Name, diff)
				}
			}
		}
	})
}

// TestKernelHeals: what others do to the table is told, and repaired.
func TestKernelHeals(t *testing.T) {
	for name, disturb := range map[string]string{
		"flush ruleset":          "flush ruleset",
		"delete a chain's rules": "flush chain ip fairlead translate",
		"insert a rule":          "insert rule ip fairlead translate drop",
		"an element goes":        "delete element ip fairlead cluster-ips { 10.96.0.10 }",
		"an endpoint goes":       "delete element ip fairlead endpoints { 10.96.0.10 . tcp . 80 . 1 }",
		"a stranger in":          "add element ip fairlead cluster-ips { 192.0.2.1 }",
		"a chain of theirs":      "add chain ip fairlead x",
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, func() {
				cfg := config(model.IPv4)
				k := open(t, model.IPv4)
				watch, err := nfnetlink.NewWatch(k)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- watch.Run(ctx) }()
				defer func() {
					cancel()
					if err := <-done; err != nil {
						t.Error(err)
					}
				}()
				w := watch.Of(k)
				m := New(cfg, k, w, nil)
				web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.5:8080", "10.244.1.5:8080", "10.244.2.5:8080")
				s, names := snapshot(web)
				d := proxier.Desired{Snapshot: s, Changed: names, Node: here(model.IPv4), Prune: true}
				mustSync(t, m, d)
				d.Changed, d.Verify = nil, true
				mustSync(t, m, d) // at first nothing is known
				select {
				case <-w.Wake():
					t.Error("a change of our own is told")
				case <-time.After(50 * time.Millisecond):
				}
				before := nft(t, "", "list", "table", "ip", TableName)
				nft(t, disturb, "-f", "-")
				select {
				case <-w.Wake():
				case <-time.After(5 * time.Second):
					t.Fatal("a change by others is not told")
				}
				if r := mustSync(t, m, d); r.Written == 0 || len(r.Repaired) == 0 {
					t.Errorf("wrote %d, reported %q", r.Written, r.Repaired)
				}
				if diff := cmp.Diff(sorted(before), sorted(nft(t, "", "list", "table", "ip", TableName))); diff != "" {
					t.Errorf("(-before +after):\n%s", diff)
				}
				if r := mustSync(t, m, d); r.Written != 0 {
					t.Errorf("then %d more were written", r.Written)
				}
			})
		})
	}
}

// TestKernelProbe: nothing of the probe stays.
func TestKernelProbe(t *testing.T) {
	inNamespace(t, func() {
		for _, f := range model.Families() {
			open := func(fam table.Family, name string) (Kernel, error) { return nfnetlink.New(fam, name) }
			if err := errors.Join(Probe(f, open), ProbeCounting(f, open)); err != nil {
				t.Error(err)
			}
		}
		if left := nft(t, "", "list", "ruleset"); strings.TrimSpace(left) != "" {
			t.Errorf("the probe leaves %s", left)
		}
	})
}

// many returns ports with endpoints each.
func many(ports, endpoints int) (*model.Snapshot, []model.ServicePortName) {
	var out []*model.ServicePort
	for i := range ports {
		p := &model.ServicePort{
			Name:      portName("shop", fmt.Sprint("svc-", i), "http", model.TCP),
			ClusterIP: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Port: 80, Usable: true, Known: endpoints,
		}
		for j := range endpoints {
			n := i*endpoints + j
			p.Endpoints = append(p.Endpoints, model.Endpoint{
				AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 | byte(n>>16), byte(n >> 8), byte(n)}), 8080), Local: n%100 == 0,
			})
		}
		out = append(out, p)
	}
	return snapshot(out...)
}

// BenchmarkKernelSync measures the first sync, one change and a restart.
func BenchmarkKernelSync(b *testing.B) {
	for _, size := range [][2]int{{100, 10}, {10_000, 10}, {50_000, 10}, {5_000, 50}, {1, 10_000}} {
		s, names := many(size[0], size[1])
		name := fmt.Sprintf("%dx%d", size[0], size[1])
		d := proxier.Desired{Snapshot: s, Changed: names, Node: here(model.IPv4), Prune: true}
		quiet := &suspicion{}
		b.Run(name+"/first", func(b *testing.B) {
			inNamespace(b, func() {
				for range b.N {
					m, k := onKernel(b, config(model.IPv4), quiet)
					mustSync(b, m, d)
					b.StopTimer()
					if err := k.Apply([]table.Step{table.DeleteTable{}}); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		})
		b.Run(name+"/change", func(b *testing.B) {
			inNamespace(b, func() {
				m, _ := onKernel(b, config(model.IPv4), quiet)
				mustSync(b, m, d)
				one := names[len(names)/2]
				whole := s.Get(one)
				less := *whole
				less.Endpoints = whole.Endpoints[1:]
				b.ResetTimer()
				for i := range b.N {
					next := &less
					if i%2 == 1 {
						next = whole
					}
					s := s.With(map[model.ServicePortName]*model.ServicePort{one: next})
					mustSync(b, m, proxier.Desired{Snapshot: s, Changed: []model.ServicePortName{one}, Node: d.Node, Prune: true})
				}
			})
		})
		b.Run(name+"/restart", func(b *testing.B) {
			inNamespace(b, func() {
				m, _ := onKernel(b, config(model.IPv4), quiet)
				mustSync(b, m, d)
				b.ResetTimer()
				for range b.N {
					m, _ := onKernel(b, config(model.IPv4), quiet)
					if r := mustSync(b, m, d); r.Written > 0 {
						b.Fatalf("wrote %d", r.Written)
					}
				}
			})
		})
	}
}

// BenchmarkKernelHostPort measures what it takes for one host port to come or go among
// others.
func BenchmarkKernelHostPort(b *testing.B) {
	for _, n := range []int{100, 5_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			inNamespace(b, func() {
				m, _ := onKernel(b, config(model.IPv4), &suspicion{})
				var all []HostPort
				for i := range n + 1 {
					all = append(all, HostPort{Protocol: model.TCP, Port: uint16(20_000 + i),
						To: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 8080)})
				}
				s, _ := snapshot()
				d := proxier.Desired{Snapshot: s, Node: here(model.IPv4), Prune: true}
				m.SetHostPorts(nil, all[:n])
				mustSync(b, m, d)
				one := all[n:]
				b.ResetTimer()
				for i := range b.N {
					if i%2 == 0 {
						m.SetHostPorts(nil, one)
					} else {
						m.SetHostPorts(one, nil)
					}
					if r := mustSync(b, m, d); r.Written != 1 {
						b.Fatalf("wrote %d elements, want 1", r.Written)
					}
				}
			})
		})
	}
}
