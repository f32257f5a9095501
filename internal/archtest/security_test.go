// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"strings"
	"testing"
)

// knownProblems are those that other service proxies, and what stands beside them, have had.
var knownProblems = []string{
	"CVE-2020-8554", "GHSA-phqm-jgc3-qf8g", "GHSA-v5mh-h5hx-7v92", "CVE-2020-8558", "CVE-2019-9946", "CVE-2025-67499",
	"CVE-2021-25737", "CVE-2021-25740", "CVE-2020-10749", "#139515", "#33586", "#111863", "#76892", "#72236",
}

// TestSecurity: every problem that docs/security.md lists names tests, all of which
// exist, or says that it is not prevented.
func TestSecurity(t *testing.T) {
	_, problems, found := strings.Cut(readDoc(t, "security.md"), "\n## Known problems")
	rows := cells(problems)
	if !found || len(rows) == 0 {
		t.Fatal("docs/security.md lists no problems")
	}
	for _, id := range knownProblems {
		if !strings.Contains(problems, id) {
			t.Errorf("docs/security.md does not say what becomes of %s", id)
		}
	}
	tests := testIndex{}
	for _, row := range rows {
		if len(row) != 3 {
			t.Errorf("a row has %d cells, want 3: %q", len(row), row)
			continue
		}
		named := 0
		for i, name := range strings.Split(row[2], "`") {
			if i%2 == 0 {
				continue
			}
			if named++; !tests.has(t, name) {
				t.Errorf("docs/security.md names %s, which does not exist", name)
			}
		}
		if prevented := !strings.HasPrefix(row[1], "not prevented"); prevented != (named > 0) {
			t.Errorf("%q: names %d tests, and says %q", row[0], named, row[1])
		}
	}
}
