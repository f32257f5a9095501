// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRuleTarget(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule Rule
		want string
	}{
		{"no target", `-s 10.0.0.0/8 -m comment --comment counts`, ""},
		{"empty rule", ``, ""},
		{"jump", `-j KUBE-SERVICES`, "KUBE-SERVICES"},
		{"goto", `-p tcp -g KUBE-EXT`, "KUBE-EXT"},
		{"target with options", `-p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80`, "DNAT"},
		{"target before a comment", `-j ACCEPT -m comment --comment "x"`, "ACCEPT"},
		{"comment that speaks of a jump", `-m comment --comment "a -j B" -j C`, "C"},
		{"comment that speaks of a jump, no target", `-m comment --comment "a -j B"`, ""},
		{"comment with escaped quotes around a jump", `-m comment --comment "say \"x\" -j B" -j C`, "C"},
		{"comment that ends in a backslash", `-m comment --comment "dir\\" -j C`, "C"},
		{"comment that is a quoted option", `-m comment --comment "-j" -j C`, "C"},
		{"comment that is a bare option", `-m comment --comment -j -j C`, "C"},
		{"comment that is a bare goto", `-m comment --comment -g -j C`, "C"},
		{"comment over two lines", "-m comment --comment \"a\n-A X -j B\" -j C", "C"},
		{"two spaces", `-m nfacct --nfacct-name  packets -j DROP`, "DROP"},
		{"option without its argument", `-m comment -j`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.rule.Target(); got != tt.want {
				t.Errorf("Rule(%q).Target() = %q, want %q", tt.rule, got, tt.want)
			}
		})
	}
}

func TestNextToken(t *testing.T) {
	for _, tt := range []struct {
		name, in  string
		tok, rest string
	}{
		{"nothing", ``, ``, ``},
		{"only spaces", `   `, ``, ``},
		{"one word", `ACCEPT`, `ACCEPT`, ``},
		{"two words", `-j ACCEPT`, `-j`, `ACCEPT`},
		{"leading spaces", `  -j ACCEPT`, `-j`, `ACCEPT`},
		{"quoted", `"a b" -j X`, `"a b"`, ` -j X`},
		{"quoted and empty", `"" -j X`, `""`, ` -j X`},
		{"escaped quote", `"a \" b" -j X`, `"a \" b"`, ` -j X`},
		{"escaped backslash before the end", `"a\\" -j X`, `"a\\"`, ` -j X`},
		{"quote that does not end", `"a -j X`, `"a -j X`, ``},
		{"quote that ends in an escape", `"a\`, `"a\`, ``},
		{"quote inside a word", `a"b c`, `a"b`, `c`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tok, rest := nextToken(tt.in)
			if tok != tt.tok || rest != tt.rest {
				t.Errorf("nextToken(%q) = %q, %q, want %q, %q", tt.in, tok, rest, tt.tok, tt.rest)
			}
		})
	}
}

func TestQuote(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"letters, digits, dash and underscore stay bare", `Kube_svc-1`, `Kube_svc-1`},
		{"empty", ``, `""`},
		{"space", `a b`, `"a b"`},
		{"slash and colon", `ns/svc:http`, `"ns/svc:http"`},
		{"double quote", `a"b`, `"a\"b"`},
		{"single quote", `it's`, `"it\'s"`},
		{"backslash", `a\b`, `"a\\b"`},
		{"jump", `a -j B`, `"a -j B"`},
		{"not ASCII", `é`, `"é"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Quote(tt.in); got != tt.want {
				t.Errorf("Quote(%q) = %s, want %s", tt.in, got, tt.want)
			}
		})
	}
}

// FuzzQuote: whatever a comment says, it is one word of the rule, and the
// target behind it is found.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a b", `"`, `\`, `\"`, "-j", "-g", "a -j B", "it's", "a\nb", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "\x00") {
			t.Skip("no comment holds a NUL")
		}
		r := Rule("-m comment --comment " + Quote(s) + " -j TARGET")
		if got := r.Target(); got != "TARGET" {
			t.Errorf("Rule(%q).Target() = %q, want TARGET", r, got)
		}
	})
}

func TestOwners(t *testing.T) {
	o := newOwners([]Contribution{
		{Name: "a", Owns: []ChainKey{{NAT, "KUBE-SERVICES"}, {NAT, "KUBE-SVC-*"}}},
		{Name: "b", Owns: []ChainKey{{Filter, "KUBE-FORWARD"}}},
	})
	for _, tt := range []struct {
		name string
		key  ChainKey
		want bool
	}{
		{"named", ChainKey{NAT, "KUBE-SERVICES"}, true},
		{"named in another table", ChainKey{Filter, "KUBE-SERVICES"}, false},
		{"longer than a name", ChainKey{NAT, "KUBE-SERVICES-2"}, false},
		{"has the prefix", ChainKey{NAT, "KUBE-SVC-ABC"}, true},
		{"is the prefix", ChainKey{NAT, "KUBE-SVC-"}, true},
		{"shorter than the prefix", ChainKey{NAT, "KUBE-SVC"}, false},
		{"prefix in another table", ChainKey{Filter, "KUBE-SVC-ABC"}, false},
		{"of another contribution", ChainKey{Filter, "KUBE-FORWARD"}, true},
		{"not ours", ChainKey{NAT, "DOCKER"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := o.owns(tt.key); got != tt.want {
				t.Errorf("owns(%s) = %t, want %t", tt.key, got, tt.want)
			}
		})
	}
}

