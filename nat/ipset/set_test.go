// SPDX-License-Identifier: Apache-2.0

package ipset_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat/ipset"
	"fairlead/nat/ipset/fake"
)

// set is what both the kernel's and the fake's can do.
type set interface {
	Name() string
	List() (in []ipset.Element, found bool, err error)
	Create(size int) error
	Add(...ipset.Element) error
	Remove(...ipset.Element) error
	Destroy() error
}

// kernelSet is a set in a host's namespace.
type kernelSet struct {
	h   *kerneltest.Host
	set *ipset.Set
}

func (k kernelSet) Name() string { return k.set.Name() }

func (k kernelSet) List() (in []ipset.Element, found bool, err error) {
	err = k.h.Enter(func() error { in, found, err = k.set.List(); return err })
	return in, found, err
}

func (k kernelSet) Create(size int) error {
	return k.h.Enter(func() error { return k.set.Create(size) })
}

func (k kernelSet) Add(e ...ipset.Element) error {
	return k.h.Enter(func() error { return k.set.Add(e...) })
}

func (k kernelSet) Remove(e ...ipset.Element) error {
	return k.h.Enter(func() error { return k.set.Remove(e...) })
}

func (k kernelSet) Destroy() error { return k.h.Enter(k.set.Destroy) }

// setWorld is where sets are that both families' rules may name.
type setWorld struct {
	ipv6 bool
	set  func(name string, typ ipset.Type, ipv6 bool) set
	// rules replaces the rules.
	rules func(text string)
	// save returns the sets as ipset save prints them, in order.
	save func() string
}

// addr returns address n of the family.
func addr(ipv6 bool, n int) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0xfd, 0, 0x02, 0x44, 11: 1, 12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
	}
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// network returns a network of the family.
func network(ipv6 bool) netip.Prefix {
	if ipv6 {
		return netip.MustParsePrefix("2001:db8::/33")
	}
	return netip.MustParsePrefix("128.0.0.0/1")
}

// kinds are the types of sets, with some elements, and what makes each of them no
// element of the set.
func kinds(ipv6 bool) []kind {
	one, two := addr(ipv6, 1), addr(ipv6, 2)
	foreign := addr(!ipv6, 1)
	return []kind{
		{ipset.HashIP, []ipset.Element{{Addr: one}, {Addr: two}}, ipset.Element{Addr: foreign}},
		{ipset.HashIPPort, []ipset.Element{
			{Addr: one, Protocol: unix.IPPROTO_TCP, Port: 80}, {Addr: one, Protocol: unix.IPPROTO_UDP, Port: 80},
			{Addr: two, Protocol: unix.IPPROTO_SCTP, Port: 65535},
		}, ipset.Element{Addr: foreign, Protocol: unix.IPPROTO_TCP, Port: 80}},
		{ipset.HashIPPortIP, []ipset.Element{
			{Addr: one, Protocol: unix.IPPROTO_TCP, Port: 80, Net: ipset.Single(one)},
			{Addr: one, Protocol: unix.IPPROTO_SCTP, Port: 80, Net: ipset.Single(two)},
		}, ipset.Element{Addr: one, Protocol: unix.IPPROTO_TCP, Port: 80, Net: ipset.Single(foreign)}},
		{ipset.HashIPPortNet, []ipset.Element{
			{Addr: one, Protocol: unix.IPPROTO_TCP, Port: 80, Net: network(ipv6)},
			{Addr: one, Protocol: unix.IPPROTO_UDP, Port: 80, Net: ipset.Single(two)},
		}, ipset.Element{Addr: one, Protocol: unix.IPPROTO_TCP, Port: 80, Net: netip.PrefixFrom(two, 0).Masked()}},
		{ipset.HashNet, []ipset.Element{{Net: network(ipv6)}, {Net: ipset.Single(two)}}, ipset.Element{Net: netip.PrefixFrom(two, 0).Masked()}},
		{ipset.BitmapPort, []ipset.Element{{Port: 0}, {Port: 30000}, {Port: 65535}}, ipset.Element{}},
	}
}

