// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat/nfacct"
	"fairlead/proxier/model"
)

// onKernel runs a test with every variant that works here, for one family.
func onKernel(t *testing.T, f model.Family, test func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host)) {
	for _, s := range kerneltest.Setups() {
		if s.IPv6 == (f == model.IPv6) {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				test(t, s, kerneltest.New(t, s))
			})
		}
	}
}

func kernelAgent(t *testing.T, s kerneltest.Setup, h *kerneltest.Host, cfg RenderConfig) *agent {
	t.Helper()
	return newAgent(t, h, s.Commands(), s.Variant, cfg, nil, loopsIn(h, s))
}

func kernelAgentWithSets(t *testing.T, s kerneltest.Setup, h *kerneltest.Host, cfg RenderConfig) *agent {
	t.Helper()
	return newAgent(t, h, s.Commands(), s.Variant, cfg, setsIn(h, s), loopsIn(h, s))
}

// ordered returns a dump with its tables and chains sorted, which the commands
// list in different orders.
func ordered(d ruleset.Dump) ruleset.Dump {
	slices.SortFunc(d, func(a, b ruleset.DumpTable) int { return cmp.Compare(a.Name, b.Name) })
	for _, t := range d {
		slices.SortFunc(t.Chains, func(a, b ruleset.DumpChain) int { return cmp.Compare(a.Name, b.Name) })
	}
	return d
}

// checkStable checks that a restart and a check of everything write nothing.
func checkStable(t *testing.T, s kerneltest.Setup, h *kerneltest.Host, cfg RenderConfig, ports ...*model.ServicePort) {
	t.Helper()
	checkStableAgent(t, h, kernelAgent(t, s, h, cfg), ports...)
}

func checkStableAgent(t *testing.T, h *kerneltest.Host, a *agent, ports ...*model.ServicePort) {
	t.Helper()
	n := h.Restores()
	for range 2 {
		if r := a.sync(ports...); r.Written > 0 {
			t.Errorf("after a restart, %d objects were written, want none", r.Written)
		}
	}
	if got := h.Restores() - n; got > 0 {
		t.Errorf("a restart ran %d restores, want none: the rules are not in the form in which they are printed", got)
	}
}

// checkClean checks that nothing is left after a clean-up.
func checkClean(t *testing.T, a *agent, s kerneltest.Setup, h *kerneltest.Host, before string) {
	t.Helper()
	if _, err := a.engine.Clean(context.Background()); err != nil {
		t.Fatalf("Clean() = %v", err)
	}
	if diff := gocmp.Diff(before, ordered(h.Save(s)).String()); diff != "" {
		t.Errorf("rules after Clean() (-before +after):\n%s", diff)
	}
}

