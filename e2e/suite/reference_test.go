// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// referenceFile has a section for each scenario, with a line for each cell, or
// one for several that differ in the flow alone:
//
//	[scenario]
//	address | who asks | flow | outcome
const referenceFile = "testdata/reference.txt"

const headFormat = "# What kube-proxy %s does in iptables mode. `make suite-reference` writes this.\n"

// outcomes are those of the cells of a scenario, in words.
type outcomes map[cell]string

// reference are the recorded outcomes.
type reference struct {
	version   string
	scenarios map[string]outcomes
}

// keys are the cells of a scenario and what stands for all of them.
func (s scenario) keys() []cell {
	if s.sticky {
		return append(s.cells(), together)
	}
	return s.cells()
}

// flowNames say which flows have the same outcome, the largest sets first.
var flowNames = []struct {
	name  string
	flows []flow
}{
	{"all", []flow{{}, {model.IPv4, "tcp"}, {model.IPv4, "udp"}, {model.IPv6, "tcp"}, {model.IPv6, "udp"}}},
	{"IPv4", []flow{{model.IPv4, "tcp"}, {model.IPv4, "udp"}}},
	{"IPv6", []flow{{model.IPv6, "tcp"}, {model.IPv6, "udp"}}},
	{"tcp", []flow{{model.IPv4, "tcp"}, {model.IPv6, "tcp"}}},
	{"udp", []flow{{model.IPv4, "udp"}, {model.IPv6, "udp"}}},
	{"IPv4 tcp", []flow{{model.IPv4, "tcp"}}},
	{"IPv4 udp", []flow{{model.IPv4, "udp"}}},
	{"IPv6 tcp", []flow{{model.IPv6, "tcp"}}},
	{"IPv6 udp", []flow{{model.IPv6, "udp"}}},
}

// String returns the file of a reference.
func (r reference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, headFormat, r.version)
	for _, s := range scenarios {
		fmt.Fprintf(&b, "\n[%s]\n", s.name)
		r.scenarios[s.name].write(&b, s.keys())
	}
	return b.String()
}

// write writes the lines of cells, each at the place of the first of its cells.
func (o outcomes) write(b *strings.Builder, cells []cell) {
	asked, done := map[cell]bool{}, map[cell]bool{}
	for _, c := range cells {
		asked[c] = true
	}
	for _, c := range cells {
		for _, set := range flowNames {
			var same []cell
			for _, f := range set.flows {
				if other := (cell{c.place, c.from, f}); asked[other] {
					same = append(same, other)
				}
			}
			differs := func(other cell) bool { return done[other] || o[other] != o[c] }
			if !slices.Contains(same, c) || slices.ContainsFunc(same, differs) {
				continue
			}
			for _, other := range same {
				done[other] = true
			}
			fmt.Fprintf(b, "%-28s | %-12s | %-8s | %s\n", c.place, c.from, set.name, o[c])
		}
	}
}

func readReference() (reference, error) {
	b, err := os.ReadFile(referenceFile)
	if err != nil {
		return reference{}, err
	}
	return parseReference(string(b))
}

func parseReference(text string) (reference, error) {
	r := reference{scenarios: map[string]outcomes{}}
	if _, err := fmt.Sscanf(text, headFormat, &r.version); err != nil {
		return r, fmt.Errorf("%s: first line: %w", referenceFile, err)
	}
	lines := map[string]map[string]string{}
	section := ""
	for i, line := range strings.Split(text, "\n")[1:] {
		switch fields := strings.SplitN(line, " | ", 4); {
		case line == "":
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
			lines[section] = map[string]string{}
		case section == "" || len(fields) != 4:
			return r, fmt.Errorf("%s:%d: not a cell", referenceFile, i+2)
		default:
			lines[section][lineKey(fields[0], fields[1], fields[2])] = fields[3]
		}
	}
	for _, s := range scenarios {
		r.scenarios[s.name] = pick(s.keys(), lines[s.name])
	}
	return r, nil
}

