// SPDX-License-Identifier: Apache-2.0

package device_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/ipvs/device"
	"fairlead/ipvs/device/fake"
)

// dev is what both the kernel's device and the fake can do.
type dev interface {
	Ensure() error
	List() (addrs []netip.Addr, found bool, err error)
	Add(...netip.Addr) error
	Remove(netip.Addr) error
	Destroy() error
}

// addrs returns addresses of a family, and one of the other.
func addrs(ipv6 bool) (one, two, foreign netip.Addr) {
	one, two, foreign = netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00::1")
	if ipv6 {
		one, two, foreign = foreign, netip.MustParseAddr("2001:db8::1"), one
	}
	return one, two, foreign
}

func check(t *testing.T, d dev, want ...netip.Addr) {
	t.Helper()
	got, found, err := d.List()
	slices.SortFunc(got, netip.Addr.Compare)
	slices.SortFunc(want, netip.Addr.Compare)
	if err != nil || !found || !slices.Equal(got, want) {
		t.Errorf("List() = %v, %t, %v, want %v", got, found, err, want)
	}
}

// contract is what is expected of the kernel, and of the fake.
func contract(t *testing.T, d dev, ipv6 bool) {
	one, two, foreign := addrs(ipv6)
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
	}
	gone := func() {
		t.Helper()
		if got, found, err := d.List(); got != nil || found || err != nil {
			t.Errorf("List() where no device is = %v, %t, %v", got, found, err)
		}
		if err := d.Add(one); err == nil {
			t.Error("Add() where no device is succeeded")
		}
		must(d.Remove(one), d.Destroy())
	}
	gone()
	must(d.Ensure())
	check(t, d)
	must(d.Add(one), d.Add(two), d.Add(one))
	check(t, d, one, two)
	must(d.Ensure())
	check(t, d, one, two)
	if err := d.Add(foreign); err == nil {
		t.Errorf("Add(%s) succeeded", foreign)
	}
	must(d.Remove(two), d.Remove(two))
	check(t, d, one)
	many := []netip.Addr{one, two}
	for a := two; len(many) < 450; many = append(many, a) { // more than go into one message
		a = a.Next()
	}
	must(d.Add(many...), d.Add(), d.Add(many...)) // the last with an answer to each
	check(t, d, many...)
	must(d.Destroy())
	gone()
	must(d.Ensure(), d.Add(two, one)) // on a device that is another
	check(t, d, one, two)
	must(d.Destroy())
}

func TestFake(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) { contract(t, &fake.Device{IPv6: ipv6}, ipv6) })
	}
}

// TestKernelBridge holds the contract on a device that every kernel has.
func TestKernelBridge(t *testing.T) { kernelContract(t, "bridge") }

// TestKernelDummy holds the contract on the device itself.
func TestKernelDummy(t *testing.T) {
	_, d := open(t, "dummy", false)
	if err := d.Ensure(); err != nil && strings.Contains(err.Error(), "load the module dummy") {
		t.Skip(err)
	}
	kernelContract(t, "dummy")
}

func kernelContract(t *testing.T, kind string) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			h, d := open(t, kind, ipv6)
			contract(t, d, ipv6)
			othersContract(t, h, d, kind, ipv6)
		})
	}
}

