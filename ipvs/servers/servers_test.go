// SPDX-License-Identifier: Apache-2.0

package servers_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/ipvs/servers"
	"fairlead/ipvs/servers/fake"
)

// kernel is what both the kernel and the fake can do.
type kernel interface {
	List() ([]servers.Listed, error)
	Get(servers.Key) (servers.Listed, error)
	Create(servers.Server) error
	Update(servers.Server) error
	Delete(servers.Key) error
	AddDestination(servers.Key, ...servers.Destination) error
	UpdateDestination(servers.Key, servers.Destination) error
	DeleteDestination(servers.Key, netip.AddrPort) error
	Timeouts() (servers.Timeouts, error)
	SetTimeouts(servers.Timeouts) error
	Schedulers(names ...string) ([]string, error)
}

// addr returns address n of the family.
func addr(ipv6 bool, n int) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
	}
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// world is one family of a kernel without virtual servers.
type world struct {
	k    kernel
	ipv6 bool
}

// key returns the key of a virtual server.
func (w world) key(n int, p servers.Protocol, port uint16) servers.Key {
	return servers.Key{Addr: addr(w.ipv6, n), Protocol: p, Port: port}
}

// rr returns a virtual server that is like most.
func (w world) rr(n int, port uint16) servers.Server {
	return servers.Server{Key: w.key(n, servers.TCP, port), Scheduler: "rr"}
}

// dest returns a destination of a weight.
func (w world) dest(n int, weight int) servers.Destination {
	return servers.Destination{Addr: netip.AddrPortFrom(addr(w.ipv6, 1000+n), 8080), Weight: weight}
}

// check checks what the kernel has.
func (w world) check(t *testing.T, want ...servers.Listed) {
	t.Helper()
	got, err := w.k.List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(servers.Save(want), servers.Save(got)); diff != "" {
		t.Errorf("List() (-want +got):\n%s", diff)
	}
	for _, l := range got {
		one, err := w.k.Get(l.Key)
		if err != nil || servers.Save([]servers.Listed{one}) != servers.Save([]servers.Listed{l}) {
			t.Errorf("Get(%s) = %+v, %v, want %+v", l.Key, one, err, l)
		}
		i := slices.IndexFunc(want, func(v servers.Listed) bool { return v.Key == l.Key })
		if l.Altered || i < 0 || l.Server != want[i].Server {
			t.Errorf("%s is listed as %+v", l.Key, l.Server)
		}
		for _, d := range l.Destinations {
			if d.Altered || d.ActiveConns+d.InactiveConns > 0 || d.Stats != (servers.Stats{}) {
				t.Errorf("%s is listed as %+v", l.Key, d)
			}
		}
	}
}

// with returns a virtual server with destinations, as they are to be listed.
func with(s servers.Server, destinations ...servers.Destination) servers.Listed {
	out := servers.Listed{Server: s}
	for _, d := range destinations {
		out.Destinations = append(out.Destinations, servers.Status{Destination: d})
	}
	return out
}

// wantErr checks that an operation fails, nil being for any reason.
func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// contract is what is expected of the kernel, and of the fake. Each part removes
// what it has made.
func contract(t *testing.T, w world) {
	for _, part := range []struct {
		name string
		run  func(*testing.T, world)
	}{
		{"what is not there", absent}, {"virtual servers", everyServer}, {"changes", changes}, {"destinations", destinations}, {"many destinations", manyDestinations},
		{"the other family", otherFamily}, {"timeouts", timeouts}, {"schedulers", schedulers},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.run(t, w)
			w.check(t)
		})
	}
}

func absent(t *testing.T, w world) {
	s := w.rr(1, 80)
	_, err := w.k.Get(s.Key)
	wantErr(t, "Get", err, servers.ErrNoServer)
	wantErr(t, "Update", w.k.Update(s), servers.ErrNoServer)
	wantErr(t, "Delete", w.k.Delete(s.Key), servers.ErrNoServer)
	wantErr(t, "AddDestination", w.k.AddDestination(s.Key, w.dest(1, 1)), servers.ErrNoServer)
	wantErr(t, "UpdateDestination", w.k.UpdateDestination(s.Key, w.dest(1, 1)), servers.ErrNoServer)
	wantErr(t, "DeleteDestination", w.k.DeleteDestination(s.Key, w.dest(1, 1).Addr), servers.ErrNoServer)
}