func TestDropOrderPutsWhoJumpsFirst(t *testing.T) {
	k := &kernel{chains: map[ChainKey]*Chain{
		{NAT, "A"}: {Rules: []Rule{"-j C"}},
		{NAT, "B"}: {Rules: []Rule{"-j A", "-j D"}},
		{NAT, "C"}: {Rules: []Rule{"-j ACCEPT"}},
		{NAT, "D"}: {Rules: []Rule{"-j C"}},
		{NAT, "E"}: {Rules: []Rule{"-j D"}}, // stays
	}}
	got := dropOrder([]string{"A", "B", "C", "D"}, NAT, k)
	at := map[string]int{}
	for i, name := range got {
		at[name] = i
	}
	if len(at) != 4 {
		t.Fatalf("dropOrder() = %v, want each of A, B, C, D once", got)
	}
	for _, pair := range [][2]string{{"A", "C"}, {"B", "A"}, {"B", "D"}, {"D", "C"}} {
		if at[pair[0]] > at[pair[1]] {
			t.Errorf("dropOrder() = %v, want %s, which jumps to %s, before it", got, pair[0], pair[1])
		}
	}
}

func TestSectionTextOfRestore(t *testing.T) {
	s := section{
		table:  NAT,
		write:  []chainWrite{{"KUBE-B", &Chain{Rules: []Rule{"-j KUBE-A", ""}}}, {"KUBE-A", &Chain{}}},
		trim:   []chainTrim{{"KUBE-C", []Rule{"-j KUBE-AA", "-j KUBE-A"}, nil}},
		insert: []Jump{{ChainKey: ChainKey{NAT, "OUTPUT"}, Rule: "-j KUBE-B"}, {ChainKey: ChainKey{NAT, "OUTPUT"}, Rule: "-j KUBE-A"}},
		remove: []Jump{{ChainKey: ChainKey{NAT, "INPUT"}, Rule: "-j KUBE-OLD"}},
		drop:   []string{"KUBE-OLD", "KUBE-AA"},
	}
	want := `*nat
:KUBE-A - [0:0]
:KUBE-AA - [0:0]
:KUBE-B - [0:0]
:KUBE-OLD - [0:0]
-A KUBE-B -j KUBE-A
-A KUBE-B
-I OUTPUT -j KUBE-B
-I OUTPUT -j KUBE-A
-D INPUT -j KUBE-OLD
-D KUBE-C -j KUBE-AA
-D KUBE-C -j KUBE-A
-X KUBE-AA
-X KUBE-OLD
COMMIT
`
	got := transaction{{table: Filter}, s}.text()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("text of a restore (-want +got):\n%s", diff)
	}
}

// TestManyChains: a chain is declared before a rule leads to it, and a unit in one
// go.
func TestManyChains(t *testing.T) {
	unit := func(unit, name string, rules ...Rule) chainWrite {
		return chainWrite{name, &Chain{Unit: unit, Rules: rules}}
	}
	write := []chainWrite{
		unit("b", "KUBE-SVC-1", "-j KUBE-SEP-3"), unit("", "KUBE-SERVICES", "-j KUBE-SVC-1", "-j KUBE-SVC-2"),
		unit("a", "KUBE-SVC-2", "-j KUBE-SEP-1", "-j KUBE-SEP-2"), unit("a", "KUBE-SEP-1", "-j KUBE-MARK"),
		unit("c", "KUBE-SVC-0"), unit("b", "KUBE-SEP-3", "-j KUBE-MARK"), unit("", "KUBE-MARK", "-j MARK"), unit("a", "KUBE-SEP-2"),
	}
	for atOnce, want := range map[int]string{
		8: `:KUBE-MARK :KUBE-OLD :KUBE-SEP-1 :KUBE-SEP-2 :KUBE-SEP-3 :KUBE-SERVICES :KUBE-SVC-0 :KUBE-SVC-1 :KUBE-SVC-2
-A KUBE-MARK -j MARK
-A KUBE-SEP-1 -j KUBE-MARK
-A KUBE-SEP-3 -j KUBE-MARK
-A KUBE-SERVICES -j KUBE-SVC-1
-A KUBE-SERVICES -j KUBE-SVC-2
-A KUBE-SVC-1 -j KUBE-SEP-3
-A KUBE-SVC-2 -j KUBE-SEP-1
-A KUBE-SVC-2 -j KUBE-SEP-2
`,
		2: `:KUBE-MARK :KUBE-OLD :KUBE-SERVICES :KUBE-SEP-1 :KUBE-SEP-2 :KUBE-SVC-2
-A KUBE-SEP-1 -j KUBE-MARK
-A KUBE-SVC-2 -j KUBE-SEP-1
-A KUBE-SVC-2 -j KUBE-SEP-2
:KUBE-SEP-3 :KUBE-SVC-1
-A KUBE-SEP-3 -j KUBE-MARK
-A KUBE-SVC-1 -j KUBE-SEP-3
:KUBE-SVC-0
-A KUBE-MARK -j MARK
-A KUBE-SERVICES -j KUBE-SVC-1
-A KUBE-SERVICES -j KUBE-SVC-2
`,
	} {
		var b strings.Builder
		lines{&b}.chains(slices.Clone(write), []string{"KUBE-OLD"}, atOnce)
		got := strings.ReplaceAll(b.String(), " - [0:0]\n:", " :")
		if diff := cmp.Diff(want, strings.ReplaceAll(got, " - [0:0]\n", "\n")); diff != "" {
			t.Errorf("%d chains at a time (-want +got):\n%s", atOnce, diff)
		}
	}
}
