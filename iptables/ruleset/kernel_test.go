// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"cmp"
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
)

// onKernel runs a test with every variant and family that works here.
func onKernel(t *testing.T, f func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host)) {
	for _, s := range kerneltest.Setups() {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			f(t, s, kerneltest.New(t, s))
		})
	}
}

func kernelEngine(s kerneltest.Setup, h *kerneltest.Host) *ruleset.Engine {
	return ruleset.NewEngine(ruleset.Config{
		Exec: h, Commands: s.Commands(), Variant: s.Variant, Contributions: []ruleset.Contribution{contribution()},
	})
}

// translate returns the test's chains for a family: IPv4 addresses become IPv6
// ones that have the same last numbers.
func translate(s kerneltest.Setup, chains map[ruleset.ChainKey]*ruleset.Chain) map[ruleset.ChainKey]*ruleset.Chain {
	reject := "icmp-port-unreachable"
	if s.IPv6 {
		reject = "icmp6-port-unreachable"
	}
	out := map[ruleset.ChainKey]*ruleset.Chain{}
	for k, c := range chains {
		n := &ruleset.Chain{Unit: c.Unit}
		for _, r := range c.Rules {
			text := strings.ReplaceAll(string(r), "-j REJECT", "-j REJECT --reject-with "+reject)
			if s.IPv6 {
				text = strings.NewReplacer(" 10.244.0.0/16", " fd00:244::/64", " 10.244.0.", " fd00:244::",
					" 10.96.0.", " fd00:96::", " 10.66.0.", " fd00:66::", "/32", "/128").Replace(text)
				if to, port, ok := strings.Cut(text, "--to-destination "); ok {
					text = to + "--to-destination [" + strings.TrimSuffix(port, ":80") + "]:80"
				}
			}
			n.Rules = append(n.Rules, ruleset.Rule(text))
		}
		out[k] = n
	}
	return out
}

func mustApply(t *testing.T, e *ruleset.Engine, o ruleset.Options) ruleset.Result {
	t.Helper()
	res, err := e.Apply(context.Background(), o)
	if err != nil {
		t.Fatalf("Apply(%+v) = %v", o, err)
	}
	return res
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

// TestKernelLife: start, restart, change, drift and clean-up beside rules of
// others.
func TestKernelLife(t *testing.T) {
	onKernel(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		const others = "*filter\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -m comment --comment \"it's -j DROP\" -j RETURN\nCOMMIT\n" +
			"*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n-A DOCKER -i docker0 -j RETURN\nCOMMIT\n"
		if err := h.Restore(s, others); err != nil {
			t.Fatal(err)
		}
		before := ordered(h.Save(s)).String()
		prune := ruleset.Options{Prune: true}
		for _, limit := range []int{0, 8} { // in one restore, and in many
			e := kernelEngine(s, h)
			e.SetLimits(limit, limit)
			e.Stage(translate(s, someServices().chains()))
			mustApply(t, e, prune)
			n := h.Restores()
			mustApply(t, e, ruleset.Options{Prune: true, Verify: true})
			again := kernelEngine(s, h)
			again.Stage(translate(s, someServices().chains()))
			mustApply(t, again, prune)
			if got := h.Restores() - n; got != 0 {
				t.Errorf("Verify and a restart ran %d restores, want none", got)
			}
			h.Do(s.String(), "-w", "-t", "nat", "-F", "KUBE-SVC-WEB")
			h.Do(s.String(), "-w", "-t", "nat", "-D", "OUTPUT", "-m", "comment", "--comment", "test portals", "-j", "KUBE-SERVICES")
			res := mustApply(t, e, ruleset.Options{Prune: true, Verify: true})
			want := []ruleset.ChainKey{svcKey("WEB"), {Table: ruleset.NAT, Name: "OUTPUT"}}
			if diff := gocmp.Diff(want, res.Drift); diff != "" {
				t.Errorf("Apply().Drift (-want +got):\n%s", diff)
			}
			if _, err := e.Clean(context.Background()); err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(before, ordered(h.Save(s)).String()); diff != "" {
				t.Errorf("rules after Clean() (-before +after):\n%s", diff)
			}
		}
	})
}