// everyServer makes virtual servers of all kinds beside each other.
func everyServer(t *testing.T, w world) {
	var all []servers.Listed
	for _, s := range []servers.Server{
		{Key: w.key(1, servers.TCP, 80), Scheduler: "rr"},
		{Key: w.key(1, servers.UDP, 80), Scheduler: "wrr"},
		{Key: w.key(1, servers.UDP, 53), Scheduler: "rr", Flags: servers.OnePacket},
		{Key: w.key(1, servers.SCTP, 80), Scheduler: "lc"},
		{Key: w.key(1, servers.TCP, 65535), Scheduler: "sh", Flags: servers.HashPort},
		{Key: w.key(2, servers.TCP, 80), Scheduler: "mh", Flags: servers.HashFallback | servers.HashPort},
		{Key: w.key(3, servers.TCP, 80), Scheduler: "wlc", Flags: servers.HashPort},
		{Key: w.key(4, servers.TCP, 80), Scheduler: "rr", Persistence: 3 * time.Hour},
		{Key: w.key(5, servers.TCP, 80), Scheduler: "mh", Persistence: 24 * time.Hour, Flags: servers.HashFallback},
	} {
		must(t, w.k.Create(s))
		wantErr(t, "Create once more", w.k.Create(s), servers.ErrExists)
		all = append(all, with(s))
		w.check(t, all...)
	}
	for _, l := range all {
		must(t, w.k.Delete(l.Key))
	}
}

// changes updates a virtual server with destinations.
func changes(t *testing.T, w world) {
	s, other := w.rr(1, 80), w.rr(1, 81)
	must(t, w.k.Create(s), w.k.Create(other), w.k.AddDestination(s.Key, w.dest(1, 1)), w.k.AddDestination(s.Key, w.dest(2, 5)))
	for _, change := range []func(){
		func() { s.Scheduler = "wlc" },
		func() { s.Persistence = 10 * time.Second },
		func() { s.Persistence, s.Flags = 20*time.Second, servers.HashPort },
		func() { s.Scheduler, s.Persistence, s.Flags = "mh", 0, servers.HashFallback },
		func() { s.Scheduler, s.Flags = "rr", 0 },
	} {
		change()
		must(t, w.k.Update(s), w.k.Update(s))
		w.check(t, with(s, w.dest(1, 1), w.dest(2, 5)), with(other))
	}
	bad := s
	bad.Scheduler = "none-such"
	wantErr(t, "Update", w.k.Update(bad), servers.ErrNoScheduler)
	wantErr(t, "Create", w.k.Create(bad), nil)
	w.check(t, with(s, w.dest(1, 1), w.dest(2, 5)), with(other))
	must(t, w.k.Delete(s.Key), w.k.Delete(other.Key))
}

func destinations(t *testing.T, w world) {
	s, other := w.rr(1, 80), w.rr(2, 80)
	must(t, w.k.Create(s), w.k.Create(other))
	must(t, w.k.AddDestination(s.Key, w.dest(1, 1)), w.k.AddDestination(s.Key, w.dest(2, 0)), w.k.AddDestination(other.Key, w.dest(1, 65535)))
	w.check(t, with(s, w.dest(1, 1), w.dest(2, 0)), with(other, w.dest(1, 65535)))
	wantErr(t, "AddDestination once more", w.k.AddDestination(s.Key, w.dest(1, 7)), servers.ErrExists)
	wantErr(t, "UpdateDestination", w.k.UpdateDestination(s.Key, w.dest(3, 1)), servers.ErrNoDestination)
	wantErr(t, "DeleteDestination", w.k.DeleteDestination(s.Key, w.dest(3, 1).Addr), servers.ErrNoDestination)
	must(t, w.k.UpdateDestination(s.Key, w.dest(1, 0)), w.k.UpdateDestination(s.Key, w.dest(2, 3)))
	w.check(t, with(s, w.dest(1, 0), w.dest(2, 3)), with(other, w.dest(1, 65535)))
	must(t, w.k.DeleteDestination(s.Key, w.dest(1, 0).Addr))
	w.check(t, with(s, w.dest(2, 3)), with(other, w.dest(1, 65535)))
	must(t, w.k.AddDestination(s.Key, w.dest(1, 1)))
	multicast := netip.MustParseAddr("224.0.0.1")
	if w.ipv6 {
		multicast = netip.MustParseAddr("ff02::1")
	}
	d := servers.Destination{Addr: netip.AddrPortFrom(multicast, 80), Weight: 1}
	wantErr(t, "AddDestination of a group", w.k.AddDestination(s.Key, d), nil)
	w.check(t, with(s, w.dest(1, 1), w.dest(2, 3)), with(other, w.dest(1, 65535)))
	must(t, w.k.Delete(s.Key))
	must(t, w.k.Create(s)) // which has none of its destinations now
	w.check(t, with(s), with(other, w.dest(1, 65535)))
	must(t, w.k.Delete(s.Key), w.k.Delete(other.Key))
}