// othersContract: what others have done to the device is seen, and what is theirs
// is left alone; the device is down, its addresses are local and not in doubt.
func othersContract(t *testing.T, h *kerneltest.Host, d *device.Device, kind string, ipv6 bool) {
	one, two, foreign := addrs(ipv6)
	ip := func(args ...string) { t.Helper(); h.Do("ip", args...) }
	ip("link", "set", "lo", "up")
	ip("link", "add", device.Name, "type", kind)
	ip("link", "set", device.Name, "up")
	ip("addr", "add", netip.PrefixFrom(foreign, foreign.BitLen()).String(), "dev", device.Name)
	if err := d.Ensure(); err != nil {
		t.Fatal(err)
	}
	network := netip.PrefixFrom(two, two.BitLen()-8).String()
	ip("addr", "add", network, "dev", device.Name)
	ip("addr", "add", netip.PrefixFrom(two, two.BitLen()).String(), "dev", "lo")
	if err := d.Add(one); err != nil {
		t.Error(err)
	}
	check(t, d, one)
	out := shown(t, h, "-o", "addr", "show", "dev", device.Name)
	for _, want := range []string{network, netip.PrefixFrom(one, one.BitLen()).String()} {
		if !strings.Contains(out, want) {
			t.Errorf("the device has no %s:\n%s", want, out)
		}
	}
	if link := shown(t, h, "-o", "link", "show", "dev", device.Name); strings.Contains(link, ",UP") || strings.Contains(link, "<UP") {
		t.Errorf("the device is up: %s", link)
	}
	if err := h.Enter(func() error { return connect(one) }); err != nil {
		t.Errorf("from the address to itself: %v", err)
	}
	if got := shown(t, h, "route", "get", one.String()); !strings.Contains(got, "local "+one.String()) {
		t.Errorf("the address is not local: %s", got)
	}
	// The device of now has another index than that of then.
	ip("link", "del", device.Name)
	ip("link", "add", device.Name, "type", kind)
	if err := d.Add(two); err != nil {
		t.Error(err)
	}
	check(t, d, two)
	ip("link", "del", device.Name)
	ip("link", "add", "other", "type", "veth", "peer", device.Name)
	for what, err := range map[string]error{"Ensure": d.Ensure(), "Destroy": d.Destroy(), "Add": d.Add(one)} {
		if !errors.Is(err, device.ErrAnotherKind) {
			t.Errorf("%s() where a device of another kind is = %v", what, err)
		}
	}
	ip("link", "del", "other")
}

// areLocal returns an error if packets to an address do not come to the node.
func areLocal(addrs []netip.Addr) error {
	for _, a := range addrs {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%s is not local: %v, %w", a, routes, err)
		}
	}
	return nil
}

// connect makes a connection from an address to itself.
func connect(addr netip.Addr) error {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return err
	}
	defer ln.Close()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)), Timeout: 10 * time.Second}
	conn, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// shown returns what ip prints.
func shown(t *testing.T, h *kerneltest.Host, args ...string) string {
	t.Helper()
	var out strings.Builder
	if err := h.Run(t.Context(), ruleset.Command{Name: "ip", Args: args, Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// open returns the device, which is not there, in a namespace.
func open(t testing.TB, kind string, ipv6 bool) (*kerneltest.Host, *device.Device) {
	t.Helper()
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.Legacy, IPv6: ipv6})
	var d *device.Device
	if err := h.Enter(func() (err error) { d, err = device.New(device.Name, ipv6); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	d.SetKind(kind)
	return h, d
}

// BenchmarkKernel puts addresses onto the device, lists them, and removes them.
func BenchmarkKernel(b *testing.B) {
	for _, ipv6 := range []bool{false, true} {
		for _, n := range []int{1000, 5000} {
			_, d := open(b, "bridge", ipv6)
			first, _, _ := addrs(ipv6)
			var all []netip.Addr
			for a := first; len(all) < n; a = a.Next() {
				all = append(all, a)
			}
			removeAll := func() error {
				for _, a := range all {
					if err := d.Remove(a); err != nil {
						return err
					}
				}
				return nil
			}
			if err := d.Ensure(); err != nil {
				b.Fatal(err)
			}
			for _, op := range []struct {
				name string
				do   func() error
			}{
				{"add and remove all", func() error { return errors.Join(d.Add(all...), removeAll(), d.Add(all...)) }},
				{"list", func() error { _, _, err := d.List(); return err }},
				{"add one", func() error { return errors.Join(d.Remove(all[n/2]), d.Add(all[n/2])) }},
			} {
				b.Run(fmt.Sprintf("IPv6=%t/%d/%s", ipv6, n, op.name), func(b *testing.B) {
					for b.Loop() {
						if err := op.do(); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// TestKernelLocalAtOnce: addresses lead to the node itself once Add has returned, as what
// comes next sends packets to them.
func TestKernelLocalAtOnce(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			h, d := open(t, "bridge", ipv6)
			if err := d.Ensure(); err != nil {
				t.Fatal(err)
			}
			_, a, _ := addrs(ipv6)
			for _, n := range []int{1, 1, 1, 500} {
				var some []netip.Addr
				for ; len(some) < n; some = append(some, a) {
					a = a.Next()
				}
				if err := d.Add(some...); err != nil {
					t.Fatal(err)
				}
				if err := h.Enter(func() error { return areLocal(some) }); err != nil {
					t.Errorf("of %d addresses: %v", n, err)
				}
			}
		})
	}
}
