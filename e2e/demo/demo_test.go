// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
)

// The demo checks what it shows; here it must get through.
func TestKernelDemo(t *testing.T) {
	if err := lab.Supported(t.Context()); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "fairlead")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "fairlead/cmd/fairlead").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	var out bytes.Buffer
	if err := run(t.Context(), binary, &printer{w: &out}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log("\n" + out.String())
}

func TestFollowShowsOnlyTheService(t *testing.T) {
	const save = `*filter
-A KUBE-SERVICES -d 10.96.0.10/32 -j REJECT
COMMIT
*nat
:KUBE-SERVICES -
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-OTHER
-A KUBE-SERVICES -d 10.96.0.10/32 -j KUBE-SVC-WEB
-A KUBE-SEP-ONE -j DNAT --to-destination 10.244.0.11:8080
-A KUBE-SVC-OTHER -j KUBE-SEP-ONE
-A KUBE-SVC-WEB ! -s 10.244.0.0/24 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -j KUBE-SEP-ONE
COMMIT
`
	got := follow(natRules(save), "KUBE-SERVICES", "10.96.0.10/32", 0)
	want := []string{
		"-A KUBE-SERVICES -d 10.96.0.10/32 -j KUBE-SVC-WEB",
		"  -A KUBE-SVC-WEB ! -s 10.244.0.0/24 -j KUBE-MARK-MASQ",
		"  -A KUBE-SVC-WEB -j KUBE-SEP-ONE",
		"    -A KUBE-SEP-ONE -j DNAT --to-destination 10.244.0.11:8080",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPrinterOffTerminal(t *testing.T) {
	var out bytes.Buffer
	p := &printer{w: &out}
	p.passed("a claim", "12 ms")
	p.line("%s|", p.pad(p.bar(20), 12))
	if diff := cmp.Diff("ok a claim: 12 ms\n     ##### 20    |\n", out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	p.colour = true
	if got := p.pad(p.bar(20), 12); strings.Count(got, " ") != 5 {
		t.Errorf("coloured bar %q is not as wide as a plain one", got)
	}
}
