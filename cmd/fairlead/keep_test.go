// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
	"fairlead/ipvs"
	"fairlead/proxier/model"
)

// What kube-proxy v1.36 has in its modes, as its sources list it. Chains that are named
// by Services end in X.
const (
	keptByIPTables = `filter KUBE-EXTERNAL-SERVICES
filter KUBE-FIREWALL
filter KUBE-FORWARD
filter KUBE-NODEPORTS
filter KUBE-PROXY-CANARY
filter KUBE-PROXY-FIREWALL
filter KUBE-SERVICES
filter INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
filter INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
filter INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
filter INPUT -j KUBE-FIREWALL
filter FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
filter FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
filter FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
filter FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
filter OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
filter OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
filter OUTPUT -j KUBE-FIREWALL
mangle KUBE-PROXY-CANARY
nat KUBE-EXT-X
nat KUBE-FW-X
nat KUBE-MARK-MASQ
nat KUBE-NODEPORTS
nat KUBE-POSTROUTING
nat KUBE-PROXY-CANARY
nat KUBE-SEP-X
nat KUBE-SERVICES
nat KUBE-SVC-X
nat KUBE-SVL-X
nat OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
nat POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
nat PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`
	keptByIPVS = `filter KUBE-FORWARD
filter KUBE-IPVS-FILTER
filter KUBE-IPVS-OUT-FILTER
filter KUBE-NODE-PORT
filter KUBE-PROXY-FIREWALL
filter KUBE-SOURCE-RANGES-FIREWALL
filter FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
filter FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
filter INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
filter INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
filter INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
filter OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
nat KUBE-LOAD-BALANCER
nat KUBE-MARK-MASQ
nat KUBE-NODE-PORT
nat KUBE-POSTROUTING
nat KUBE-SERVICES
nat OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
nat POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
nat PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`
)

// TestKeep: of all chains and jumps of all modes, ours and kube-proxy's, those stay that
// kube-proxy has in the mode that is kept.
func TestKeep(t *testing.T) {
	for mode, want := range map[string]string{iptablesName: keptByIPTables, ipvsName: keptByIPVS, nftablesName: "", "": ""} {
		t.Run("keep "+mode, func(t *testing.T) {
			r, err := removeParts(nil, nil)
			if mode != "" {
				r, err = keeping(mode, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			k := &fake.Kernel{}
			if err := k.Edit(everything(r)); err != nil {
				t.Fatal(err)
			}
			none := func(string) []ruleset.Rule { return nil }
			if _, err := ruleset.NewEngine(ruleset.Config{
				Exec: k, Variant: ruleset.NFT, Commands: ruleset.Commands{Restore: "iptables-restore", Save: "iptables-save"},
				Contributions: r.contributions(model.IPv4, none), Heir: r.heir(),
			}).Clean(t.Context()); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(want, "\n")
			slices.Sort(lines)
			if diff := cmp.Diff(strings.Join(lines, "\n"), chainsAndJumps(k.Save())); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}

// everything is a restore input with all chains that there may be, empty, and all jumps.
func everything(r removal) string {
	chains, jumps := map[ruleset.ChainKey]bool{}, map[ruleset.Jump]bool{}
	all := r.contributions(model.IPv4, func(string) []ruleset.Rule { return nil })
	all = append(all, ipvs.Contribution(ipvs.Config{MasqueradeNeighbours: true}))
	for _, heir := range []ruleset.Heir{idiom.KubeProxyIPTables(), idiom.KubeProxyIPVS()} {
		all = append(all, ruleset.Contribution{Owns: heir.Chains, Jumps: heir.Jumps})
	}
	for _, c := range all {
		for _, k := range slices.Concat(c.Owns, c.Relics) {
			k.Name = strings.Replace(k.Name, "*", "X", 1)
			chains[k] = true
		}
		for _, j := range slices.Concat(c.Jumps, c.Former) {
			j.Last = false
			jumps[j] = true
		}
		for _, g := range c.Guests {
			chains[g.Rule.ChainKey] = true
			for _, j := range g.Jumps {
				jumps[j] = true
			}
		}
	}
	var out strings.Builder
	for _, table := range []ruleset.Table{ruleset.Filter, ruleset.Mangle, ruleset.NAT} {
		fmt.Fprintf(&out, "*%s\n", table)
		for k := range chains {
			if k.Table == table {
				fmt.Fprintf(&out, ":%s - [0:0]\n", k.Name)
			}
		}
		for j := range jumps {
			if j.Table == table {
				fmt.Fprintf(&out, "-A %s %s\n", j.Name, j.Rule)
			}
		}
		out.WriteString("COMMIT\n")
	}
	return out.String()
}

// chainsAndJumps lists what a save has, each line with its table, in order.
func chainsAndJumps(save string) string {
	var out []string
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		if name, ok := strings.CutSuffix(line, " - [0:0]"); ok {
			out = append(out, table+" "+strings.TrimPrefix(name, ":"))
		}
		if rule, ok := strings.CutPrefix(line, "-A "); ok {
			out = append(out, table+" "+rule)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestKeeping(t *testing.T) {
	for _, mode := range []string{"", "IPVS", "winkernel"} {
		_, err := keeping(mode, nil)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("--keep %q", mode)) || !strings.Contains(err.Error(), "iptables, ipvs or nftables") {
			t.Errorf("keeping(%q) = %v, want an error that names it and what there is", mode, err)
		}
	}
}

// TestRefuseOtherMode: what a proxy says of its mode has to agree, if it says it.
func TestRefuseOtherMode(t *testing.T) {
	answer := func(status int, text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/proxyMode" {
				t.Errorf("asked for %s", r.URL.Path)
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(text))
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for addr, want := range map[string]string{
		answer(http.StatusOK, "ipvs"):          "",
		answer(http.StatusOK, "iptables"):      `answers "iptables"`,
		answer(http.StatusNotFound, "no such"): "",
		closed.Listener.Addr().String():        "",
	} {
		err := refuseOtherMode(t.Context(), ipvsName, addr)
		if got := fmt.Sprint(err); (err != nil) != (want != "") || !strings.Contains(got, want) || err != nil && !strings.Contains(got, "--keep=ipvs") {
			t.Errorf("refuseOtherMode(%s) = %v, want %q", addr, err, want)
		}
	}
}