type kind struct {
	typ ipset.Type
	in  []ipset.Element
	// not is no element, unless it is zero.
	not ipset.Element
}

// checkSet checks what is in a set, and that it is there.
func checkSet(t *testing.T, s set, want ...ipset.Element) {
	t.Helper()
	got, found, err := s.List()
	slices.SortFunc(got, ipset.Element.Compare)
	want = slices.Clone(want)
	slices.SortFunc(want, ipset.Element.Compare)
	if err != nil || !found || !slices.Equal(got, want) {
		t.Errorf("List() of %s = found %t, %v (-want +got):\n%s", s.Name(), found, err, gocmp.Diff(texts(want), texts(got)))
	}
}

func texts(elements []ipset.Element) (out []string) {
	for _, e := range elements {
		out = append(out, e.String())
	}
	return out
}

// setContract is what is expected of the kernel, and of the fake.
func setContract(t *testing.T, w setWorld) {
	for _, k := range kinds(w.ipv6) {
		t.Run(string(k.typ), func(t *testing.T) {
			elementsContract(t, w.set("A", k.typ, w.ipv6), k)
			othersContract(t, w, k.typ)
		})
	}
	t.Run("saved", func(t *testing.T) { savedContract(t, w) })
	t.Run("named by a rule", func(t *testing.T) { namedContract(t, w) })
}

func elementsContract(t *testing.T, s set, k kind) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	if in, found, err := s.List(); in != nil || found || err != nil {
		t.Errorf("List() where no set is = %v, %t, %v", in, found, err)
	}
	if s.Add(k.in...) == nil || s.Remove(k.in...) == nil {
		t.Error("Add() or Remove() where no set is succeeded")
	}
	must(s.Add())
	must(s.Create(0))
	checkSet(t, s)
	must(s.Add(k.in...))
	must(s.Create(100_000))
	checkSet(t, s, k.in...)
	must(s.Add(k.in[0]))
	must(s.Remove(k.in[0], k.in[1]))
	must(s.Remove(k.in[0]))
	checkSet(t, s, k.in[2:]...)
	if k.not != (ipset.Element{}) {
		if err := s.Add(k.not); err == nil {
			t.Errorf("Add(%s) succeeded", k.not)
		}
	}
	checkSet(t, s, k.in[2:]...)
	must(s.Destroy())
	must(s.Destroy())
	if _, found, err := s.List(); found || err != nil {
		t.Errorf("List() after Destroy() = %t, %v", found, err)
	}
}

// othersContract: a set of another type or family is not used.
func othersContract(t *testing.T, w setWorld, typ ipset.Type) {
	type other struct {
		typ  ipset.Type
		ipv6 bool
	}
	others := []other{{ipset.HashIP, w.ipv6}, {typ, !w.ipv6}}
	if typ == ipset.HashIP {
		others[0].typ = ipset.HashIPPort
	}
	if typ == ipset.BitmapPort { // which is of no family
		others = others[:1]
	}
	for _, o := range others {
		theirs, s := w.set("A", o.typ, o.ipv6), w.set("A", typ, w.ipv6)
		if err := theirs.Create(0); err != nil {
			t.Error(err)
		}
		if err := s.Create(0); !errors.Is(err, ipset.ErrAnotherKind) {
			t.Errorf("Create() where a set of %v is = %v, want ErrAnotherKind", o, err)
		}
		if _, _, err := s.List(); !errors.Is(err, ipset.ErrAnotherKind) {
			t.Errorf("List() where a set of %v is = %v, want ErrAnotherKind", o, err)
		}
		checkSet(t, theirs)
		if err := theirs.Destroy(); err != nil {
			t.Error(err)
		}
	}
}