func lineKey(place, from, flows string) string {
	return strings.TrimSpace(place) + "|" + strings.TrimSpace(from) + "|" + strings.TrimSpace(flows)
}

// pick takes the outcomes of cells from lines.
func pick(cells []cell, lines map[string]string) outcomes {
	out := outcomes{}
	for _, c := range cells {
		for _, set := range flowNames {
			outcome, ok := lines[lineKey(c.place.String(), c.from, set.name)]
			if ok && slices.Contains(set.flows, c.flow) {
				out[c] = outcome
			}
		}
	}
	return out
}

// TestReference: the recorded outcomes are those of all cells of the scenarios
// and of nothing else, and of the version that e2e/tools builds.
func TestReference(t *testing.T) {
	if *record {
		return // it is about to be written
	}
	text, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseReference(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), r.String()); diff != "" {
		t.Errorf("not what the scenarios ask; run make suite-reference (-file +scenarios):\n%s", diff)
	}
	for _, s := range scenarios {
		for _, c := range s.keys() {
			if r.scenarios[s.name][c] == "" {
				t.Errorf("%s: no outcome of %s", s.name, c)
			}
		}
	}
	if want := pinnedVersion(t); r.version != want {
		t.Errorf("recorded from kube-proxy %s, e2e/tools builds %s; run make suite-reference", r.version, want)
	}
}

// pinnedVersion is the version of Kubernetes that e2e/tools builds.
func pinnedVersion(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("../tools/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v\S+)`).FindSubmatch(mod)
	if m == nil {
		t.Fatal("e2e/tools/go.mod does not require k8s.io/kubernetes")
	}
	return string(m[1])
}

// recordReference runs kube-proxy on both variants of iptables and writes the
// reference, unless the two differ: then something is not reproducible.
func recordReference(t *testing.T) {
	version := pinnedVersion(t)
	proxy := kubeProxyBinary(t, version)
	var recorded []reference
	for _, v := range []lab.Variant{lab.NFT, lab.Legacy} {
		ok := t.Run(string(v), func(t *testing.T) {
			s, err := newKubeProxy(proxy, t.TempDir(), v)
			if err != nil {
				t.Fatal(err)
			}
			run := newRun(t, s)
			r := reference{version, map[string]outcomes{}}
			for _, sc := range scenarios {
				t.Run(sc.name, func(t *testing.T) { r.scenarios[sc.name] = run.outcomes(t, sc, nil) })
			}
			recorded = append(recorded, r)
		})
		if !ok || len(recorded) == 0 {
			t.Fatalf("kube-proxy did not run all scenarios on %s: nothing is written", v)
		}
	}
	if diff := cmp.Diff(recorded[0].String(), recorded[1].String()); diff != "" {
		t.Fatalf("two runs differ, nothing is written (-nft +legacy):\n%s", diff)
	}
	for _, bad := range []string{" failed", "| \n"} {
		if strings.Contains(recorded[0].String(), bad) {
			t.Fatalf("a cell has the outcome %q, nothing is written:\n%s", bad, recorded[0])
		}
	}
	if err := os.WriteFile(referenceFile, []byte(recorded[0].String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// kubeProxyBinary returns the kube-proxy that e2e/tools has built. It must be
// exactly the pinned version.
func kubeProxyBinary(t *testing.T, version string) string {
	t.Helper()
	dir := os.Getenv("FAIRLEAD_TOOLS_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", ".cache", "bin")
	}
	binary, err := filepath.Abs(filepath.Join(dir, "kube-proxy"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		t.Fatalf("run kube-proxy (make -C e2e/tools kube-proxy builds it): %v", err)
	}
	if got, want := strings.TrimSpace(string(out)), "Kubernetes "+version; got != want {
		t.Fatalf("%s is %s, want %s: nothing is written", binary, got, want)
	}
	return binary
}