// manyDestinations: more than go into one message, and what is refused keeps nothing
// else from being added.
func manyDestinations(t *testing.T, w world) {
	s := w.rr(1, 80)
	must(t, w.k.Create(s), w.k.AddDestination(s.Key), w.k.AddDestination(s.Key, w.dest(300, 7)))
	var all []servers.Destination
	for n := range 450 {
		all = append(all, w.dest(n, 1))
	}
	err := w.k.AddDestination(s.Key, all...)
	wantErr(t, "AddDestination of many", err, servers.ErrExists)
	if text := err.Error(); !strings.Contains(text, all[300].Addr.String()) || strings.Contains(text, all[299].Addr.String()) {
		t.Errorf("AddDestination of many fails with %q, which does not name %s alone", text, all[300].Addr)
	}
	all[300] = w.dest(300, 7)
	w.check(t, with(s, all...))
	must(t, w.k.Delete(s.Key))
	wantErr(t, "AddDestination of two", w.k.AddDestination(s.Key, all[:2]...), servers.ErrNoServer)
}

func otherFamily(t *testing.T, w world) {
	theirs, s := world{w.k, !w.ipv6}, w.rr(1, 80)
	must(t, w.k.Create(s))
	wantErr(t, "Create", w.k.Create(theirs.rr(1, 80)), nil)
	wantErr(t, "AddDestination", w.k.AddDestination(s.Key, theirs.dest(1, 1)), nil)
	w.check(t, with(s))
	must(t, w.k.Delete(s.Key))
}

func timeouts(t *testing.T, w world) {
	check := func(want servers.Timeouts) {
		t.Helper()
		if got, err := w.k.Timeouts(); err != nil || got != want {
			t.Errorf("Timeouts() = %v, %v, want %v", got, err, want)
		}
	}
	initial := servers.Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}
	check(initial)
	must(t, w.k.SetTimeouts(servers.Timeouts{}))
	check(initial)
	must(t, w.k.SetTimeouts(servers.Timeouts{TCP: time.Hour}), w.k.SetTimeouts(servers.Timeouts{UDP: 7 * time.Second}))
	check(servers.Timeouts{TCP: time.Hour, TCPFin: 2 * time.Minute, UDP: 7 * time.Second})
	must(t, w.k.SetTimeouts(initial))
	check(initial)
}

func schedulers(t *testing.T, w world) {
	got, err := w.k.Schedulers("rr", "none-such", "mh")
	if want := []string{"rr", "mh"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Schedulers() = %q, %v, want %q", got, err, want)
	}
}

func TestFake(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			contract(t, world{k: &fake.Kernel{IPv6: ipv6}, ipv6: ipv6})
		})
	}
}

func TestString(t *testing.T) {
	w := world{ipv6: true}
	s := servers.Server{Key: w.key(1, servers.SCTP, 80), Scheduler: "mh", Flags: servers.HashPort | servers.HashFallback, Persistence: 1500 * time.Millisecond}
	for _, tt := range []struct{ got, want string }{
		{s.String(), "--sctp-service [fd00::1]:80 -s mh -p 2 -b mh-fallback,mh-port"},
		{servers.Server{Key: w.key(1, servers.UDP, 53), Scheduler: "wlc", Flags: servers.OnePacket | servers.HashPort}.String(), "-u [fd00::1]:53 -s wlc -o -b flag-2"},
		{w.dest(1, 1).Line(s.Key), "--sctp-service [fd00::1]:80 -r [fd00::3e9]:8080 -m -w 1"},
		{s.Key.String(), "SCTP [fd00::1]:80"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}
