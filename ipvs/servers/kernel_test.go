// SPDX-License-Identifier: Apache-2.0

package servers_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/ipvs/servers"
)

// needsIPVS skips the test where the kernel has no IPVS.
func needsIPVS(t testing.TB) {
	t.Helper()
	k, err := servers.New(false)
	if errors.Is(err, servers.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
}

// open opens IPVS in a namespace without virtual servers.
func open(t testing.TB, ipv6 bool) (*kerneltest.Host, *servers.Kernel) {
	t.Helper()
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.Legacy, IPv6: ipv6})
	var k *servers.Kernel
	err := h.Enter(func() (err error) { k, err = servers.New(ipv6); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	h.Do("ip", "link", "set", "lo", "up") // without any route, the kernel takes no destination
	return h, k
}

func TestKernelServers(t *testing.T) {
	needsIPVS(t)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			_, k := open(t, ipv6)
			contract(t, world{k, ipv6})
		})
	}
}

// TestKernelNoIPVS: without IPVS, what is missing is named, in one line.
func TestKernelNoIPVS(t *testing.T) {
	k, err := servers.New(false)
	if err == nil {
		k.Close()
		return // which TestKernelServers is for
	}
	text := err.Error()
	if !errors.Is(err, servers.ErrNotSupported) || !strings.Contains(text, "modprobe ip_vs") || strings.Contains(text, "\n") {
		t.Errorf("New() = %v", err)
	}
}

// TestKernelOfOthers: what somebody else has made is listed as it is, and Save
// prints what ipvsadm prints; virtual servers of marks, and of the other family, are
// left out.
func TestKernelOfOthers(t *testing.T) {
	needsIPVS(t)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			h, k := open(t, ipv6)
			w := world{k, ipv6}
			s := servers.Server{Key: w.key(1, servers.TCP, 80), Scheduler: "mh", Flags: servers.HashPort, Persistence: time.Minute}
			ops := servers.Server{Key: w.key(1, servers.UDP, 53), Scheduler: "rr", Flags: servers.OnePacket}
			must(t, k.Create(s), k.Create(ops), k.AddDestination(s.Key, w.dest(1, 1)), k.AddDestination(s.Key, w.dest(2, 0)))
			want := slices.Collect(strings.Lines(servers.Save([]servers.Listed{with(s, w.dest(1, 1), w.dest(2, 0)), with(ops)})))
			slices.Sort(want)
			if diff := cmp.Diff(strings.Join(want, ""), ipvsadm(t, h)); diff != "" {
				t.Errorf("ipvsadm -Sn (-want +got):\n%s", diff)
			}
			must(t, k.Delete(s.Key), k.Delete(ops.Key))
			h.Do("ipvsadm", "-A", "-f", "7", "-s", "rr")
			h.Do("ipvsadm", "-A", "-t", world{nil, !ipv6}.key(1, servers.TCP, 80).AddrPort().String(), "-s", "rr")
			w.check(t)
			mask := "255.255.255.0"
			if ipv6 {
				mask = "64"
			}
			vip := s.AddrPort().String()
			h.Do("ipvsadm", "-A", "-t", vip, "-s", "rr", "-p", "60", "-M", mask)
			h.Do("ipvsadm", "-a", "-t", vip, "-r", w.dest(1, 1).Addr.String(), "-m", "-x", "5")
			h.Do("ipvsadm", "-a", "-t", vip, "-r", netip.AddrPortFrom(w.dest(2, 1).Addr.Addr(), 80).String(), "-g")
			got, err := k.Get(s.Key)
			if err != nil || !got.Altered || len(got.Destinations) != 2 || !got.Destinations[0].Altered || !got.Destinations[1].Altered {
				t.Errorf("Get() = %+v, %v, want all altered", got, err)
			}
			s = got.Server
			must(t, k.Update(s))
			for _, d := range got.Destinations {
				must(t, k.UpdateDestination(s.Key, d.Destination))
			}
			w.check(t, with(s, got.Destinations[0].Destination, got.Destinations[1].Destination))
		})
	}
}

