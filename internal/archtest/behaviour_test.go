// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// readDoc returns a file in docs.
func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// cells returns the cells of the rows of a page's tables, without their heads.
func cells(doc string) (rows [][]string) {
	head := true
	for line := range strings.Lines(doc) {
		line, isRow := strings.CutPrefix(strings.TrimSpace(line), "| ")
		switch {
		case strings.HasPrefix(line, "|---"):
			head = false
		case !isRow:
			head = true
		case !head:
			rows = append(rows, strings.Split(strings.TrimSuffix(line, " |"), " | "))
		}
	}
	return rows
}

// TestBehaviour: every row of docs/behaviour.md names tests, all of which exist;
// every scenario of the suite, and every row of docs/differences.md, has a row.
func TestBehaviour(t *testing.T) {
	rows := cells(readDoc(t, "behaviour.md"))
	if len(rows) == 0 {
		t.Fatal("docs/behaviour.md has no rows")
	}
	tests := testIndex{}
	scenarios, linked := map[string]bool{}, map[string]bool{}
	link := regexp.MustCompile(`\[([^\]]+)\]\(differences\.md\)`)
	for _, row := range rows {
		for _, m := range link.FindAllStringSubmatch(row[0], -1) {
			linked[m[1]] = true
		}
		named := 0
		for name := range strings.SplitSeq(row[len(row)-1], "`") {
			if name = strings.Trim(name, ", "); name == "" {
				continue
			}
			named++
			scenario, isScenario := strings.CutPrefix(name, "scenario ")
			if isScenario {
				scenarios[scenario] = true
				name = "e2e/suite.TestTracedSuite/" + scenario
			}
			if !tests.has(t, name) {
				t.Errorf("docs/behaviour.md names %s, which does not exist", name)
			}
		}
		if named == 0 {
			t.Errorf("docs/behaviour.md names no test that says: %s", row[0])
		}
	}
	for _, s := range scenarioNames(t) {
		if !scenarios[s] {
			t.Errorf("docs/behaviour.md has no row for the scenario %s", s)
		}
	}
	for _, row := range cells(readDoc(t, "differences.md")) {
		if !linked[row[0]] {
			t.Errorf("docs/behaviour.md has no link to the difference %q", row[0])
		}
		delete(linked, row[0])
	}
	for title := range linked {
		t.Errorf("docs/behaviour.md has a link to the difference %q, which is none", title)
	}
}

// testIndex is what the tests of packages have: their functions, and the texts
// that subtests may be named by.
type testIndex map[string]map[string]bool

// has tells whether there is a test called "package.TestName/sub/subsub". Of a
// subtest it knows that its name is somewhere in the tests of the package.
func (x testIndex) has(t *testing.T, name string) bool {
	t.Helper()
	pkg, test, ok := strings.Cut(name, ".Test")
	if !ok {
		return false
	}
	if x[pkg] == nil {
		x[pkg] = index(t, pkg)
	}
	parts := strings.Split("Test"+test, "/")
	return x[pkg]["func "+parts[0]] && !slices.ContainsFunc(parts[1:], func(sub string) bool { return !x[pkg][sub] })
}

// index reads the tests of a package.
func index(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, f := range parseTests(t, pkg) {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				out["func "+n.Name.Name] = n.Recv == nil
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
					out[strings.ReplaceAll(text, " ", "_")] = true
				}
			}
			return true
		})
	}
	return out
}

// parseTests parses the files with tests of a package.
func parseTests(t *testing.T, pkg string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(pkg), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var out []*ast.File
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

// scenarioNames returns the names of the scenarios of e2e/suite: what the field
// "name" is beside a field "to".
func scenarioNames(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, f := range parseTests(t, "e2e/suite") {
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			fields := map[string]ast.Expr{}
			for _, e := range lit.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					if key, ok := kv.Key.(*ast.Ident); ok {
						fields[key.Name] = kv.Value
					}
				}
			}
			name, named := fields["name"].(*ast.BasicLit)
			if named && fields["to"] != nil && fields["services"] != nil {
				text, err := strconv.Unquote(name.Value)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, text)
			}
			return true
		})
	}
	if len(out) == 0 {
		t.Fatal("e2e/suite has no scenarios")
	}
	return out
}
