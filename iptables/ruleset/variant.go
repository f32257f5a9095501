// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Variant is one of the two implementations of iptables. Their rules live side
// by side in the kernel and do not see each other, so all that write rules on
// a host must use the same one.
type Variant string

// The variants, as the commands' names spell them.
const (
	NFT    Variant = "nft"    // rules in nf_tables
	Legacy Variant = "legacy" // rules in the kernel's ip_tables and ip6_tables
)

// ErrNoCommand says that a needed iptables command is not installed.
var ErrNoCommand = errors.New("install the iptables package, or put its commands on PATH")

// CommandsFor returns the commands of a variant: those named for it, or the
// plain ones where only these are there and are of the variant.
func CommandsFor(ctx context.Context, x Exec, v Variant, ipv6 bool) (Commands, error) {
	base := baseName(ipv6)
	named := Commands{Restore: base + "-" + string(v) + "-restore", Save: base + "-" + string(v) + "-save"}
	if _, err := version(ctx, x, named.Restore); err == nil {
		return named, nil
	}
	plain := Commands{Restore: base + "-restore", Save: base + "-save"}
	got, err := version(ctx, x, plain.Restore)
	if errors.Is(err, exec.ErrNotFound) {
		return Commands{}, fmt.Errorf("%s and %s not found: %w", named.Restore, plain.Restore, ErrNoCommand)
	}
	if err != nil {
		return Commands{}, err
	}
	if got != v {
		return Commands{}, fmt.Errorf("%s is the %s variant and %s was not found: %w", plain.Restore, got, named.Restore, ErrNoCommand)
	}
	return plain, nil
}

func baseName(ipv6 bool) string {
	if ipv6 {
		return "ip6tables"
	}
	return "iptables"
}

// version asks a command which variant it is. Commands older than iptables 1.8
// do not say; they are legacy.
func version(ctx context.Context, x Exec, name string) (Variant, error) {
	var out bytes.Buffer
	if err := x.Run(ctx, Command{Name: name, Args: []string{"--version"}, Stdout: &out}); err != nil {
		return "", err
	}
	if strings.Contains(out.String(), "nf_tables") {
		return NFT, nil
	}
	return Legacy, nil
}

// DetectVariant finds out which variant this host uses: the one in which
// kubelet has left its chains in the mangle table, else the one with more
// rules, else what the iptables command in PATH is. It changes nothing, and
// loads no kernel module.
func DetectVariant(ctx context.Context, x Exec) (Variant, error) {
	var nft, legacy usage
	for _, base := range []string{baseName(false), baseName(true)} {
		nft.read(ctx, x, base+"-nft-save")
		legacy.read(ctx, x, base+"-legacy-save")
	}
	switch {
	case nft.kubelet != legacy.kubelet:
		return pick(nft.kubelet), nil
	case nft.rules != legacy.rules:
		return pick(nft.rules > legacy.rules), nil
	}
	v, err := version(ctx, x, "iptables")
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("iptables not found: %w", ErrNoCommand)
	}
	return v, err
}

func pick(nft bool) Variant {
	if nft {
		return NFT
	}
	return Legacy
}

// usage is a visitor that sees how much a variant is used.
type usage struct {
	kubelet bool
	rules   int
}

// read adds what a save command prints. A command that is absent, or that
// cannot read the tables, shows no use. Without a table named, the legacy
// command lists only tables that the kernel has already.
func (u *usage) read(ctx context.Context, x Exec, save string) {
	_ = Commands{Save: save}.save(ctx, x, u)
}

func (u *usage) unreadable(Table) error { return nil }

func (u *usage) table(Table) {}

func (u *usage) chain(k ChainKey, _ string) {
	if k.Table == Mangle && (k.Name == "KUBE-IPTABLES-HINT" || k.Name == "KUBE-KUBELET-CANARY") {
		u.kubelet = true
	}
}

func (u *usage) rule(ChainKey, []byte) { u.rules++ }