// savedContract: elements are written as ipset writes them.
func savedContract(t *testing.T, w setWorld) {
	want := ""
	for i, k := range kinds(w.ipv6) {
		s := w.set(fmt.Sprint("S", i), k.typ, w.ipv6)
		if err := errors.Join(s.Create(0), s.Add(k.in...)); err != nil {
			t.Error(err)
		}
		want += ipset.Save(s.Name(), k.typ, w.ipv6, k.in)
		defer s.Destroy()
	}
	if diff := gocmp.Diff(want, w.save()); diff != "" {
		t.Errorf("what is saved differs (-want +got):\n%s", diff)
	}
}

func namedContract(t *testing.T, w setWorld) {
	s := w.set("A", ipset.HashIPPort, w.ipv6)
	if err := s.Create(0); err != nil {
		t.Error(err)
	}
	w.rules("-A X -m set --match-set A dst,dst -j RETURN\n")
	if err := s.Destroy(); err == nil {
		t.Error("Destroy() while a rule names the set succeeded")
	}
	checkSet(t, s)
	w.rules("")
	for deadline := time.Now().Add(10 * time.Second); ; { // for rules to be freed
		err := s.Destroy()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestFakeSet(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", ipv6), func(t *testing.T) {
			var rules string
			k := &fake.Kernel{Rules: func() string { return rules }}
			setContract(t, setWorld{
				ipv6:  ipv6,
				set:   func(name string, typ ipset.Type, ipv6 bool) set { return k.Set(name, typ, ipv6) },
				rules: func(text string) { rules = text }, save: k.Save,
			})
		})
	}
}

func TestKernelSet(t *testing.T) {
	for _, setup := range kerneltest.Setups() {
		t.Run(setup.String(), func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t, setup)
			setContract(t, setWorld{
				ipv6: setup.IPv6,
				set:  func(name string, typ ipset.Type, ipv6 bool) set { return kernelSet{h, ipset.NewSet(name, typ, ipv6)} },
				rules: func(text string) {
					if err := h.Restore(setup, "*nat\n:X - [0:0]\n"+text+"COMMIT\n"); err != nil {
						t.Fatal(err)
					}
				},
				save: func() string { return saved(t, h) },
			})
		})
	}
}

