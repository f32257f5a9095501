// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// kubeLines returns how many lines of iptables-save name a chain of the
// proxy's, over both variants and families.
func (d *demo) kubeLines(ctx context.Context) (int, error) {
	count := 0
	for _, v := range lab.Variants() {
		for _, f := range model.Families() {
			rules, err := d.save(ctx, v, f)
			if err != nil {
				return 0, err
			}
			for line := range strings.Lines(rules) {
				if strings.Contains(line, "KUBE-") {
					count++
				}
			}
		}
	}
	return count, nil
}

// save is iptables-save; a variant that is not installed has no rules.
func (d *demo) save(ctx context.Context, v lab.Variant, f model.Family) (string, error) {
	if _, err := exec.LookPath(v.Tool(f, "-save")); err != nil {
		return "", nil
	}
	return d.node().Save(ctx, v, f)
}

// servicePath returns the lines of iptables-save that a connection to the
// Service meets, each indented by the number of chains before it.
func (d *demo) servicePath(ctx context.Context) ([]string, error) {
	for _, v := range lab.Variants() {
		rules, err := d.save(ctx, v, model.IPv4)
		if err != nil {
			return nil, err
		}
		if lines := follow(natRules(rules), "KUBE-SERVICES", vip(model.IPv4).Addr().String()+"/32", 0); len(lines) > 0 {
			return lines, nil
		}
	}
	return nil, fmt.Errorf("find rules: iptables-save shows no KUBE-SERVICES rule for %s", vip(model.IPv4).Addr())
}

// natRules returns the rules of the nat table by chain.
func natRules(save string) map[string][]string {
	rules := map[string][]string{}
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		if rest, ok := strings.CutPrefix(line, "-A "); ok && table == "nat" {
			chain, _, _ := strings.Cut(rest, " ")
			rules[chain] = append(rules[chain], line)
		}
	}
	return rules
}

// follow returns the rules of chain that contain only, each followed by the
// rules of the Service's chain it leads to.
func follow(rules map[string][]string, chain, only string, depth int) []string {
	var lines []string
	for _, rule := range rules[chain] {
		if !strings.Contains(rule, only) {
			continue
		}
		lines = append(lines, strings.Repeat("  ", depth)+rule)
		target := targetOf(rule)
		if strings.HasPrefix(target, "KUBE-SVC-") || strings.HasPrefix(target, "KUBE-SEP-") {
			lines = append(lines, follow(rules, target, "", depth+1)...)
		}
	}
	return lines
}

func targetOf(rule string) string {
	words := strings.Fields(rule)
	for i, w := range words[:len(words)-1] {
		if w == "-j" || w == "-g" {
			return words[i+1]
		}
	}
	return ""
}
