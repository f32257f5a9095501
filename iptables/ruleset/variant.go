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
// rules, else what the iptables command in PATH is. It changes nothing, makes
// no table, and reads little more than it takes to decide.
//
// A variant whose save command for a family is absent, or whose rules cannot be
// read, shows no use.
func DetectVariant(ctx context.Context, h Host) (Variant, error) {
	nft, legacy := nftUse(ctx, h), legacyUse(h)
	if in := nft.kubelet(); in != legacy.kubelet(ctx) {
		return pick(in), nil
	}
	// Mostly one of the two has no rules, or few, and the other many.
	for limit := 1000; ; limit *= 10 {
		n := nft.count(limit)
		l := legacy.count(ctx, n)
		switch {
		case n > limit && l >= n: // neither has been counted to the end
		case n != l:
			return pick(n > l), nil
		default:
			return variantInPath(ctx, h.Exec)
		}
	}
}

func variantInPath(ctx context.Context, x Exec) (Variant, error) {
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

// kubeletChains are those that kubelet leaves in the mangle table.
func kubeletChains() []string { return []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"} }
