// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
)

// tables returns what a save command prints for a host with that many rules,
// and with kubelet's chains where kubelet is set.
func tables(rules int, kubelet string) string {
	var b strings.Builder
	if kubelet != "" {
		b.WriteString("*mangle\n:" + kubelet + " - [0:0]\nCOMMIT\n")
	}
	b.WriteString("*filter\n:INPUT ACCEPT [0:0]\n" + strings.Repeat("-A INPUT -j ACCEPT\n", rules) + "COMMIT\n")
	return b.String()
}

// hostOf returns a host that has what the save commands of x print.
func hostOf(t *testing.T, x script) Host {
	t.Helper()
	tables, names := dumpTables{}, fstest.MapFS{}
	for name, f := range x {
		base, save := strings.CutSuffix(name, "-save")
		if !save {
			continue
		}
		var out bytes.Buffer
		_ = f(Command{Name: name, Stdout: &out}) // one that fails prints nothing
		d, err := Parse(&out)
		if err != nil {
			t.Fatal(err)
		}
		if family, nft := strings.CutSuffix(base, "tables-nft"); nft {
			tables[family == "ip6"] = d
			continue
		}
		var list strings.Builder
		for _, table := range d {
			list.WriteString(string(table.Name) + "\n")
		}
		names[strings.TrimSuffix(base, "tables-legacy")+"_tables_names"] = &fstest.MapFile{Data: []byte(list.String())}
	}
	return Host{Exec: x, NFTables: tables, ProcNet: names}
}

// dumpTables are NFTables of which dumps were made, by whether they are IPv6.
type dumpTables map[bool]Dump

func (d dumpTables) HasChain(ipv6 bool, t Table, chain string) (bool, error) {
	for _, table := range d[ipv6] {
		for _, c := range table.Chains {
			if table.Name == t && c.Name == chain {
				return true, nil
			}
		}
	}
	return false, nil
}

func (d dumpTables) CountRules(ipv6 bool, t Table, limit int) (int, error) {
	n := 0
	for _, table := range d[ipv6] {
		for _, c := range table.Chains {
			if table.Name == t {
				n += len(c.Rules)
			}
		}
	}
	return min(n, limit+1), nil
}

