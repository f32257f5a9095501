// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Host is where DetectVariant looks for rules.
type Host struct {
	Exec     Exec
	NFTables NFTables
	// ProcNet is /proc/net, in which ip_tables_names and ip6_tables_names list
	// the tables of the legacy variant.
	ProcNet fs.FS
}

// SystemHost is the network namespace of the thread that looks.
func SystemHost() Host {
	return Host{Exec: SystemExec{}, NFTables: KernelNFTables{}, ProcNet: os.DirFS("/proc/thread-self/net")}
}

// inNFT is what the nft variant has.
type inNFT struct {
	NFTables
	ipv6 []bool // the families that it has commands for
}

func nftUse(ctx context.Context, h Host) inNFT {
	use := inNFT{NFTables: h.NFTables}
	for _, ipv6 := range []bool{false, true} {
		if _, err := version(ctx, h.Exec, baseName(ipv6)+"-nft-save"); err == nil {
			use.ipv6 = append(use.ipv6, ipv6)
		}
	}
	return use
}

// kubelet tells whether kubelet's chains are there.
func (u inNFT) kubelet() bool {
	return slices.ContainsFunc(u.ipv6, func(ipv6 bool) bool { return u.hasAny(ipv6, Mangle, kubeletChains()) })
}

// hasAny tells whether a table has any of the chains.
func (u inNFT) hasAny(ipv6 bool, t Table, chains []string) bool {
	return slices.ContainsFunc(chains, func(chain string) bool {
		has, err := u.HasChain(ipv6, t, chain)
		return err == nil && has
	})
}

// count counts the rules, to the end or to more than limit. A table without any
// built-in chain is not of iptables.
func (u inNFT) count(limit int) int {
	builtin := []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	sum := 0
	for _, ipv6 := range u.ipv6 {
		for _, t := range []Table{Filter, Mangle, "raw", "security", NAT} {
			if sum <= limit && u.hasAny(ipv6, t, builtin) {
				n, _ := u.CountRules(ipv6, t, limit-sum) // what was read counts
				sum += n
			}
		}
	}
	return sum
}

// inLegacy is what the legacy variant has: tables that the kernel has already.
// To ask for another would make the kernel load it.
type inLegacy struct {
	exec   Exec
	tables []legacyTable
}

type legacyTable struct {
	save string
	name Table
}

func legacyUse(h Host) inLegacy {
	var others, nat []legacyTable
	for _, base := range []string{baseName(false), baseName(true)} {
		names, _ := fs.ReadFile(h.ProcNet, strings.TrimSuffix(base, "tables")+"_tables_names")
		for name := range strings.FieldsSeq(string(names)) {
			t := legacyTable{base + "-legacy-save", Table(name)}
			if t.name == NAT {
				nat = append(nat, t)
			} else {
				others = append(others, t)
			}
		}
	}
	return inLegacy{exec: h.Exec, tables: append(others, nat...)} // where there are many rules, they are in nat
}

// kubelet tells whether kubelet's chains are there.
func (u inLegacy) kubelet(ctx context.Context) bool {
	return slices.ContainsFunc(u.tables, func(t legacyTable) bool {
		return t.name == Mangle && u.read(ctx, t).kubelet
	})
}

// count counts the rules, to the end or to more than limit.
func (u inLegacy) count(ctx context.Context, limit int) int {
	sum := 0
	for _, t := range u.tables {
		if sum <= limit {
			sum += u.read(ctx, t).rules
		}
	}
	return sum
}

func (u inLegacy) read(ctx context.Context, t legacyTable) tally {
	c := tally{of: t.name}
	_ = Commands{Save: t.save}.save(ctx, u.exec, &c, "-t", string(t.name)) // what was read counts
	return c
}

// tally is a visitor that sees how much a table is used.
type tally struct {
	of      Table
	kubelet bool
	rules   int
}

func (c *tally) unreadable(Table) error { return nil }

func (c *tally) table(Table) {}

func (c *tally) chain(k ChainKey, _ string) {
	if k.Table == Mangle && slices.Contains(kubeletChains(), k.Name) {
		c.kubelet = true
	}
}

func (c *tally) rule(k ChainKey, _ []byte) {
	if k.Table == c.of {
		c.rules++
	}
}
