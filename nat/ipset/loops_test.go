// SPDX-License-Identifier: Apache-2.0

package ipset_test

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat/ipset"
	"fairlead/nat/ipset/fake"
)

// loops is what both the kernel's and the fake can do.
type loops interface {
	Name() string
	List() (in []ipset.Loop, found bool, err error)
	Create() error
	Add(...ipset.Loop) error
	Remove(...ipset.Loop) error
	Destroy() error
}

// kernelLoops is a set in a host's namespace.
type kernelLoops struct {
	h    *kerneltest.Host
	sets *ipset.Loops
}

func (k kernelLoops) Name() string { return k.sets.Name() }

func (k kernelLoops) List() (in []ipset.Loop, found bool, err error) {
	err = k.h.Enter(func() error { in, found, err = k.sets.List(); return err })
	return in, found, err
}

func (k kernelLoops) Create() error { return k.h.Enter(k.sets.Create) }

func (k kernelLoops) Add(e ...ipset.Loop) error {
	return k.h.Enter(func() error { return k.sets.Add(e...) })
}

func (k kernelLoops) Remove(e ...ipset.Loop) error {
	return k.h.Enter(func() error { return k.sets.Remove(e...) })
}

func (k kernelLoops) Destroy() error { return k.h.Enter(k.sets.Destroy) }

// loop returns an endpoint; ports are of one address.
func loop(protocol uint8, addr string, port int) ipset.Loop {
	return ipset.Loop{Protocol: protocol, AddrPort: netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))}
}

// checkLoops checks what is in a set, and that it is there.
func checkLoops(t *testing.T, l loops, want ...ipset.Loop) {
	t.Helper()
	got, found, err := l.List()
	order := func(a, b ipset.Loop) int {
		return cmp.Or(a.AddrPort.Compare(b.AddrPort), cmp.Compare(a.Protocol, b.Protocol))
	}
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if err != nil || !found || !slices.Equal(got, want) {
		t.Errorf("List() = found %t, %v (-want +got):\n%s", found, err,
			gocmp.Diff(want, got, gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })))
	}
}

// loopsContract is what is expected of the kernel, and of the fake. rules replaces
// the rules.
func loopsContract(t *testing.T, l loops, addr string, rules func(text string)) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	if got, found, err := l.List(); len(got) > 0 || found || err != nil {
		t.Errorf("List() where no set is = %v, %t, %v", got, found, err)
	}
	tcp, udp, sctp := loop(unix.IPPROTO_TCP, addr, 80), loop(unix.IPPROTO_UDP, addr, 80), loop(unix.IPPROTO_SCTP, addr, 65535)
	if err := l.Add(tcp); err == nil {
		t.Error("Add() where no set is succeeded")
	}
	if err := l.Remove(tcp); err == nil {
		t.Error("Remove() where no set is succeeded")
	}
	must(l.Create())
	checkLoops(t, l)
	must(l.Add(tcp, udp))
	must(l.Create())
	checkLoops(t, l, tcp, udp)
	must(l.Add(udp, sctp))
	checkLoops(t, l, tcp, udp, sctp)
	must(l.Remove(udp))
	must(l.Remove(udp, sctp))
	checkLoops(t, l, tcp)
	var many []ipset.Loop
	for port := 1; port <= 2000; port++ {
		many = append(many, loop(unix.IPPROTO_SCTP, addr, port))
	}
	must(l.Add(many...))
	checkLoops(t, l, append([]ipset.Loop{tcp}, many...)...)
	must(l.Remove(many...))
	checkLoops(t, l, tcp)
	rules("-A X -m set --match-set " + l.Name() + " dst,dst,src -j MASQUERADE\n")
	if err := l.Destroy(); err == nil {
		t.Error("Destroy() while a rule names the set succeeded")
	}
	rules("")
	for deadline := time.Now().Add(10 * time.Second); ; { // for rules to be freed
		err := l.Destroy()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	must(l.Destroy()) // which has gone
	if _, found, err := l.List(); found || err != nil {
		t.Errorf("List() after Destroy() = %t, %v", found, err)
	}
}

func TestFakeLoops(t *testing.T) {
	var rules string
	l := &fake.Loops{SetName: "LOOPS", Rules: func() string { return rules }}
	loopsContract(t, l, "10.244.0.1", func(text string) { rules = text })
}

func TestKernelLoops(t *testing.T) {
	for _, setup := range kerneltest.Setups() {
		t.Run(setup.String(), func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t, setup)
			addr := "10.244.0.1"
			if setup.IPv6 {
				addr = "fd00:244::1"
			}
			loopsContract(t, kernelLoops{h, ipset.NewLoops("LOOPS", setup.IPv6)}, addr, func(text string) {
				if err := h.Restore(setup, "*nat\n:X - [0:0]\n"+text+"COMMIT\n"); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestKernelLoopsOfOthers: a set that kube-proxy's IPVS mode has made is taken
// over; elements of two addresses are left alone, and so is a set of another kind.
func TestKernelLoopsOfOthers(t *testing.T) {
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.NFT})
	h.Do("ipset", "create", "LOOPS", "hash:ip,port,ip", "family", "inet", "hashsize", "1024", "maxelem", "65536")
	h.Do("ipset", "add", "LOOPS", "10.244.0.1,tcp:80,10.244.0.1")
	h.Do("ipset", "add", "LOOPS", "10.244.0.1,tcp:80,10.244.0.2")
	l := kernelLoops{h, ipset.NewLoops("LOOPS", false)}
	if err := l.Create(); err != nil {
		t.Errorf("Create() where kube-proxy's set is = %v", err)
	}
	checkLoops(t, l, loop(unix.IPPROTO_TCP, "10.244.0.1", 80))
	for name, args := range map[string][]string{
		"CLIENTS": {"hash:ip", "family", "inet", "timeout", "60"},
		"SIX":     {"hash:ip,port,ip", "family", "inet6"},
	} {
		h.Do("ipset", append([]string{"create", name}, args...)...)
		l := kernelLoops{h, ipset.NewLoops(name, false)}
		if _, _, err := l.List(); !errors.Is(err, ipset.ErrAnotherKind) {
			t.Errorf("%s: List() = %v, want ErrAnotherKind", name, err)
		}
	}
	if err := (kernelLoops{h, ipset.NewLoops("CLIENTS", false)}).Create(); err == nil {
		t.Error("Create() where a set of another type is succeeded")
	}
}
