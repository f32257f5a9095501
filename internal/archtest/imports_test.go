// SPDX-License-Identifier: Apache-2.0

// Package archtest holds the module to its architecture: which package may
// import which. The rules are the table below.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// module is the path that the names of packages in rules are relative to.
const module = "fairlead"

// rule says what packages may import, tests apart. Packages are named by path
// ("proxier"), by path with all below it ("proxier/source/..."), as "..." for
// every package of the module, or as "x.y/..." for every other module; our own
// without the module's path.
type rule struct {
	name string
	// in are the packages that the rule is for, except those in but.
	in, but []string
	// deny are imports that they may not have. Where deep is set, not through
	// other packages of ours either.
	deny []string
	deep bool
	// ours, unless nil, are the only ones of our packages that they may import.
	ours []string
	// most, unless 0, is how many of the packages in among they may import,
	// themselves counted.
	most  int
	among []string
}

var (
	kubernetes = []string{"k8s.io/api/...", "k8s.io/client-go/..."}
	netlink    = []string{"github.com/vishvananda/...", "github.com/moby/ipvs/...", "github.com/google/nftables/..."}
	modes      = []string{"iptables", "ipvs", "nftables"}
	kernel     = slices.Concat(modes, []string{"iptables/ruleset/...", "nat/...", "portmap/..."}, netlink)
)

