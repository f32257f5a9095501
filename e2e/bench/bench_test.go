// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fairlead/e2e/bench/report"
	"fairlead/e2e/lab"
	"fairlead/e2e/uml/guest"
	"fairlead/e2e/uml/machine"
)

// agent is the agent of this tree, built once by TestMain.
var agent string

// asMain makes the test binary the command.
const asMain = "FAIRLEAD_BENCH_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if guest.Is() || os.Getenv(asMain) != "" {
		main()
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fairlead-bench-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	agent = filepath.Join(dir, "fairlead")
	build := exec.Command("go", "build", "-o", agent, "fairlead/cmd/fairlead")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func needLab(t *testing.T) {
	t.Helper()
	for _, v := range lab.Variants() {
		if err := lab.VariantSupported(t.Context(), v); errors.Is(err, lab.ErrNotSupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// namespaces are those of this process's labs.
func namespaces(t *testing.T) []string {
	t.Helper()
	entries, err := filepath.Glob("/var/run/netns/fl-" + strconv.Itoa(os.Getpid()) + "-*")
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// TestKernelBench runs the whole benchmark at a tiny size with one variant; the
// other one's turn is in TestKernelBenchInterrupted. kube-proxy is left out where
// it was not built.
func TestKernelBench(t *testing.T) {
	needLab(t)
	json := filepath.Join(t.TempDir(), "bench.json")
	kubeProxy := "../../.cache/bin/kube-proxy"
	if dir := os.Getenv("FAIRLEAD_TOOLS_BIN"); dir != "" {
		kubeProxy = filepath.Join(dir, "kube-proxy")
	}
	var out strings.Builder
	err := run(t.Context(), []string{
		"--fairlead", agent, "--kube-proxy", kubeProxy, "--json", json,
		"--sizes", "20x2", "--curve", "", "--loads", "10x2", "--samples", "2", "--connects", "60", "--changes", "20", "--rate", "50", "--variants", "nft",
	}, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	got, err := report.Read(json)
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat(kubeProxy)
	checkRun(t, got, report.Product)
	if err == nil {
		checkRun(t, got, report.Reference)
	}
	if r := got.Find(report.Product, "nft", report.Size{Services: 10, Endpoints: 2}); r == nil || r.FirstSync == nil || r.AddedMS != nil {
		t.Errorf("with --loads got %+v, want a first sync alone", r)
	}
	for _, want := range []string{"20 × 2, nft", "first sync, s", "must hold"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output does not have %q:\n%s", want, &out)
		}
	}
	if left := namespaces(t); len(left) > 0 {
		t.Errorf("namespaces are left: %v", left)
	}
}

// TestKernelBenchIPVS: figures come out of the second kernel. kube-proxy is left out,
// which would take minutes there.
func TestKernelBenchIPVS(t *testing.T) {
	if err := machine.Supported(); err != nil {
		t.Skip(err)
	}
	t.Setenv(asMain, "1")
	json := filepath.Join(t.TempDir(), "bench.json")
	var out strings.Builder
	err := run(t.Context(), []string{
		"--fairlead", agent, "--subjects", "fairlead", "--json", json, "--variants", "ipvs",
		"--ipvs-sizes", "6x2", "--ipvs-curve", "3x2", "--samples", "2", "--connects", "60", "--changes", "40", "--limit", "5m",
	}, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	got, err := report.Read(json)
	if err != nil {
		t.Fatal(err)
	}
	r := got.Find(report.Product, report.IPVS, report.Size{Services: 6, Endpoints: 2})
	if r == nil || r.FirstSync == nil || r.AddedMS == nil || r.LeftMS == nil || r.Connect == nil || r.Churn == nil || r.Restart == nil || r.ChangeSyncMS <= 0 || r.FirstSync.DoneS <= 0 || r.Floor == nil || r.Floor.AddedMS == nil || r.Floor.RemovedMS.P50 <= 0 {
		t.Errorf("got %+v, want all figures", r)
	}
	if r := got.Find(report.Product, report.IPVS, report.Size{Services: 3, Endpoints: 2}); r == nil || r.AddedMS == nil || r.Connect != nil {
		t.Errorf("on the curve got %+v, want a first sync and changes alone", r)
	}
	if len(got.Runs) != 2 || got.IPVSMachine == nil || got.IPVSMachine.Kernel == got.Machine.Kernel {
		t.Errorf("got %d runs on %+v, want 2 on another kernel than %s", len(got.Runs), got.IPVSMachine, got.Machine.Kernel)
	}
	if !strings.Contains(out.String(), "6 × 2, ipvs") || strings.Count(out.String(), "must hold") != 3 {
		t.Errorf("the tables of the two sizes are not there once:\n%s", &out)
	}
}

// checkRun looks for figures that are missing or cannot be.
func checkRun(t *testing.T, results *report.Results, subject string) {
	t.Helper()
	r := results.Find(subject, "nft", report.Size{Services: 20, Endpoints: 2})
	if r == nil {
		t.Errorf("%s: not measured", subject)
		return
	}
	for name, bad := range map[string]bool{
		"first sync":                 r.FirstSync == nil || r.FirstSync.S <= r.FirstSync.SyncS || r.FirstSync.SyncS <= 0,
		"added":                      r.AddedMS == nil || r.AddedMS.N != 2 || r.AddedMS.P50 <= 0,
		"removed":                    r.RemovedMS == nil || r.RemovedMS.N != 2 || r.RemovedMS.P50 <= 0,
		"left":                       r.LeftMS == nil || r.LeftMS.N != 1 || r.LeftMS.P50 <= 0,
		"connect":                    r.Connect == nil || r.Connect.LastUS.N < 60 || r.Connect.NoRulesUS.P50 <= 0,
		"memory":                     r.Memory == nil || r.Memory.SyncedMiB <= 0 || r.Memory.PeakMiB < r.Memory.SyncedMiB,
		"churn":                      r.Churn == nil || r.Churn.TookS <= 0.3 || r.Churn.MemoryMiB <= 0, // 20 changes, 50 in a second
		"restart":                    r.Restart == nil || r.Restart.ReadyS <= 0 || r.Restart.SaveS <= 0,
		"floor":                      (subject == report.Product) != (r.Floor != nil && r.Floor.FirstSyncS > 0 && r.Floor.Restores > 0 && r.Floor.AddedMS != nil),
		"rules written by a restart": r.Restart != nil && (subject == report.Product) != (r.Restart.RulesWritten == 0),
	} {
		if bad {
			t.Errorf("%s: %s is not what it can be: %+v", subject, name, *r)
		}
	}
}

// onWrite calls a function when something has been written that contains a text.
type onWrite struct {
	text string
	once sync.Once
	call func()
}

func (w *onWrite) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.once.Do(w.call)
	}
	return len(p), nil
}

// TestKernelBenchInterrupted: an interrupt ends it soon, and leaves nothing.
func TestKernelBenchInterrupted(t *testing.T) {
	needLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	var at time.Time
	out := &onWrite{text: "changes one by one", call: func() { at = time.Now(); cancel() }}
	err := run(ctx, []string{
		"--fairlead", agent, "--json", filepath.Join(t.TempDir(), "bench.json"),
		"--subjects", "fairlead", "--variants", "legacy", "--sizes", "3x1", "--curve", "", "--loads", "", "--samples", "100", "--connects", "50",
		"--changes", "5", "--rate", "50",
	}, out)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want that it was canceled", err)
	}
	if took := time.Since(at); at.IsZero() || took > 10*time.Second {
		t.Errorf("it ended %s after the interrupt", took)
	}
	if left := namespaces(t); len(left) > 0 {
		t.Errorf("namespaces are left: %v", left)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, args, want string // want is the error's; empty is none
	}{
		{"defaults", "", ""},
		{"nothing on the curve", "--curve=", ""},
		{"sizes", "--sizes 1000", `--sizes "1000" is not a size`},
		{"one Service", "--loads 1x10", `--loads "1x10" is not a size`},
		{"variant", "--variants pf", `--variants "pf" is none of`},
		{"samples", "--samples 0", "must be above 0"},
		{"limit", "--limit 0s", "must be above 0"},
		{"mix", "--mix grow=1", `"grow=1" is none of`},
		{"argument", "1000x10", `"1000x10" is not understood`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(strings.Fields(c.args), &strings.Builder{})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}

// TestPoints: no API server is asked to have fewer Services than before, and
// what is listed twice is measured once, with all there is.
func TestPoints(t *testing.T) {
	o, err := parse([]string{"--sizes", "1000x10,100x10", "--curve", "300x10,100x10", "--loads", "50x100"}, &strings.Builder{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range points(o.loads, o.curve, o.sizes) {
		got = append(got, p.Size.String()+" "+strconv.Itoa(int(p.extent)))
	}
	if want := "100x10 2, 300x10 1, 1000x10 2, 50x100 0"; strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, ", "), want)
	}
}