func TestDetectVariant(t *testing.T) {
	fails := &CommandError{Name: "iptables-legacy-save", ExitCode: 3}
	for _, tt := range []struct {
		name string
		exec script
		want Variant
	}{
		{
			name: "kubelet's chains decide over more rules",
			exec: script{"iptables-legacy-save": prints(tables(1, "KUBE-KUBELET-CANARY"), nil), "iptables-nft-save": prints(tables(9, ""), nil)},
			want: Legacy,
		},
		{
			name: "kubelet's hint decides, also of IPv6",
			exec: script{"iptables-legacy-save": prints(tables(9, ""), nil), "ip6tables-nft-save": prints(tables(0, "KUBE-IPTABLES-HINT"), nil)},
			want: NFT,
		},
		{
			name: "kubelet in both, more rules decide",
			exec: script{"iptables-legacy-save": prints(tables(3, "KUBE-KUBELET-CANARY"), nil), "iptables-nft-save": prints(tables(2, "KUBE-IPTABLES-HINT"), nil)},
			want: Legacy,
		},
		{
			name: "more rules decide, families together",
			exec: script{
				"iptables-legacy-save": prints(tables(3, ""), nil), "ip6tables-legacy-save": prints(tables(0, ""), nil),
				"iptables-nft-save": prints(tables(2, ""), nil), "ip6tables-nft-save": prints(tables(2, ""), nil),
				"iptables": prints(saysLegacy, nil),
			},
			want: NFT,
		},
		{
			name: "more rules decide, many in both: legacy",
			exec: script{"iptables-legacy-save": prints(tables(12_346, ""), nil), "iptables-nft-save": prints(tables(12_345, ""), nil)},
			want: Legacy,
		},
		{
			name: "more rules decide, many in both: nft",
			exec: script{"iptables-legacy-save": prints(tables(12_345, ""), nil), "iptables-nft-save": prints(tables(12_346, ""), nil)},
			want: NFT,
		},
		{
			name: "a save command that fails is no use",
			exec: script{
				"iptables-legacy-save": func(c Command) error { return prints(tables(0, ""), failIfTable(c, fails))(c) },
				"iptables":             prints(saysNFT, nil),
			},
			want: NFT,
		},
		{
			name: "a table without built-in chains is not of iptables",
			exec: script{
				"iptables-legacy-save": prints(tables(1, ""), nil),
				"iptables-nft-save":    prints("*filter\n:input - [0:0]\n"+strings.Repeat("-A input -j ACCEPT\n", 2)+"COMMIT\n", nil),
			},
			want: Legacy,
		},
		{"no rules, PATH decides for nft", script{"iptables": prints(saysNFT, nil)}, NFT},
		{"no rules, PATH decides for legacy", script{"iptables": prints(saysLegacy, nil), "iptables-nft-save": prints("", nil)}, Legacy},
		{
			name: "as many rules, PATH decides",
			exec: script{"iptables-legacy-save": prints(tables(2, ""), nil), "iptables-nft-save": prints(tables(2, ""), nil), "iptables": prints(saysNFT, nil)},
			want: NFT,
		},
		{
			name: "as many rules, and many, PATH decides",
			exec: script{"iptables-legacy-save": prints(tables(5000, ""), nil), "iptables-nft-save": prints(tables(5000, ""), nil), "iptables": prints(saysLegacy, nil)},
			want: Legacy,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DetectVariant(t.Context(), hostOf(t, tt.exec))
			if err != nil || got != tt.want {
				t.Errorf("DetectVariant() = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// failIfTable returns err for a command that is asked for one table.
func failIfTable(c Command, err error) error {
	if len(c.Args) > 0 {
		return err
	}
	return nil
}

func TestDetectVariantNeedsTheCommands(t *testing.T) {
	h := hostOf(t, script{"iptables-nft-save": prints(tables(9, "KUBE-KUBELET-CANARY"), nil)})
	h.Exec = script{"iptables": prints(saysLegacy, nil)}
	if got, err := DetectVariant(t.Context(), h); got != Legacy || err != nil {
		t.Errorf("DetectVariant() = %q, %v without the commands of nft, want what is in PATH", got, err)
	}
	_, err := DetectVariant(t.Context(), hostOf(t, script{}))
	if !errors.Is(err, ErrNoCommand) || !strings.Contains(err.Error(), "iptables not found") {
		t.Errorf("DetectVariant() = %v, want ErrNoCommand that names iptables", err)
	}
}

// TestDetectVariantReadsLittle: the legacy command reads only tables that there
// are, or it would load others into the kernel, and no more of them than it
// takes.
func TestDetectVariantReadsLittle(t *testing.T) {
	for _, tt := range []struct {
		name        string
		nft, legacy string // tables; legacy without its rules
		want        string
	}{
		{
			name: "nothing there",
			want: "iptables-nft-save --version,ip6tables-nft-save --version,iptables --version",
		},
		{
			name: "kubelet in nft", nft: tables(0, "KUBE-KUBELET-CANARY"), legacy: "nat\nfilter\n",
			want: "iptables-nft-save --version,ip6tables-nft-save --version",
		},
		{
			name: "nothing in nft", legacy: "nat\nfilter\nmangle\n",
			want: "iptables-nft-save --version,ip6tables-nft-save --version,iptables-legacy-save -t mangle,iptables-legacy-save -t filter",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ran []string
			note := func(c Command) error {
				ran = append(ran, strings.Join(append([]string{c.Name}, c.Args...), " "))
				return prints(tables(7, ""), nil)(c)
			}
			h := hostOf(t, script{"iptables-nft-save": prints(tt.nft, nil)})
			h.ProcNet = fstest.MapFS{"ip_tables_names": {Data: []byte(tt.legacy)}}
			h.Exec = script{
				"iptables-nft-save": note, "iptables-legacy-save": note, "ip6tables-nft-save": note, "ip6tables-legacy-save": note, "iptables": note,
			}
			if _, err := DetectVariant(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(ran, ","); got != tt.want {
				t.Errorf("DetectVariant() ran %q, want %q", got, tt.want)
			}
		})
	}
}
