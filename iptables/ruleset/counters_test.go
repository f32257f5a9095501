// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"fmt"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
)

// TestKernelCounters: rules come with the packets that they have matched, in the words of
// both variants.
func TestKernelCounters(t *testing.T) {
	for _, s := range kerneltest.Setups() {
		t.Run(s.String(), func(t *testing.T) {
			h := kerneltest.New(t, s)
			rule := `-p udp -m comment --comment "three of them" -j ACCEPT`
			if err := h.Restore(s, "*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\n-A INPUT -j MINE\n-A MINE "+rule+"\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			h.Do("ip", "link", "set", "lo", "up")
			target := map[bool]string{false: "127.0.0.1", true: "::1"}[s.IPv6]
			h.Do("bash", "-c", "for i in 1 2 3; do echo x >/dev/udp/"+target+"/9; done")
			var got []string
			if err := s.Commands().Counters(t.Context(), h, ruleset.Filter, func(k ruleset.ChainKey, packets uint64, text []byte) {
				if k.Name == "MINE" {
					got = append(got, fmt.Sprintf("%s %d %s", k.Table, packets, text))
				}
			}); err != nil {
				t.Fatal(err)
			}
			if want := []string{"filter 3 " + rule}; strings.Join(got, "\n") != want[0] {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
