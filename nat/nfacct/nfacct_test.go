// SPDX-License-Identifier: Apache-2.0

package nfacct

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset/kerneltest"
)

// TestKernelCounter: a counter counts what a rule counts with it, stays through
// a second Create, and goes once no rule does.
func TestKernelCounter(t *testing.T) {
	for _, s := range kerneltest.Setups() {
		t.Run(s.String(), func(t *testing.T) {
			h := kerneltest.New(t, s)
			in := func(f func()) {
				t.Helper()
				if err := h.Enter(func() error { f(); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			count := func(when string, want uint64) {
				t.Helper()
				in(func() {
					if got, err := Packets(InvalidDropped); got != want || err != nil {
						t.Errorf("%s: Packets() = %d, %v, want %d", when, got, err, want)
					}
				})
			}
			in(func() {
				if _, err := Packets(InvalidDropped); !errors.Is(err, unix.ENOENT) {
					t.Errorf("before Create: Packets() = %v, want %v", err, unix.ENOENT)
				}
				for range 2 {
					if err := Create(InvalidDropped); err != nil {
						t.Error(err)
					}
				}
			})
			count("at first", 0)
			rules := "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m nfacct --nfacct-name " + InvalidDropped + " -j DROP\nCOMMIT\n"
			if err := h.Restore(s, rules); err != nil {
				t.Fatal(err)
			}
			h.Do("ip", "link", "set", "lo", "up")
			target := map[bool]string{false: "127.0.0.1", true: "::1"}[s.IPv6]
			h.Do("bash", "-c", "for i in 1 2 3; do echo x >/dev/udp/"+target+"/9; done")
			in(func() {
				if err := Create(InvalidDropped); err != nil {
					t.Error(err)
				}
				if err := Delete(InvalidDropped); !errors.Is(err, unix.EBUSY) {
					t.Errorf("Delete() while a rule counts = %v, want %v", err, unix.EBUSY)
				}
			})
			count("after three packets", 3)
			h.Do(s.String(), "-F", "INPUT")
			in(func() { // the kernel frees rules a moment after they have gone
				err := Delete(InvalidDropped)
				for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
					err = Delete(InvalidDropped)
				}
				if _, left := Packets(InvalidDropped); err != nil || !errors.Is(left, unix.ENOENT) {
					t.Errorf("Delete() = %v, and then Packets() = %v, want %v", err, left, unix.ENOENT)
				}
				if err := Delete(InvalidDropped); err != nil {
					t.Errorf("Delete() where there is none = %v", err)
				}
			})
			in(func() {
				reg := prometheus.NewPedanticRegistry()
				RegisterInvalidDropped(reg)
				if n, err := testutil.GatherAndCount(reg, "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"); n != 1 || err != nil {
					t.Errorf("got %d series, %v, want one", n, err)
				}
			})
		})
	}
}
