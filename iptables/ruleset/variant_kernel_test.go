// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"fmt"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
)

// TestKernelDetectVariant: what is written with a variant's commands is found.
func TestKernelDetectVariant(t *testing.T) {
	onKernel(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		other := kerneltest.Setup{Variant: ruleset.Legacy, IPv6: !s.IPv6}
		if s.Variant == ruleset.Legacy {
			other.Variant = ruleset.NFT
		}
		for _, step := range []struct {
			name string
			in   kerneltest.Setup
			text string
			want ruleset.Variant
		}{
			{"a rule", s, "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n", s.Variant},
			{"more rules of the other", other, "*nat\n-A OUTPUT -j ACCEPT\n-A OUTPUT -j ACCEPT\nCOMMIT\n", other.Variant},
			{"kubelet's chain", s, "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n", s.Variant},
		} {
			if err := h.Restore(step.in, step.text); err != nil {
				t.Fatal(err)
			}
			var got ruleset.Variant
			err := h.Enter(func() (err error) {
				got, err = ruleset.DetectVariant(t.Context(), ruleset.SystemHost())
				return err
			})
			if err != nil || got != step.want {
				t.Errorf("%s: got %q, %v, want %q", step.name, got, err, step.want)
			}
		}
	})
}

// TestKernelNFTables counts rules in a table of several netlink messages.
func TestKernelNFTables(t *testing.T) {
	s := kerneltest.Setup{Variant: ruleset.NFT}
	h := kerneltest.New(t, s)
	const rules = 2500
	if err := h.Restore(s, "*filter\n:KUBE-A - [0:0]\n"+strings.Repeat("-A KUBE-A -j ACCEPT\n", rules)+"COMMIT\n"); err != nil {
		t.Fatal(err)
	}
	err := h.Enter(func() error {
		var k ruleset.KernelNFTables
		for _, tt := range []struct {
			table    ruleset.Table
			limit    int
			min, max int
		}{
			{ruleset.Filter, 100_000, rules, rules},
			{ruleset.Filter, rules, rules, rules},
			{ruleset.Filter, 10, 11, rules / 2},
			{ruleset.NAT, 10, 0, 0},
			{"absent", 10, 0, 0},
		} {
			if n, err := k.CountRules(false, tt.table, tt.limit); n < tt.min || n > tt.max || err != nil {
				return fmt.Errorf("CountRules(%s, %d) = %d, %v, want %d to %d", tt.table, tt.limit, n, err, tt.min, tt.max)
			}
		}
		for _, tt := range []struct {
			ipv6  bool
			table ruleset.Table
			chain string
			want  bool
		}{
			{false, ruleset.Filter, "KUBE-A", true},
			{false, ruleset.Filter, "KUBE-B", false},
			{true, ruleset.Filter, "KUBE-A", false},
			{false, "absent", "KUBE-A", false},
		} {
			if got, err := k.HasChain(tt.ipv6, tt.table, tt.chain); got != tt.want || err != nil {
				return fmt.Errorf("HasChain(%t, %s, %s) = %t, %v, want %t", tt.ipv6, tt.table, tt.chain, got, err, tt.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