var rules = []rule{
	{name: "the model is plain data: the standard library is all it needs",
		in: []string{"proxier/model"}, ours: []string{}, deny: []string{"x.y/..."}},
	{name: "the brain knows neither the kernel nor the API server",
		in: []string{"proxier", "proxier/health"}, ours: []string{"proxier/model"}, deny: slices.Concat(kernel, kubernetes), deep: true},
	{name: "traffic stands on the brain and the model",
		in: []string{"proxier/traffic"}, ours: []string{"proxier", "proxier/model"}, deny: slices.Concat(kernel, kubernetes)},
	{name: "Kubernetes' types end at the sources",
		in: []string{"..."}, but: []string{"proxier/source/...", "e2e/..."}, deny: kubernetes},
	{name: "the agent does without the types of all APIs",
		in: []string{"..."}, but: []string{"e2e/..."}, deny: []string{"k8s.io/client-go/kubernetes/...", "k8s.io/client-go/tools/events"}},
	{name: "no mode depends on Kubernetes' types",
		in: modes, deny: kubernetes, deep: true},
	{name: "sources know the model, no mode and no kernel",
		in: []string{"proxier/source/..."}, ours: []string{"proxier/source/...", "proxier/model"}, deny: kernel, deep: true},
	{name: "the engine knows nothing of Services",
		in: []string{"iptables/ruleset/..."}, ours: []string{"iptables/ruleset/..."}},
	{name: "nat is rules, and nothing else of ours",
		in: []string{"nat"}, ours: []string{"iptables/ruleset"}},
	{name: "what follows the rules knows the model, and nothing else of ours",
		in: []string{"nat/conntrack", "nat/nft", "nat/sockets", "nat/sysctl"}, ours: []string{"proxier/model"}},
	{name: "nat/egress stands on the words of the engine, sets, CNI and dirwatch",
		in: []string{"nat/egress"}, ours: []string{"internal/dirwatch", "iptables/ruleset", "nat/cni", "nat/ipset"}},
	{name: "nat/ipset knows sets, and nothing else of ours",
		in: []string{"nat/ipset/..."}, ours: []string{"nat/ipset/..."}},
	{name: "nat/nfacct knows counters, and nothing else of ours",
		in: []string{"nat/nfacct"}, ours: []string{}},
	{name: "ipvs/batch knows requests, and nothing else of ours",
		in: []string{"ipvs/batch"}, ours: []string{}},
	{name: "ipvs/servers knows virtual servers and ipvs/batch",
		in: []string{"ipvs/servers/..."}, ours: []string{"ipvs/servers/...", "ipvs/batch"}},
	{name: "ipvs/device knows a device and ipvs/batch",
		in: []string{"ipvs/device/..."}, ours: []string{"ipvs/device/...", "ipvs/batch"}},
	{name: "ipvs/drain knows virtual servers by their words, and nothing else",
		in: []string{"ipvs/drain"}, ours: []string{"ipvs/servers"}, deny: []string{"x.y/..."}},
	{name: "dispatch stands on the model and the words of the engine",
		in: []string{"iptables/dispatch"}, ours: []string{"iptables/ruleset", "proxier/model"}},
	{name: "idioms stand on dispatch, the words of the engine and nat",
		in: []string{"iptables/idiom"}, ours: []string{"iptables/dispatch", "iptables/ruleset", "nat", "nat/cni", "proxier/model"}},
	{name: "iptables mode stands on the brain, the engine and nat",
		in: []string{"iptables"}, ours: []string{"iptables/dispatch", "iptables/idiom", "iptables/ruleset", "nat", "nat/ipset", "proxier", "proxier/model", "proxier/traffic"}},
	{name: "IPVS mode stands on its parts, the brain, the engine and nat",
		in: []string{"ipvs"}, ours: []string{"ipvs/...", "iptables/dispatch", "iptables/idiom", "iptables/ruleset", "nat", "nat/ipset", "proxier", "proxier/model", "proxier/traffic"}},
	{name: "nftables mode stands on its words, the brain and the model",
		in: []string{"nftables"}, ours: []string{"nftables/table", "proxier", "proxier/model", "proxier/traffic"}},
	{name: "nftables/table has words of its own, and needs nothing",
		in: []string{"nftables/table"}, ours: []string{}, deny: []string{"x.y/..."}},
	{name: "nftables/nfnetlink and its fake know tables by their words, and nothing else of ours",
		in: []string{"nftables/nfnetlink", "nftables/fake"}, ours: []string{"nftables/table"}},
	{name: "portmap stands on the model, dispatch, the words of the engine, nat and CNI",
		in: []string{"portmap"}, ours: []string{"iptables/dispatch", "iptables/ruleset", "nat", "nat/cni", "proxier/model"}},
	{name: "no mode speaks netlink itself",
		in: modes, deny: netlink},
	{name: "settings are plain: config knows nothing else of ours",
		in: []string{"config"}, ours: []string{}, deny: slices.Concat(kernel, kubernetes)},
	{name: "only the command knows more than one mode",
		in: []string{"..."}, but: []string{"cmd/fairlead", "e2e/..."}, most: 1, among: modes},
	{name: "the engine alone runs commands",
		in: []string{"..."}, but: []string{"iptables/ruleset", "iptables/ruleset/fake", "iptables/ruleset/kerneltest", "e2e/..."}, deny: []string{"os/exec"}},
}

// graph is what each package imports, without its tests. Our packages are
// without the module's path, all others as they are.
type graph map[string][]string

func TestImports(t *testing.T) {
	g := load(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, violation := range r.check(g) {
				t.Error(violation)
			}
		})
	}
	for _, pkg := range []string{"proxier", "proxier/model", "proxier/source", "iptables", "iptables/ruleset", "nat"} {
		if g[pkg] == nil {
			t.Errorf("there is no package %s: have the rules lost it?", pkg)
		}
	}
}

