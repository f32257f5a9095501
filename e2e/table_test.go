// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"fairlead/e2e/lab"
)

var (
	countedText  = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	expiresText  = regexp.MustCompile(` expires \S+`)
	elementsText = regexp.MustCompile(`(?s)elements = \{ (.*?) \}`)
	betweenText  = regexp.MustCompile(`,\s+`)
)

// tableText lists the table of nftables mode, of both families, empty where there is
// none: elements in order, without what packets change.
func tableText(ctx context.Context, t *testing.T, n *lab.Node) string {
	t.Helper()
	has := tables(ctx, t, n)
	out := ""
	for _, family := range []string{"ip", "ip6"} {
		if !slices.Contains(strings.Split(has, "\n"), "table "+family+" fairlead") {
			continue
		}
		text, err := n.Run(ctx, "nft", "list", "table", family, "fairlead")
		if err != nil {
			t.Fatal(err)
		}
		out += inOrder(text)
	}
	out = expiresText.ReplaceAllString(countedText.ReplaceAllString(out, "counter"), "")
	return elementsText.ReplaceAllStringFunc(out, func(s string) string {
		parts := betweenText.Split(elementsText.FindStringSubmatch(s)[1], -1)
		slices.Sort(parts)
		return "elements = { " + strings.Join(parts, ", ") + " }"
	})
}

// inOrder puts sets and chains of a table in order: the kernel's is that in which they were
// made.
func inOrder(table string) string {
	head, rest, _ := strings.Cut(strings.TrimSuffix(table, "}\n"), "\n")
	comment := ""
	if first, more, ok := strings.Cut(rest, "\n"); ok && strings.HasPrefix(first, "\tcomment") {
		comment, rest = first+"\n", more
	}
	objects := strings.Split(strings.TrimRight(rest, "\n"), "\n\n")
	slices.Sort(objects)
	return head + "\n" + comment + strings.Join(objects, "\n\n") + "\n}\n"
}

// inTable tells whether a set or map of the table has elements, in any family.
func inTable(ctx context.Context, t *testing.T, n *lab.Node, name string) bool {
	t.Helper()
	blocks := strings.Split(tableText(ctx, t, n), "\n\n")
	return slices.ContainsFunc(blocks, func(block string) bool {
		return strings.Contains(block, " "+name+" {\n") && strings.Contains(block, "elements = ")
	})
}

// rulesFor tells whether there are rules for pods that come to the outside, or for host
// ports: a chain of iptables, or in nftables mode a set with something in it.
func rulesFor(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant, set string, chains ...string) bool {
	t.Helper()
	rules := save(ctx, t, n, v)
	if slices.ContainsFunc(chains, func(chain string) bool { return strings.Contains(rules, chain) }) {
		return true
	}
	return *proxyMode == "nftables" && inTable(ctx, t, n, set)
}

// masquerades tells whether there are rules for pods that come to the outside.
func masquerades(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) bool {
	t.Helper()
	return rulesFor(ctx, t, n, v, "masqueraded-pods", "KUBE-POD-MASQ")
}

// hasHostPorts tells whether there are rules for host ports.
func hasHostPorts(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) bool {
	t.Helper()
	return rulesFor(ctx, t, n, v, "host-ports", "KUBE-HOSTPORTS", "KUBE-HP-")
}