// saved returns what ipset save prints, in order and without what is about size.
func saved(t *testing.T, h *kerneltest.Host) string {
	t.Helper()
	var out strings.Builder
	if err := h.Run(t.Context(), ruleset.Command{Name: "ipset", Args: []string{"save", "-s"}, Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "create ") {
			line, _, _ = strings.Cut(line, " hashsize ")
			line = strings.TrimSpace(line) + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// names returns the names of all sets.
func names(t *testing.T, h *kerneltest.Host) []string {
	t.Helper()
	var out strings.Builder
	if err := h.Run(t.Context(), ruleset.Command{Name: "ipset", Args: []string{"list", "-n"}, Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	return strings.Fields(out.String())
}

// endpoints returns n elements, those of an address 100 ports.
func endpoints(ipv6 bool, n int) []ipset.Element {
	out := make([]ipset.Element, n)
	for i := range out {
		out[i] = ipset.Element{Addr: addr(ipv6, i/100), Protocol: unix.IPPROTO_UDP, Port: uint16(1000 + i%100)}
	}
	return out
}

// TestKernelSetGrows: a set takes more than its bound, while a rule names it and
// packets pass that rule: none meets a set without what has been in it all along.
func TestKernelSetGrows(t *testing.T) {
	for _, setup := range kerneltest.Setups() {
		t.Run(setup.String(), func(t *testing.T) {
			h := kerneltest.New(t, setup)
			s := kernelSet{h, ipset.NewSet("A", ipset.HashIPPort, setup.IPv6)}
			all := endpoints(setup.IPv6, 70_000)
			dst := ipset.Element{Addr: netip.MustParseAddr("127.0.0.1"), Protocol: unix.IPPROTO_UDP, Port: 9}
			if setup.IPv6 {
				dst.Addr = netip.IPv6Loopback()
			}
			if err := errors.Join(s.Create(0), s.Add(dst), s.Add(all[:60_000]...)); err != nil {
				t.Fatal(err)
			}
			h.Do("ip", "link", "set", "lo", "up")
			if err := h.Restore(setup, "*filter\n-A OUTPUT -p udp -m set ! --match-set A dst,dst -j DROP\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			packets := send(t, h, netip.AddrPortFrom(dst.Addr, dst.Port))
			if err := s.Add(all[60_000:]...); err != nil {
				t.Error(err)
			}
			sent, lost := packets()
			if sent == 0 || lost > 0 {
				t.Errorf("while the set grew, %d of %d packets did not match it", lost, sent)
			}
			checkSet(t, s, append([]ipset.Element{dst}, all...)...)
			// The set that had too little room is gone.
			if got := names(t, h); !slices.Equal(got, []string{"A"}) {
				t.Errorf("there are sets %q, want A alone", got)
			}
			for _, e := range []ipset.Element{all[0], all[65_536], all[69_999]} {
				h.Do("ipset", "test", "A", e.String())
			}
			if err := s.Remove(dst); err != nil {
				t.Error(err)
			}
			if _, lost := send(t, h, netip.AddrPortFrom(dst.Addr, dst.Port))(); lost == 0 {
				t.Error("the rule does not look at the set that has grown")
			}
		})
	}
}

// send sends packets to an address in a namespace, one after the other, until the
// function that it returns is called. That returns how many there were, at least
// one, and how many of them a rule dropped.
func send(t *testing.T, h *kerneltest.Host, to netip.AddrPort) func() (sent, lost int64) {
	t.Helper()
	var conn *net.UDPConn
	err := h.Enter(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var sent, lost atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for first := true; first || ctx.Err() == nil; first = false {
			if _, err := conn.Write([]byte("x")); errors.Is(err, unix.EPERM) { // what OUTPUT drops
				lost.Add(1)
			}
			sent.Add(1)
		}
	}()
	return func() (int64, int64) {
		stop()
		<-done
		conn.Close()
		return sent.Load(), lost.Load()
	}
}

// TestKernelSetLeftovers: what an earlier process has left when it ended while its
// set grew is in nobody's way, and goes with the set.
func TestKernelSetLeftovers(t *testing.T) {
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.Legacy})
	s := kernelSet{h, ipset.NewSet("A-SET-WITH-THE-LONGEST-NAME-OF-31"[:31], ipset.HashIPPort, false)}
	h.Do("ipset", "create", s.Name(), "hash:ip,port", "maxelem", "10")
	h.Do("ipset", "create", s.set.Spare(), "hash:ip", "family", "inet6")
	if err := s.Add(endpoints(false, 1000)...); err != nil {
		t.Error(err)
	}
	checkSet(t, s, endpoints(false, 1000)...)
	h.Do("ipset", "create", s.set.Spare(), "hash:ip")
	if err := s.Destroy(); err != nil {
		t.Error(err)
	}
	if got := names(t, h); len(got) > 0 {
		t.Errorf("sets %q are left", got)
	}
}

// TestKernelSetOfOthers: a set as kube-proxy makes it is taken over, and kube-proxy
// can take it back; one whose elements go by themselves is not.
func TestKernelSetOfOthers(t *testing.T) {
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.Legacy})
	for i, k := range kinds(true) {
		s := kernelSet{h, ipset.NewSet(fmt.Sprint("A", i), k.typ, true)}
		theirs := []string{"create", "-exist", s.Name(), string(k.typ)}
		if k.typ == ipset.BitmapPort {
			theirs = append(theirs, "range", "0-65535")
		} else {
			theirs = append(theirs, "family", "inet6", "hashsize", "1024", "maxelem", "65536")
		}
		h.Do("ipset", theirs...)
		h.Do("ipset", "add", s.Name(), k.in[0].String())
		if err := s.Create(0); err != nil {
			t.Errorf("Create() where kube-proxy's set is = %v", err)
		}
		checkSet(t, s, k.in[0])
		if err := errors.Join(s.Destroy(), s.Create(10)); err != nil {
			t.Error(err)
		}
		h.Do("ipset", theirs...)
	}
	h.Do("ipset", "create", "T", "hash:ip,port", "timeout", "60")
	if err := (kernelSet{h, ipset.NewSet("T", ipset.HashIPPort, false)}).Create(0); !errors.Is(err, ipset.ErrAnotherKind) {
		t.Errorf("Create() where elements go by themselves = %v, want ErrAnotherKind", err)
	}
}

// BenchmarkKernelSet fills, lists and empties a set of 100,000 elements.
func BenchmarkKernelSet(b *testing.B) {
	for _, ipv6 := range []bool{false, true} {
		h := kerneltest.New(b, kerneltest.Setup{Variant: ruleset.NFT, IPv6: ipv6})
		s := kernelSet{h, ipset.NewSet("A", ipset.HashIPPort, ipv6)}
		all := endpoints(ipv6, 100_000)
		for _, op := range []struct {
			name string
			do   func() error
		}{
			{"fill", func() error { return errors.Join(s.Destroy(), s.Create(len(all)), s.Add(all...)) }},
			{"grow", func() error { return errors.Join(s.Destroy(), s.Create(0), s.Add(all...)) }},
			{"list", func() error { _, _, err := s.List(); return err }},
			{"one", func() error { return errors.Join(s.Remove(all[5]), s.Add(all[5])) }},
		} {
			b.Run(fmt.Sprintf("IPv6=%t/%s", ipv6, op.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := op.do(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestKernelCountingSet: a set counts what rules match by its elements, and one that does
// not count is another kind.
func TestKernelCountingSet(t *testing.T) {
	for _, s := range kerneltest.Setups() {
		t.Run(s.String(), func(t *testing.T) {
			h := kerneltest.New(t, s)
			in := func(f func() error) {
				t.Helper()
				if err := h.Enter(f); err != nil {
					t.Fatal(err)
				}
			}
			set := ipset.NewCountingSet("COUNTS", ipset.HashIPPort, s.IPv6)
			target := map[bool]string{false: "127.0.0.1", true: "::1"}[s.IPv6]
			element := ipset.Element{Addr: netip.MustParseAddr(target), Protocol: unix.IPPROTO_UDP, Port: 9}
			other := ipset.Element{Addr: netip.MustParseAddr(target), Protocol: unix.IPPROTO_UDP, Port: 10}
			in(func() error {
				if got, err := set.Counts(); len(got) > 0 || err != nil {
					t.Errorf("before it is there: %v, %v", got, err)
				}
				return errors.Join(set.Create(0), set.Create(0), set.Add(element, other))
			})
			if err := h.Restore(s, "*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m set --match-set COUNTS dst,dst\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			h.Do("ip", "link", "set", "lo", "up")
			h.Do("bash", "-c", "for i in 1 2 3; do echo x >/dev/udp/"+target+"/9; done")
			in(func() error {
				got, err := set.Counts()
				slices.SortFunc(got, func(a, b ipset.Counted) int { return a.Element.Compare(b.Element) })
				size := map[bool]uint64{false: 20 + 8 + 2, true: 40 + 8 + 2}[s.IPv6]
				want := []ipset.Counted{{Element: element, Packets: 3, Bytes: 3 * size}, {Element: other}}
				if diff := gocmp.Diff(want, got, gocmp.Comparer(func(a, b ipset.Element) bool { return a == b })); diff != "" || err != nil {
					t.Errorf("%v, -want +got:\n%s", err, diff)
				}
				plain := ipset.NewSet("PLAIN", ipset.HashIPPort, s.IPv6)
				if err := plain.Create(0); err != nil {
					return err
				}
				if err := ipset.NewCountingSet("PLAIN", ipset.HashIPPort, s.IPv6).Create(0); !errors.Is(err, ipset.ErrAnotherKind) {
					t.Errorf("one that does not count: got %v, want %v", err, ipset.ErrAnotherKind)
				}
				return plain.Destroy()
			})
			h.Do(s.String(), "-t", "mangle", "-F", "OUTPUT")
		})
	}
}
