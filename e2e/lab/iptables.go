// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"fairlead/proxier/model"
)

// Variant is one of the two iptables command families.
type Variant string

// The variants.
const (
	NFT    Variant = "nft"
	Legacy Variant = "legacy"
)

// Variants returns both variants.
func Variants() []Variant { return []Variant{NFT, Legacy} }

// Tool returns the name of an iptables command: Tool(IPv6, "-restore") of
// Legacy is ip6tables-legacy-restore.
func (v Variant) Tool(f model.Family, suffix string) string {
	name := "iptables-"
	if f == model.IPv6 {
		name = "ip6tables-"
	}
	return name + string(v) + suffix
}

// Link fills a directory with links to the commands under the names that have no
// variant: who takes the iptables that it finds takes this one.
func (v Variant) Link(dir string) error {
	var errs []error
	for _, f := range model.Families() {
		for _, suffix := range []string{"", "-save", "-restore"} {
			tool, err := exec.LookPath(v.Tool(f, suffix))
			if err != nil {
				return fmt.Errorf("find command: %w", err)
			}
			plain := strings.Replace(filepath.Base(tool), "-"+string(v), "", 1)
			errs = append(errs, os.Symlink(tool, filepath.Join(dir, plain)))
		}
	}
	return errors.Join(errs...)
}

// Iptables runs one iptables command in the namespace, waiting for the lock.
func (ns *NS) Iptables(ctx context.Context, v Variant, f model.Family, args ...string) error {
	_, err := ns.Run(ctx, v.Tool(f, ""), append([]string{"-w", "5"}, args...)...)
	return err
}

// Restore feeds rules to iptables-restore --noflush in the namespace.
func (ns *NS) Restore(ctx context.Context, v Variant, f model.Family, rules string) error {
	tool := v.Tool(f, "-restore")
	cmd := ns.Command(ctx, tool, "--noflush", "-w", "5")
	cmd.Stdin = strings.NewReader(rules)
	_, err := output(cmd, ns.Label+": "+tool)
	return err
}

// Save returns the output of iptables-save in the namespace without comment
// lines and counters.
func (ns *NS) Save(ctx context.Context, v Variant, f model.Family) (string, error) {
	out, err := ns.Run(ctx, v.Tool(f, "-save"))
	if err != nil {
		return "", fmt.Errorf("save rules: %w", err)
	}
	return normalise(out), nil
}

var counters = regexp.MustCompile(`(?m)^(:.*) \[\d+:\d+\]$`)

func normalise(save string) string {
	var b strings.Builder
	for line := range strings.Lines(save) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return counters.ReplaceAllString(b.String(), "$1")
}