// TestKernelRefused: whatever the kernel or the command does not take is left
// out, and nothing else is.
func TestKernelRefused(t *testing.T) {
	for name, rule := range map[string]ruleset.Rule{
		"unknown match":         "-m nosuchmatch -j ACCEPT",
		"unknown target":        "-j NOSUCHTARGET",
		"too long a chain name": "-j A2345678901234567890123456789",
		"no object of the name": "-m nfacct --nfacct-name  no-such-object -j ACCEPT",
		"target not for nat":    "-j REJECT",
		"loop":                  "-j KUBE-SVC-BAD",
	} {
		t.Run(name, func(t *testing.T) {
			onKernel(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
				e := kernelEngine(s, h)
				want := translate(s, someServices().chains())
				e.Stage(want)
				mustApply(t, e, ruleset.Options{Prune: true})
				chains := translate(s, someServices().with("BAD", bad("10.66.0.1")).with("NEW", service{"10.96.0.13", []string{"10.244.0.5"}}).without("DNS").chains())
				for k := range want {
					if chains[k] == nil {
						chains[k] = nil // DNS goes
					}
				}
				sep := sepKey("BAD", "10.66.0.1")
				chains[sep] = &ruleset.Chain{Unit: "BAD", Rules: []ruleset.Rule{rule}}
				e.Stage(chains)
				res := mustApply(t, e, ruleset.Options{Prune: true})
				// A loop is found when something leads to it.
				if len(res.Refused) != 1 || res.Refused[0].Unit != "BAD" && res.Refused[0].Rule.Target() != svcKey("BAD").Name {
					t.Errorf("Refused = %v, want BAD, or what leads to it", res.Refused)
				}
				have := chainsOf(h.Save(s))
				for k, c := range translate(s, someServices().with("NEW", service{"10.96.0.13", []string{"10.244.0.5"}}).without("DNS").chains()) {
					if diff := gocmp.Diff(c.Rules, have[k]); diff != "" {
						t.Errorf("%s (-want +got):\n%s", k, diff)
					}
				}
				if _, ok := have[svcKey("DNS")]; ok {
					t.Errorf("DNS is still there")
				}
			})
		})
	}
}

// TestKernelPinned: a chain that rules of others lead to stays, with all that
// it leads to, and hinders nothing else.
func TestKernelPinned(t *testing.T) {
	onKernel(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		e := kernelEngine(s, h)
		e.Stage(translate(s, someServices().chains()))
		mustApply(t, e, ruleset.Options{Prune: true})
		if err := h.Restore(s, "*nat\n:OTHER - [0:0]\n-A OTHER -j KUBE-SVC-DNS\nCOMMIT\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Clean(context.Background()); err != nil {
			t.Fatalf("Clean() = %v", err)
		}
		var left []string
		for k := range chainsOf(h.Save(s)) {
			if strings.HasPrefix(k.Name, "KUBE-") {
				left = append(left, k.String())
			}
		}
		want := []string{"nat/KUBE-MARK-MASQ", "nat/KUBE-SEP-DNS-10.244.0.3", "nat/KUBE-SVC-DNS"}
		if diff := gocmp.Diff(want, sorted(left)); diff != "" {
			t.Errorf("chains left (-want +got):\n%s", diff)
		}
	})
}

// TestKernelComments: a comment is printed as Quote does it, whatever it holds.
func TestKernelComments(t *testing.T) {
	onKernel(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		var want []ruleset.Rule
		printable := ""
		for c := byte(' '); c <= '~'; c++ {
			printable += string(c)
		}
		texts := []string{"", "-j", `"`, `\`, `\"`, "it's", "é", " x ", "a -j B", printable, strings.Repeat("x", ruleset.MaxComment)}
		for c := byte(' '); c <= '~'; c++ {
			texts = append(texts, string(c), "a"+string(c))
		}
		for _, text := range texts {
			want = append(want, ruleset.Rule("-m comment --comment "+ruleset.Quote(text)+" -j ACCEPT"))
		}
		e := kernelEngine(s, h)
		e.Stage(map[ruleset.ChainKey]*ruleset.Chain{
			forward: {Rules: want}, natServices: {}, filterServices: {},
		})
		mustApply(t, e, ruleset.Options{Prune: true})
		if diff := gocmp.Diff(want, chainsOf(h.Save(s))[forward]); diff != "" {
			t.Errorf("rules (-want +got):\n%s", diff)
		}
	})
}

// TestKernelForeignRules: what others have written does not keep us from
// reading ours.
func TestKernelForeignRules(t *testing.T) {
	onKernel(t, func(t *testing.T, s kerneltest.Setup, h *kerneltest.Host) {
		h.Do(s.String(), "-w", "-A", "INPUT", "-m", "comment", "--comment", "a\nCOMMIT\n*nat", "-j", "ACCEPT")
		if _, err := exec.LookPath("nft"); err == nil && s.Variant == ruleset.NFT {
			family := map[bool]string{false: "ip", true: "ip6"}[s.IPv6]
			h.Do(s.String(), "-w", "-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT")
			h.Do("nft", "add", "rule", family, "raw", "PREROUTING", "fib", "saddr", "type", "local", "counter")
		}
		e := kernelEngine(s, h)
		e.Stage(translate(s, someServices().chains()))
		mustApply(t, e, ruleset.Options{Prune: true})
		n := h.Restores()
		mustApply(t, e, ruleset.Options{Prune: true, Verify: true})
		if h.Restores() != n {
			t.Errorf("another Apply() wrote something")
		}
		if _, err := e.Clean(context.Background()); err != nil {
			t.Errorf("Clean() = %v", err)
		}
	})
}
