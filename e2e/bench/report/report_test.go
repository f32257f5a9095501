// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// docs is the directory of the project's documents.
var docs = filepath.Join("..", "..", "..", "docs")

// TestPageIsOfItsData: the tables and the plot in the documents are those of the
// figures that lie beside them.
func TestPageIsOfItsData(t *testing.T) {
	r, err := Read(filepath.Join(docs, DataFile))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(docs, PageFile))
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.UpdatePage(string(page))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(page)); diff != "" {
		t.Errorf("%s is not what %s says (-want +got):\n%s", PageFile, DataFile, diff)
	}
	plot, err := os.ReadFile(filepath.Join(docs, PlotFile))
	if err != nil {
		t.Fatal(err)
	}
	if r.Plot() != string(plot) {
		t.Errorf("%s is not what %s says", PlotFile, DataFile)
	}
}

func TestUpdateDocs(t *testing.T) {
	dir := t.TempDir()
	r := sample()
	page := filepath.Join(dir, PageFile)
	if err := os.WriteFile(page, []byte("# Title\n"+beginMark+"\nstale\n"+endMark+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.UpdateDocs(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	if !strings.HasPrefix(text, "# Title\n"+beginMark+"\n") || !strings.HasSuffix(text, "\n"+endMark+"\nafter\n") || strings.Contains(text, "stale") {
		t.Errorf("got page\n%s", text)
	}
	back, err := Read(filepath.Join(dir, DataFile))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("figures change when they are written and read:\n%s", diff)
	}
	if err := os.WriteFile(page, []byte("# Title\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.UpdateDocs(dir); err == nil || !strings.Contains(err.Error(), beginMark) {
		t.Errorf("without marks: got error %v, want one that names them", err)
	}
}

func TestNewDist(t *testing.T) {
	var samples []time.Duration
	for i := 100; i > 0; i-- {
		samples = append(samples, time.Duration(i)*time.Millisecond)
	}
	for _, c := range []struct {
		name    string
		samples []time.Duration
		want    *Dist
	}{
		{"none", nil, nil},
		{"one", samples[:1], &Dist{N: 1, P50: 100, P90: 100, P99: 100}},
		{"two", samples[:2], &Dist{N: 2, P50: 99, P90: 100, P99: 100}},
		{"a hundred", samples, &Dist{N: 100, P50: 50, P90: 90, P99: 99}},
	} {
		if diff := cmp.Diff(c.want, NewDist(c.samples, time.Millisecond)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// sample are results of two sizes, in which one subject is cut off.
func sample() *Results {
	fairlead := func(size Size, first, floor float64) Run {
		return Run{
			Subject: Product, Variant: "nft", Size: size,
			FirstSync: &FirstSync{S: first, SyncS: first - 0.5},
			AddedMS:   &Dist{N: 30, P50: 40, P90: 50, P99: 60},
			RemovedMS: &Dist{N: 30, P50: 61, P90: 62, P99: 63},
			Connect:   &Connect{LastUS: Dist{N: 2000, P50: 44, P99: 99}, NoRulesUS: Dist{N: 2000, P50: 36.5, P99: 80}},
			Memory:    &Memory{SyncedMiB: 140, PeakMiB: 160},
			Churn:     &Churn{CPUS: 4, TookS: 51, MemoryMiB: 151},
			Restart:   &Restart{ReadyS: 2.5, RulesWritten: 1, SaveS: 1},
			Floor:     &Floor{FirstSyncS: floor, Restores: 7, AddedMS: &Dist{N: 10, P50: 30, P90: 31, P99: 32}},
		}
	}
	kubeProxy := Run{
		Subject: Reference, Variant: "nft", Size: small, FirstSync: &FirstSync{S: 6.5, SyncS: 6},
		AddedMS: &Dist{N: 30, P50: 200, P90: 210, P99: 220}, Churn: &Churn{CPUS: 8, TookS: 52, MemoryMiB: 100},
	}
	return &Results{
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), TookS: 90, Version: "v1", KubeProxy: "v1.36.3",
		Machine: Machine{CPUs: 2, CPU: "some CPU", MemoryMiB: 24000, Kernel: "6.18", Iptables: "1.8.9", Load: 0.1},
		Settings: Settings{
			Samples: 30, Connects: 2000, Changes: 1000, Rate: 20, Mix: "replace=1", Seed: 1, CutoffS: 60,
		},
		Runs: []Run{
			fairlead(large, 10, 8), {Subject: Reference, Variant: "nft", Size: large, CutOff: true},
			fairlead(small, 1.3, 1.2), kubeProxy,
		},
	}
}

func TestTable(t *testing.T) {
	groups := sample().Groups()
	if len(groups) != 2 || groups[0].Size != small || groups[1].Size != large {
		t.Fatalf("got groups %v, want the small size and then the large one", groups)
	}
	for i, want := range []string{`1000 × 10, nft floor fairlead kube-proxy kube-proxy / fairlead must hold
first sync, s 1.20 1.30 6.50 5.0 ≤ 1.30 ok
· of it in the sync itself – 0.80 6.00 7.5
endpoint added → works, ms, p50 30.0 40.0 200.0 5.0 ≤ 45.0 ok
`, `10000 × 10, nft floor fairlead kube-proxy kube-proxy / fairlead must hold
first sync, s 8.00 10.00 > 60 – ≤ 10.40 ok
`} {
		var got strings.Builder
		for line := range strings.Lines(Text(groups[i].Table(60))) {
			got.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
		}
		if !strings.HasPrefix(got.String(), want) {
			t.Errorf("got\n%s\nwant it to begin with\n%s", &got, want)
		}
	}
	if got := Markdown([][]string{{"a", "b"}, {"c", "1"}}); got != "| a | b |\n|---|--:|\n| c | 1 |\n" {
		t.Errorf("got Markdown %q", got)
	}
}

// TestTargets: what holds and what does not, at the edge.
func TestTargets(t *testing.T) {
	g := sample().Groups()[1] // large, nft
	for key, want := range map[string]string{
		keyFirstSync: "≤ 10.40 ok",  // 1.3 times the floor, which is less than 12 s
		keyAdded:     "≤ 45.0 ok",   // 15 ms over the floor
		keyRemoved:   "≤ 60.0 FAIL", // 61 ms
		keyLast:      "≤ 44.5 ok",   // 8 µs over no rules
		keySynced:    "≤ 150 ok",
		keyChanged:   "≤ 150 FAIL",
		keyCPU:       "", // the reference was cut off
		keyReady:     "≤ 2.80 ok",
		keyWritten:   "≤ 0 FAIL",
	} {
		for _, row := range rows() {
			if row.key == key && g.verdicts(row) != want {
				t.Errorf("%s: got %q, want %q", key, g.verdicts(row), want)
			}
		}
	}
	if got := sample().Failed(); got != 3 {
		t.Errorf("%d targets fail, want 3", got)
	}
	cut := sample()
	cut.Runs[0] = Run{Subject: Product, Variant: "legacy", Size: large, CutOff: true}
	cut.Runs[1] = Run{Subject: compact, Variant: "legacy", Size: large, Connect: &Connect{}, FirstSync: &FirstSync{S: 2}}
	for _, g := range cut.Groups() {
		if got, want := g.verdicts(rows()[0]), "≤ 6.00 FAIL, compact ≤ 2.50 ok"; g.Size == large && got != want {
			t.Errorf("one cut off, and the compact form: got %q, want %q", got, want)
		}
	}
}

// TestIPVSTargets: IPVS modes have limits of their own, by what the reference takes,
// and by what one change costs at a small size.
func TestIPVSTargets(t *testing.T) {
	at := func(subject string, size Size, first, added float64) Run {
		return Run{Subject: subject, Variant: IPVS, Size: size, FirstSync: &FirstSync{S: 1, SyncS: 1, DoneS: first},
			ChangeSyncMS: added / 10, Floor: &Floor{AddedMS: &Dist{N: 3, P50: added - 6, P90: added, P99: added}},
			AddedMS: &Dist{N: 3, P50: added, P90: added, P99: added}, RemovedMS: &Dist{N: 3, P50: added, P90: added, P99: added}}
	}
	r := &Results{Runs: []Run{
		at(Product, few, 1, 10), at(Product, small, 12.1, 100), at(Reference, small, 60, 500), at(Product, many, 50, 15.1),
	}}
	r.Runs[3].Floor.AddedMS.P50 = 6 // to which 1.5 times 6 come
	groups := r.Groups()
	if len(groups) != 3 || r.Plot() != "" {
		t.Fatalf("got %d tables and plot %q, want tables of three sizes and no plot", len(groups), r.Plot())
	}
	for i, want := range []map[string]string{
		{keyDone: "", keyAdded: ""},
		{keyFirstSync: "", keyDone: "≤ 12.00 FAIL", keyAdded: "≤ 100.0 ok", keyRemoved: "≤ 100.0 ok", keySynced: ""},
		{keyDone: "", keyAdded: "≤ 15.0 FAIL", keyRemoved: "", keyChange: "≤ 1.50 FAIL"},
	} {
		for _, row := range rows() {
			if w, ok := want[row.key]; ok && groups[i].verdicts(row) != w {
				t.Errorf("%s at %s: got %q, want %q", row.key, groups[i].Size, groups[i].verdicts(row), w)
			}
		}
	}
}

// TestTargetsHaveRows: a target without a row would never be judged.
func TestTargetsHaveRows(t *testing.T) {
	keys := map[string]int{}
	for _, row := range rows() {
		keys[row.key]++
	}
	for _, target := range targets() {
		if keys[target.key] != 1 {
			t.Errorf("%d rows have the key %q, want 1", keys[target.key], target.key)
		}
	}
}

func TestPlot(t *testing.T) {
	r := sample()
	plot := r.Plot()
	for d := xml.NewDecoder(strings.NewReader(plot)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the plot is no XML: %v\n%s", err, plot)
		}
	}
	for text, want := range map[string]int{
		"<polyline":                2 * 3, // fairlead, its floor and kube-proxy, in two panels
		"<circle":                  2 * 3, // points, those of floors aside
		">fairlead, nft: floor</t": 1 + 2, // in the legend and as titles
		"NaN":                      0,
	} {
		if got := strings.Count(plot, text); got != want {
			t.Errorf("the plot has %q %d times, want %d", text, got, want)
		}
	}
	r.Runs = r.Runs[:2]
	if r.Plot() != "" {
		t.Error("there is a plot of one size")
	}
}
