// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDocs: docs/architecture.md lists every rule, and has a row for every
// package that is not a helper of a test.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	for _, r := range rules {
		if !strings.Contains(doc, "\n- "+r.name+"\n") {
			t.Errorf("docs/architecture.md does not list the rule %q", r.name)
		}
	}
	for pkg := range load(t) {
		if !strings.Contains(doc, "| `"+pkg+"` |") && !strings.HasSuffix(pkg, "test") {
			t.Errorf("docs/architecture.md has no row for the package %s", pkg)
		}
	}
}
