// SPDX-License-Identifier: Apache-2.0

package subject

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1 0"
	for _, c := range []struct {
		name, text string
		want       time.Duration
		wantErr    string
	}{
		{"plain", "42 (fairlead)" + rest, 1270 * time.Millisecond, ""},
		{"a name with everything in it", "42 (a) b (c d)" + rest, 1270 * time.Millisecond, ""},
		{"short", "42 (fairlead) S 1 2", 0, "too few fields"},
		{"no number", "42 (fairlead)" + strings.Replace(rest, "100", "x", 1), 0, `"x"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStat(c.text)
			if got != c.want || (err != nil) != (c.wantErr != "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
				t.Errorf("got %s, error %v; want %s, %q", got, err, c.want, c.wantErr)
			}
		})
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Name:\tfairlead\nVmHWM:\t  200 kB\nVmRSS:\t  100 kB\nThreads:\t7\n")
	if want := (Memory{Resident: 100 << 10, Peak: 200 << 10}); err != nil || got != want {
		t.Errorf("got %v, error %v; want %v", got, err, want)
	}
	if _, err := parseStatus("Name:\tfairlead\nState:\tZ (zombie)\n"); err == nil {
		t.Error("no error for a process without memory")
	}
}

func TestMetrics(t *testing.T) {
	m, err := parseMetrics(strings.NewReader(`# HELP a What it is.
# TYPE a gauge
a{ip_family="IPv4",table="nat"} 3
a{ip_family="IPv4",table="filter"} 4
a{ip_family="IPv6",table="nat"} 1.5e+01
ab{ip_family="IPv4"} 100
plain 7
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, label string
		want        float64
	}{
		{"a", "", 22},
		{"a", `ip_family="IPv4"`, 7},
		{"a", `table="nat"`, 18},
		{"plain", "", 7},
		{"plain", `ip_family="IPv4"`, 0},
		{"missing", "", 0},
	} {
		if got := m.Sum(c.name, c.label); got != c.want {
			t.Errorf("the sum of %s{%s} is %g, want %g", c.name, c.label, got, c.want)
		}
	}
	if _, err := parseMetrics(strings.NewReader("a x\n")); err == nil {
		t.Error("no error for a value that is no number")
	}
}

func TestMeanSync(t *testing.T) {
	at := func(sum, count float64) Metrics {
		return Metrics{SyncSeconds + `{ip_family="IPv4"}`: sum, syncs + `{ip_family="IPv4"}`: count, SyncSeconds + `{ip_family="IPv6"}`: 9 * sum}
	}
	if got := MeanSync(at(1, 2), at(1.5, 6)); got != 125*time.Millisecond {
		t.Errorf("got %s, want 125ms", got)
	}
	if got := MeanSync(at(1, 2), at(1, 2)); got != 0 {
		t.Errorf("without a sync got %s", got)
	}
}

func TestMissing(t *testing.T) {
	program := filepath.Join(t.TempDir(), "proxy")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho '  --iptables-compact-not-yet  --proxy-mode string'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		subject Subject
		want    string
	}{
		{"there", Subject{Binary: program}, ""},
		{"flag with a value", Subject{Binary: program, Flags: []string{"--proxy-mode=ipvs"}}, ""},
		{"flag that is only the beginning of one", Subject{Binary: program, Flags: []string{"--iptables-compact"}}, "this build of proxy has no --iptables-compact"},
		{"no program", Subject{Binary: program + "-not"}, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.subject.Missing(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}