// TestKernelProbe: probing leaves alone what others have where it probes, and removes
// what an earlier process has left there.
func TestKernelProbe(t *testing.T) {
	needsIPVS(t)
	for _, c := range []struct {
		ipv6 bool
		at   string
	}{{false, "198.51.100.0:"}, {true, "[2001:db8:ffff::]:"}} {
		t.Run(fmt.Sprintf("IPv6=%t", c.ipv6), func(t *testing.T) {
			h, k := open(t, c.ipv6)
			h.Do("ipvsadm", "-A", "-t", c.at+"20000", "-s", "rr")
			h.Do("ipvsadm", "-A", "-t", c.at+"20001", "-s", "lc", "-p", "20077") // another one's, with a destination
			h.Do("ipvsadm", "-a", "-t", c.at+"20001", "-r", world{ipv6: c.ipv6}.dest(1, 1).Addr.String(), "-m")
			before := ipvsadm(t, h)
			h.Do("ipvsadm", "-A", "-t", c.at+"20002", "-s", "rr", "-p", "20077")
			got, err := k.Schedulers("none-such", "mh")
			if want := []string{"mh"}; err != nil || !slices.Equal(got, want) {
				t.Errorf("Schedulers() = %q, %v, want %q", got, err, want)
			}
			if diff := cmp.Diff(before, ipvsadm(t, h)); diff != "" {
				t.Errorf("ipvsadm -Sn (-before +after):\n%s", diff)
			}
		})
	}
}

// ipvsadm returns what ipvsadm -Sn prints; it prints destinations in no order.
func ipvsadm(t *testing.T, h *kerneltest.Host) string {
	t.Helper()
	var out strings.Builder
	if err := h.Run(t.Context(), ruleset.Command{Name: "ipvsadm", Args: []string{"-Sn"}, Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	lines := slices.Collect(strings.Lines(out.String()))
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// lab is a namespace in which a virtual server has destinations that answer.
type lab struct {
	t *testing.T
	h *kerneltest.Host
	w world
	s servers.Server
}

// newLab makes it, with n destinations of weight 1. They answer with their number.
func newLab(t *testing.T, ipv6 bool, n int) *lab {
	h, k := open(t, ipv6)
	w := world{k, ipv6}
	l := &lab{t, h, w, w.rr(1, 80)}
	for _, a := range []netip.Addr{l.s.Addr, w.dest(0, 1).Addr.Addr(), w.dest(1, 1).Addr.Addr()} {
		args := []string{"addr", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo"}
		if ipv6 {
			args = append(args, "nodad")
		}
		h.Do("ip", args...)
	}
	must(t, k.Create(l.s))
	for i := range n {
		d := w.dest(i, 1)
		must(t, k.AddDestination(l.s.Key, d))
		l.serve(d.Addr, fmt.Sprint(i))
	}
	return l
}

// serve answers each line on connections with a name.
func (l *lab) serve(addr netip.AddrPort, name string) {
	var ln net.Listener
	must(l.t, l.h.Enter(func() (err error) { ln, err = net.Listen("tcp", addr.String()); return err }))
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for buf := make([]byte, 1); ; {
					if _, err := io.ReadFull(conn, buf); err != nil {
						return
					}
					if _, err := conn.Write([]byte(name)); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// dial connects to the virtual server.
func (l *lab) dial() net.Conn {
	l.t.Helper()
	var conn net.Conn
	must(l.t, l.h.Enter(func() (err error) {
		conn, err = net.DialTimeout("tcp", l.s.AddrPort().String(), 10*time.Second)
		return err
	}))
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// ask returns which destination answers on a connection.
func (l *lab) ask(conn net.Conn) string {
	l.t.Helper()
	buf := make([]byte, 1)
	_, err := conn.Write(buf)
	must(l.t, err, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = io.ReadFull(conn, buf)
	must(l.t, err)
	return string(buf)
}

// destination returns what the kernel says of a destination.
func (l *lab) destination(n int) servers.Status {
	l.t.Helper()
	got, err := l.w.k.Get(l.s.Key)
	must(l.t, err)
	i := slices.IndexFunc(got.Destinations, func(d servers.Status) bool { return d.Addr == l.w.dest(n, 1).Addr })
	return got.Destinations[i]
}

// TestKernelStats: what passes is counted.
func TestKernelStats(t *testing.T) {
	needsIPVS(t)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			l := newLab(t, ipv6, 1)
			l.ask(l.dial())
			var got servers.Listed
			for deadline := time.Now().Add(time.Minute); got.Stats.Conns == 0; { // until the kernel adds it up
				var err error
				if got, err = l.w.k.Get(l.s.Key); err != nil || time.Now().After(deadline) {
					t.Fatalf("Get() = %+v, %v, want a connection", got, err)
				}
			}
			d := l.destination(0)
			if s := got.Stats; s != d.Stats || s.Conns != 1 || s.PacketsIn < 3 || s.PacketsOut < 2 || s.BytesIn < 120 || s.BytesOut < 80 {
				t.Errorf("after a connection, the virtual server's statistics are %+v, its destination's %+v", s, d.Stats)
			}
		})
	}
}

// TestKernelConnections: weight 0 keeps connections and takes no new ones; a change
// of the scheduler keeps connections.
func TestKernelConnections(t *testing.T) {
	needsIPVS(t)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			l := newLab(t, ipv6, 2)
			conns := map[string]net.Conn{}
			for range 2 {
				c := l.dial()
				conns[l.ask(c)] = c
			}
			if len(conns) != 2 {
				t.Fatalf("connections are at %v, want one at each", conns)
			}
			for n := range 2 {
				if d := l.destination(n); d.ActiveConns != 1 || d.InactiveConns != 0 {
					t.Errorf("with a connection, a destination is %+v", d)
				}
			}
			must(t, l.w.k.UpdateDestination(l.s.Key, l.w.dest(0, 0)))
			for range 4 {
				if got := l.ask(l.dial()); got != "1" {
					t.Errorf("a new connection is at %s, which has weight 0", got)
				}
			}
			l.s.Scheduler = "wlc"
			must(t, l.w.k.Update(l.s))
			for name, c := range conns {
				if got := l.ask(c); got != name {
					t.Errorf("a connection has gone from %s to %s", name, got)
				}
			}
			conns["0"].Close()
			for deadline := time.Now().Add(time.Minute); ; { // until the other side has closed it, too
				d := l.destination(0)
				if d.ActiveConns == 0 && d.InactiveConns == 1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("after the connection, the destination is %+v", d)
				}
			}
		})
	}
}

// TestKernelPersistence: a client stays with its destination until that has weight 0.
func TestKernelPersistence(t *testing.T) {
	needsIPVS(t)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			l := newLab(t, ipv6, 2)
			must(t, l.h.Enter(func() error { return os.WriteFile("/proc/sys/net/ipv4/vs/expire_quiescent_template", []byte("1"), 0) }))
			l.s.Persistence = time.Hour
			must(t, l.w.k.Update(l.s))
			first := l.ask(l.dial())
			for range 4 {
				if got := l.ask(l.dial()); got != first {
					t.Errorf("a connection is at %s, the client's first is at %s", got, first)
				}
			}
			n, err := strconv.Atoi(first)
			must(t, err, l.w.k.UpdateDestination(l.s.Key, l.w.dest(n, 0)))
			for range 4 {
				if got := l.ask(l.dial()); got == first {
					t.Errorf("a new connection is at %s, which has weight 0", got)
				}
			}
			if d := l.destination(n); d.ActiveConns != 5 {
				t.Errorf("the connections have gone: %+v", d)
			}
		})
	}
}

