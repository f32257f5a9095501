// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
	"fairlead/nftables/nfnetlink"
	"fairlead/nftables/table"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// on runs a test in a namespace.
func on(t *testing.T, ns *lab.NS, test func()) {
	t.Helper()
	if err := ns.Do(func() error { test(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestKernelCounting: each packet of a connection to a Service is counted once, wherever it
// comes from and goes to, and each connection once. Neither other changes nor a restart
// begin anew.
func TestKernelCounting(t *testing.T) {
	for _, err := range []error{lab.Supported(t.Context()), lab.VariantSupported(t.Context(), lab.NFT)} {
		if errors.Is(err, lab.ErrNotSupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range model.Families() {
		t.Run(f.String(), func(t *testing.T) { countIn(t, f) })
	}
}

// countingLab is a lab whose client reaches Services.
func countingLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Config{Pods: 2, ClientRoutes: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// checkCounts checks what Services of UDP have carried, by the number of requests, and that
// "web/http", which had five connections, has carried about what these take.
func checkCounts(t *testing.T, when string, got map[string]traffic.Counts, want map[string]uint64, headers uint64) {
	t.Helper()
	for name, n := range want {
		c := got[name]
		answers := c.BytesOut // which have a name in them
		c.BytesOut = 0
		if w := (traffic.Counts{Connections: n, PacketsIn: n, PacketsOut: n, BytesIn: n * (headers + uint64(len("hello\n")))}); c != w {
			t.Errorf("%s: %s has %+v, want %+v", when, name, c, w)
		}
		if answers < n*(headers+10) || answers > n*(headers+100) {
			t.Errorf("%s: %d bytes in %d answers of %s", when, answers, n, name)
		}
	}
	// SYN, ACK and FIN at least, SYN-ACK and the greeting.
	if c := got["web/http"]; c.Connections != 5 || c.PacketsIn < 15 || c.PacketsOut < 10 || c.BytesIn < 15*40 || c.BytesOut < 10*40 || c.PacketsIn > 60 {
		t.Errorf("%s: TCP has %+v", when, c)
	}
}

// checkPlain checks that an agent that does not count leaves a table as if nobody ever had.
func checkPlain(t *testing.T, cfg Config, d proxier.Desired) {
	t.Helper()
	plain, k := onKernel(t, cfg, nil)
	mustSync(t, plain, d)
	after := nft(t, "", "list", "table", cfg.table().String(), TableName)
	if err := k.Apply([]table.Step{table.DeleteTable{}}); err != nil {
		t.Fatal(err)
	}
	fresh, _ := onKernel(t, cfg, nil)
	mustSync(t, fresh, d)
	if diff := cmp.Diff(sorted(nft(t, "", "list", "table", cfg.table().String(), TableName)), sorted(after)); diff != "" {
		t.Errorf("without the flag (-never with it +after):\n%s", diff)
	}
}

func countIn(t *testing.T, f model.Family) {
	l := countingLab(t)
	const answers = 8080
	node, pods := l.Nodes[0], l.Nodes[0].Pods
	for ns, addr := range map[*lab.NS]netip.Addr{pods[0]: pods[0].Addr(f), node.NS: node.Addr(f)} {
		if _, err := ns.Echo(t.Context(), ns.Label, netip.AddrPortFrom(addr, answers)); err != nil {
			t.Fatal(err)
		}
	}
	vip := func(n int) netip.Addr {
		if f == model.IPv6 {
			return netip.MustParseAddr(fmt.Sprint("fd00:10:96::", n))
		}
		return netip.MustParseAddr(fmt.Sprint("10.96.0.", n))
	}
	udp := func(ns, service string, n int, at netip.Addr) *model.ServicePort {
		p := &model.ServicePort{Name: portName(ns, service, "dns", model.UDP), ClusterIP: vip(n), Port: 53, Usable: true, Known: 1}
		p.Endpoints = []model.Endpoint{{AddrPort: netip.AddrPortFrom(at, answers), Local: true}}
		return p
	}
	web, self, other := udp("shop", "web", 10, pods[0].Addr(f)), udp("shop", "self", 11, node.Addr(f)), udp("bank", "other", 12, pods[0].Addr(f))
	tcp := *web
	tcp.Name = portName("shop", "web", "http", model.TCP)
	web.NodePort, other.NodePort = 30053, 30054
	cfg := Config{Family: f, Counting: true, MasqueradeNeighbours: true, PodCIDRs: []netip.Prefix{node.PodCIDR(f)}}
	s, names := snapshot(web, self, other, &tcp)
	d := proxier.Desired{Snapshot: s, Changed: names, Prune: true, Verify: true, Node: proxier.NodeState{
		NodePorts: proxier.NodePorts{All: true}, Addrs: []netip.Addr{node.Addr(f)}, IP: node.Addr(f),
	}}
	var m *Mode
	var tr *Traffic
	start := func() (r proxier.Report) {
		on(t, node.NS, func() {
			m, _ = onKernel(t, cfg, nil)
			tr = NewTraffic(m, rosterOf("shop", 9), func() (Counters, error) { return nfnetlink.New(cfg.table(), TableName) })
			r = mustSync(t, m, d)
			if err := tr.Follow(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		})
		return r
	}
	start()
	ports := lab.NewPorts(20000, 29999) // else some of the connections would be the same again
	ask := func(from *lab.NS, network string, to netip.Addr, port uint16, times int) {
		t.Helper()
		p := lab.Probe{From: from, Network: network, To: netip.AddrPortFrom(to, port), Ports: ports}
		for range times {
			if r := p.Once(t.Context()); r.Outcome != lab.Answered {
				t.Fatalf("%s: %s", p, r)
			}
		}
	}
	read := func() (got map[string]traffic.Counts) {
		t.Helper()
		on(t, node.NS, func() { got = sums(t, tr) })
		return got
	}
	ask(pods[1], "udp", vip(10), 53, 1)
	ask(l.Client, "udp", vip(10), 53, 2)
	ask(node.NS, "udp", vip(10), 53, 4)
	ask(l.Client, "udp", node.Addr(f), 30053, 8)
	ask(node.NS, "udp", node.Addr(f), 30053, 16)
	ask(node.NS, "udp", vip(11), 53, 32)
	ask(l.Client, "udp", vip(11), 53, 64)
	ask(l.Client, "udp", vip(12), 53, 128)
	ask(l.Client, "udp", node.Addr(f), 30054, 256)
	ask(l.Client, "udp", node.Addr(f), answers, 1) // which is no Service
	ask(l.Client, "tcp", vip(10), 53, 5)

	headers := uint64(28)
	if f == model.IPv6 {
		headers = 48
	}
	want := map[string]uint64{"web/dns": 1 + 2 + 4 + 8 + 16, "self/dns": 32 + 64, "/": 128 + 256}
	check := func(when string) {
		t.Helper()
		checkCounts(t, when, read(), want, headers)
	}
	check("at first")

	more := *web
	more.Endpoints = append(slices.Clone(more.Endpoints), model.Endpoint{AddrPort: netip.AddrPortFrom(pods[1].Addr(f), answers)})
	d.Snapshot, d.Changed = s.With(map[model.ServicePortName]*model.ServicePort{web.Name: &more}), []model.ServicePortName{web.Name}
	on(t, node.NS, func() { mustSync(t, m, d) })
	check("another endpoint")
	d.Changed = names
	if r := start(); r.Written > 0 {
		t.Errorf("a restart wrote %d", r.Written)
	}
	check("after a restart")

	cfg.Counting, d.Settle = false, true
	on(t, node.NS, func() { checkPlain(t, cfg, d) })
}

// BenchmarkKernelCountedPacket measures a request and its answer, of one packet each, through
// a Service that is not counted, one that is by itself, and one of the others.
func BenchmarkKernelCountedPacket(b *testing.B) {
	for name, selected := range map[string]string{"not counted": "", "by itself": "shop", "with others": "bank"} {
		b.Run(name, func(b *testing.B) {
			inNamespace(b, func() {
				server, err := net.ListenPacket("udp4", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				defer server.Close()
				at := server.LocalAddr().(*net.UDPAddr).AddrPort()
				web := &model.ServicePort{Name: portName("shop", "web", "", model.UDP), ClusterIP: netip.MustParseAddr("127.96.0.10"), Port: 53, Usable: true, Known: 1,
					Endpoints: []model.Endpoint{{AddrPort: at, Local: true}}}
				cfg := config(model.IPv4)
				cfg.Counting = selected != ""
				m, _ := onKernel(b, cfg, nil)
				if cfg.Counting {
					NewTraffic(m, rosterOf(selected, 9), nil)
				}
				s, names := snapshot(web)
				mustSync(b, m, proxier.Desired{Snapshot: s, Changed: names, Node: here(model.IPv4), Prune: true})
				client, err := net.Dial("udp4", "127.96.0.10:53")
				if err != nil {
					b.Fatal(err)
				}
				defer client.Close()
				buf := make([]byte, 64)
				before := cpuTime(b)
				for b.Loop() {
					if _, err := client.Write(buf[:16]); err != nil {
						b.Fatal(err)
					}
					_, from, err := server.ReadFrom(buf)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := server.WriteTo(buf[:16], from); err != nil {
						b.Fatal(err)
					}
					if _, err := client.Read(buf); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
			})
		})
	}
}

// cpuTime is what the process has had of the CPU, which what else runs disturbs less.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkKernelReadCounted measures a reading of what ports have carried.
func BenchmarkKernelReadCounted(b *testing.B) {
	for _, ports := range []int{100, 10_000} {
		b.Run(fmt.Sprint(ports), func(b *testing.B) {
			inNamespace(b, func() {
				cfg := config(model.IPv4)
				cfg.Counting = true
				m, _ := onKernel(b, cfg, nil)
				tr := NewTraffic(m, rosterOf("shop", ports), func() (Counters, error) { return nfnetlink.New(cfg.table(), TableName) })
				s, names := many(max(ports, 10_000), 1)
				d := proxier.Desired{Snapshot: s, Changed: names, Node: here(model.IPv4), Prune: true}
				mustSync(b, m, d)
				if err := tr.Follow(b.Context(), d); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					n := 0
					if err := tr.Read(b.Context(), func(traffic.Sample) { n++ }); err != nil || n < 3*ports {
						b.Fatal(n, err)
					}
				}
			})
		})
	}
}