// TestKernelGolden: the save command prints what the golden files say, byte by
// byte; a restart finds nothing to write; a clean-up leaves nothing.
func TestKernelGolden(t *testing.T) {
	for _, tt := range renderCases() {
		t.Run(tt.name, func(t *testing.T) {
			text, err := os.ReadFile("testdata/golden/" + tt.name + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			golden, err := ruleset.Parse(strings.NewReader(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			want := ordered(golden).String()
			onKernel(t, tt.cfg.Family, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
				start := kernelAgent
				if tt.sets() {
					start = kernelAgentWithSets
				}
				if name := tt.cfg.InvalidCounter; name != "" {
					if err := h.Enter(func() error { return nfacct.Create(name) }); err != nil {
						t.Fatal(err)
					}
				}
				a := tt.at(start(t, s, h, tt.cfg))
				a.sync(tt.ports...)
				if diff := gocmp.Diff(want, tt.excerpt(ordered(h.Save(s))).String()); diff != "" {
					t.Errorf("%s (-golden +kernel):\n%s", s.Commands().Save, diff)
				}
				checkStableAgent(t, h, tt.at(start(t, s, h, tt.cfg)), tt.ports...)
				checkClean(t, a, s, h, "")
			})
		})
	}
}

// TestKernelProbabilities: 1/n comes back as it was written.
func TestKernelProbabilities(t *testing.T) {
	var want []ruleset.Rule
	for n := 2; n <= 1000; n++ {
		want = append(want, ruleset.Rule("-m statistic --mode random --probability "+idiom.Probability(n)+" -j ACCEPT"))
	}
	onKernel(t, model.IPv4, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		text := "*nat\n:P - [0:0]\n"
		for _, r := range want {
			text += "-A P " + string(r) + "\n"
		}
		if err := h.Restore(s, text+"COMMIT\n"); err != nil {
			t.Fatal(err)
		}
		for _, c := range h.Save(s)[0].Chains {
			if c.Name != "P" {
				continue
			}
			if diff := gocmp.Diff(want, c.Rules); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		}
	})
}

// TestKernelAddressForms: addresses are printed as the commands print them.
func TestKernelAddressForms(t *testing.T) {
	var v6ports, v4ports []*model.ServicePort
	for i, addr := range []string{
		"fd00::", "fd00:0:1::", "fd00:0:0:1:0:0:0:1", "fd00:1:0:1:0:1:0:1", "2001:db8:1:2:3:4:5:6", "2001:db8::1:0:0:1",
		"64:ff9b::a00:1", "fd00::ffff:10.0.0.1", "fd00:ABCD::EF01",
	} {
		ep := netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String()
		v6ports = append(v6ports, port(portName("a", fmt.Sprintf("b%d", i), "", model.TCP), addr, 80, ep))
	}
	for i, addr := range []string{"10.0.0.0", "1.2.3.4", "223.255.255.255"} {
		v4ports = append(v4ports, port(portName("a", fmt.Sprintf("b%d", i), "", model.UDP), addr, 65535, addr+":1"))
	}
	for _, tt := range []struct {
		name  string
		cfg   RenderConfig
		cidr  string
		ports []*model.ServicePort
	}{
		{"IPv4", v4(), "10.0.0.0/8", v4ports},
		{"IPv4, CIDR with host bits", v4(), "10.244.3.7/16", v4ports},
		{"IPv4, odd prefix length", v4(), "10.244.128.0/17", v4ports},
		{"IPv4, one address", v4(), "10.244.0.1/32", v4ports},
		{"IPv4, every address", v4(), "0.0.0.0/0", v4ports},
		{"IPv6", v6(), "fd00::/8", v6ports},
		{"IPv6, CIDR with host bits", v6(), "fd00:244::7/56", v6ports},
		{"IPv6, odd prefix length", v6(), "fd00:244:8000::/33", v6ports},
		{"IPv6, one address", v6(), "fd00::1/128", v6ports},
		{"IPv6, every address", v6(), "::/0", v6ports},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg
			cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(tt.cidr)}
			onKernel(t, cfg.Family, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
				kernelAgent(t, s, h, cfg).sync(tt.ports...)
				checkStable(t, s, h, cfg, tt.ports...)
			})
		})
	}
}

// TestKernelTakeover: from kube-proxy's rules, and away again.
func TestKernelTakeover(t *testing.T) {
	text, err := os.ReadFile("testdata/kube-proxy.txt")
	if err != nil {
		t.Fatal(err)
	}
	var rules strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "nfacct") { // its object would have to exist
			rules.WriteString(line)
		}
	}
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, "10.244.0.1:8080", "10.244.0.2:8080", "10.244.1.3:8080")
	onKernel(t, model.IPv4, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		if err := h.Restore(s, rules.String()); err != nil {
			t.Fatal(err)
		}
		a := kernelAgent(t, s, h, v4())
		a.sync(web)
		checkStable(t, s, h, v4(), web)
		checkClean(t, a, s, h, `*filter
:CNI-FORWARD - [0:0]
:FORWARD ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -j CNI-FORWARD
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A OUTPUT -j KUBE-FIREWALL
COMMIT
*mangle
:FORWARD ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:PREROUTING ACCEPT [0:0]
COMMIT
`)
	})
}