// TestRulesSeeViolations gives each rule a package that breaks it.
func TestRulesSeeViolations(t *testing.T) {
	g := graph{
		"proxier/model":        {"net/netip", "nat", "golang.org/x/sys/unix"},
		"proxier":              {"iptables/x"},
		"iptables/x":           {"k8s.io/api/core/v1", "os/exec"},
		"proxier/source/files": {"github.com/vishvananda/netlink"},
		"iptables/ruleset":     {"os/exec", "proxier/model"},
		"nat":                  {"iptables/ruleset", "iptables"},
		"iptables":             {"portmap", "nftables"},
		"e2e/lab":              {"os/exec", "k8s.io/client-go/rest", "iptables", "ipvs"},
		"cmd/fairlead":         {"iptables", "ipvs", "k8s.io/client-go/rest"},
		"ipvs":                 {"iptables/ruleset/fake", "github.com/moby/ipvs"},
		"nftables":             nil,
		"portmap":              nil,
	}
	want := []string{
		"proxier/model imports golang.org/x/sys/unix",
		"proxier/model imports nat",
		"proxier imports iptables/x",
		"proxier imports k8s.io/api/core/v1, by iptables/x",
		"cmd/fairlead imports k8s.io/client-go/rest",
		"iptables/x imports k8s.io/api/core/v1",
		"proxier/source/files imports github.com/vishvananda/netlink",
		"iptables/ruleset imports proxier/model",
		"nat imports iptables",
		"iptables imports nftables",
		"iptables imports portmap",
		"ipvs imports github.com/moby/ipvs",
		"iptables and its imports are 2 of [iptables ipvs nftables], more than 1",
		"iptables/x imports os/exec",
	}
	var got []string
	for _, r := range rules {
		got = append(got, r.check(g)...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("got violations that differ (-want +got):\n%s", diff)
	}
}

// check returns the violations of a rule.
func (r rule) check(g graph) []string {
	var out []string
	for _, pkg := range slices.Sorted(maps.Keys(g)) {
		if !matches(pkg, r.in) || matches(pkg, r.but) {
			continue
		}
		by := map[string]string{}
		g.imports(pkg, r.deep, by)
		count := 0
		for _, imp := range slices.Sorted(maps.Keys(by)) {
			_, isOurs := g[imp]
			if matches(imp, r.deny) || isOurs && r.ours != nil && !matches(imp, r.ours) {
				out = append(out, pkg+" imports "+imp+through(pkg, by[imp]))
			}
			if matches(imp, r.among) {
				count++
			}
		}
		if matches(pkg, r.among) {
			count++
		}
		if r.most > 0 && count > r.most {
			out = append(out, pkg+" and its imports are "+strconv.Itoa(count)+" of ["+strings.Join(r.among, " ")+"], more than "+strconv.Itoa(r.most))
		}
	}
	return out
}

func through(pkg, by string) string {
	if by == pkg {
		return ""
	}
	return ", by " + by
}

// imports notes in by what pkg imports, and which package does; where deep is
// set, through other packages of ours as well.
func (g graph) imports(pkg string, deep bool, by map[string]string) {
	for _, imp := range g[pkg] {
		if by[imp] != "" {
			continue
		}
		if by[imp] = pkg; deep {
			g.imports(imp, deep, by)
		}
	}
}

// matches tells whether a package is among those that patterns name.
func matches(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		switch p {
		case "...":
			return true
		case "x.y/...":
			first, _, _ := strings.Cut(pkg, "/")
			return strings.Contains(first, ".")
		}
		if base, ok := strings.CutSuffix(p, "/..."); ok {
			return pkg == base || strings.HasPrefix(pkg, base+"/")
		}
		return pkg == p
	})
}

// load reads the imports of all packages of the module, for every platform.
func load(t *testing.T) graph {
	root := moduleRoot(t)
	g := graph{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skip(root, file, d.Name())
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		imports, err := importsOf(file)
		g[pkg] = append(g[pkg], imports...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// skip returns fs.SkipDir for directories that are not part of the module.
func skip(root, dir, name string) error {
	if dir == root {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	return nil
}

func importsOf(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, strings.TrimPrefix(imp, module+"/"))
	}
	return out, nil
}

// moduleRoot returns the directory above that has go.mod.
func moduleRoot(t *testing.T) string {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("there is no go.mod above")
		}
	}
	t.Fatal(err)
	return ""
}