// TestKernelMany: all of many virtual servers are listed.
func TestKernelMany(t *testing.T) {
	needsIPVS(t)
	_, k := open(t, false)
	w := world{k, false}
	want := fill(t, w, 500, 10)
	w.check(t, want...)
}

// fill makes virtual servers with destinations.
func fill(t testing.TB, w world, n, each int) (out []servers.Listed) {
	for i := range n {
		s := w.rr(100_000+i, 80)
		var destinations []servers.Destination
		err := w.k.Create(s)
		for j := range each {
			d := w.dest(i*each+j, 1)
			destinations = append(destinations, d)
		}
		if err = errors.Join(err, w.k.AddDestination(s.Key, destinations...)); err != nil {
			t.Fatal(err)
		}
		out = append(out, with(s, destinations...))
	}
	return out
}

// BenchmarkKernel makes and lists many virtual servers of 10 destinations, and
// changes one destination beside them.
func BenchmarkKernel(b *testing.B) {
	needsIPVS(b)
	for _, n := range []int{100, 1000, 10_000} {
		var w world
		bench := func(name string, do func(*testing.B) error) {
			b.Run(fmt.Sprintf("%dx10/%s", n, name), func(b *testing.B) {
				for b.Loop() {
					if err := do(b); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		bench("make", func(inner *testing.B) error {
			inner.StopTimer()
			// A namespace of its own: the kernel looks for each destination among those
			// that have been deleted in the last two minutes (ip_vs_trash_get_dest).
			_, k := open(b, false)
			w = world{k, false}
			inner.StartTimer()
			fill(inner, w, n, 10)
			return nil
		})
		bench("list", func(*testing.B) error {
			all, err := w.k.List()
			if len(all) != n || len(all[n/2].Destinations) != 10 {
				err = errors.Join(err, fmt.Errorf("%d of %d are listed", len(all), n))
			}
			return err
		})
		key, d := w.rr(100_000+n/2, 80).Key, w.dest(0, 1)
		d.Addr = netip.AddrPortFrom(d.Addr.Addr(), 9)
		bench("one", func(*testing.B) error {
			return errors.Join(w.k.AddDestination(key, d), w.k.DeleteDestination(key, d.Addr))
		})
	}
}
