// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/*.want")

// TestStreams feeds output of go test -json, recorded from small packages with
// go1.26, to run. What is printed is kept in a .want file next to each recording.
func TestStreams(t *testing.T) {
	ok := map[string]bool{ // the others must fail
		"good": true, "mixed": true, "twice": true,
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("got recordings %v, error %v", files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			got, good := reportFile(t, file, "")
			if good != ok[name] {
				t.Errorf("got success %t, want %t", good, ok[name])
			}
			golden(t, strings.TrimSuffix(file, ".json")+".want", got)
		})
	}
}

// reportFile runs run on a file.
func reportFile(t *testing.T, file, skips string) (output string, ok bool) {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out strings.Builder
	ok, err = run(t.Context(), in, &out, skips)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), ok
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// TestOddStreams has what go test is not expected to write.
func TestOddStreams(t *testing.T) {
	const (
		ran     = `{"Action":"run","Package":"p","Test":"TestA"}` + "\n"
		passed  = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		printed = `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: late\n"}` + "\n"
		end     = `{"Action":"pass","Package":"p"}` + "\n"
		broken  = `{"Action":"build-output","ImportPath":"q","Output":"# q\n"}` + "\n" +
			`{"Action":"build-fail","ImportPath":"q"}` + "\n"
	)
	for _, tt := range []struct{ name, in, want string }{
		{
			"package passes before its test",
			ran + end,
			"--- FAIL: TestA (did not finish)\nFAIL\tp\t[a test did not finish]\n0 passed, 1 failed, 0 skipped\n",
		},
		{
			"package fails after its tests have passed",
			ran + printed + passed + `{"Action":"fail","Package":"p"}`,
			"panic: late\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			"package never ends",
			ran + passed,
			"FAIL\tp\t[did not finish]\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			"broken build of no package",
			broken + ran + passed + end,
			"# q\n1 passed, 1 failed, 0 skipped\n",
		},
		{
			"cut in the middle of a line",
			ran + passed + end[:20],
			end[:20] + "\nFAIL\tp\t[did not finish]\n1 passed, 1 failed, 0 skipped\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := run(t.Context(), strings.NewReader(tt.in), &out, "")
			if ok || err != nil {
				t.Errorf("got success %t, error %v, want failure", ok, err)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	var out strings.Builder
	ok, _ := run(t.Context(), strings.NewReader("go: downloading rope v1.0.0\n"+ran+passed+end), &out, "")
	if want := "go: downloading rope v1.0.0\n1 passed, 0 failed, 0 skipped\n"; !ok || out.String() != want {
		t.Errorf("got success %t, %q, want success, %q", ok, out.String(), want)
	}
}

func TestNoInput(t *testing.T) {
	var out strings.Builder
	ok, err := run(t.Context(), strings.NewReader(""), &out, "")
	if ok || err != nil {
		t.Errorf("got success %t, error %v, want failure", ok, err)
	}
	if want := "FAIL: no test ran\n0 passed, 0 failed, 0 skipped\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestStrict(t *testing.T) {
	const (
		pkg = "example.test/rope/good "
		sub = pkg + "TestSub/one_two | false | none\n"
	)
	for _, tt := range []struct {
		name, list string
		want       []string // in the output, none if it must be a success
	}{
		{
			name: "all justified",
			list: "# comment\n\n" + pkg + "TestSkip | cat /nonexistent 2>&1 | grep -q rope | no rope here\n" + sub,
		},
		{
			name: "not listed",
			list: sub,
			want: []string{"FAIL: example.test/rope/good TestSkip was skipped and is not in "},
		},
		{
			name: "of another package",
			list: "example.test/rope TestSkip | false | none\n" + sub,
			want: []string{"TestSkip was skipped and is not in "},
		},
		{
			name: "parent listed only",
			list: pkg + "TestSkip | false | none\n" + pkg + "TestSub | false | none\n",
			want: []string{"TestSub/one_two was skipped and is not in "},
		},
		{
			name: "probe succeeds",
			list: pkg + "TestSkip | true | none\n" + sub,
			want: []string{`TestSkip was skipped, and its probe in `, `"true", succeeds`, "remove the entry"},
		},
		{
			name: "probe not found",
			list: pkg + "TestSkip | no-such-command --at-all | none\n" + sub,
			want: []string{`"no-such-command --at-all", cannot be run`},
		},
		{
			name: "probe killed",
			list: pkg + "TestSkip | kill -9 $$ | none\n" + sub,
			want: []string{"cannot be run"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := filepath.Join(t.TempDir(), "skips.txt")
			if err := os.WriteFile(list, []byte(tt.list), 0o644); err != nil {
				t.Fatal(err)
			}
			out, ok := reportFile(t, "testdata/good.json", list)
			if want := len(tt.want) == 0; ok != want {
				t.Errorf("got success %t, want %t:\n%s", ok, want, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("want %q in the output:\n%s", want, out)
				}
			}
			if !strings.HasSuffix(out, "\n4 passed, 0 failed, 2 skipped\n") {
				t.Errorf("want the summary at the end of the output:\n%s", out)
			}
		})
	}
}

// TestStrictElsewhere: a skip needs no entry if the test has passed in the other
// kernel.
func TestStrictElsewhere(t *testing.T) {
	const (
		here, there = `"Package":"p","Test":"TestA"}` + "\n", `"Package":"p@uml","Test":"TestA"}` + "\n"
		other       = `{"Action":"pass","Package":"p","Test":"TestB"}` + "\n"
		ends        = `{"Action":"pass","Package":"p"}` + "\n" + `{"Action":"pass","Package":"p@uml"}` + "\n"
		skip, pass  = `{"Action":"skip",`, `{"Action":"pass",`
	)
	list := filepath.Join(t.TempDir(), "skips.txt")
	const entries = "none@uml TestSecondKernel | false | none\nbroken@uml TestSecondKernel | true | none\n"
	if err := os.WriteFile(list, []byte(entries), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, in string
		want     bool
	}{
		{"no second kernel", skip + here + skip + `"Package":"none@uml","Test":"TestSecondKernel"}` + "\n" + `{"Action":"pass","Package":"none@uml"}` + "\n", true},
		{"a second kernel that is not used", skip + here + skip + `"Package":"broken@uml","Test":"TestSecondKernel"}` + "\n" + `{"Action":"pass","Package":"broken@uml"}` + "\n", false},
		{"passed there", skip + here + pass + there, true},
		{"passed there before", pass + there + skip + here, true},
		{"passed here", pass + here + skip + there, true},
		{"skipped in both", skip + here + skip + there, false},
		{"not run there", skip + here, false},
		{"only another has passed", skip + here + pass + strings.Replace(there, "TestA", "TestB", 1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			got, err := run(t.Context(), strings.NewReader(tt.in+other+ends), &out, list)
			if got != tt.want || err != nil {
				t.Errorf("got success %t, error %v, want %t:\n%s", got, err, tt.want, &out)
			}
		})
	}
}

// TestStrictFailsForFailures makes sure that a good list does not hide a failure.
func TestStrictFailsForFailures(t *testing.T) {
	if out, ok := reportFile(t, "testdata/bad.json", "../skips.txt"); ok {
		t.Errorf("got success:\n%s", out)
	}
}

func TestSkipListErrors(t *testing.T) {
	for _, tt := range []struct{ list, want string }{
		{"a TestB", `skips.txt:1: want "import/path`},
		{"a TestB | false", `skips.txt:1: want "import/path`},
		{"TestB | false | none", `skips.txt:1: want "import/path`},
		{"a TestB |  | none", "skips.txt:1: probe command or reason is empty"},
		{"a TestB | false | ", "skips.txt:1: probe command or reason is empty"},
		{"\na TestB | false | none\na TestB | true | none", "skips.txt:3: a TestB is listed twice"},
	} {
		list := filepath.Join(t.TempDir(), "skips.txt")
		if err := os.WriteFile(list, []byte(tt.list), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readSkips(list); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("list %q: got error %v, want %q in it", tt.list, err, tt.want)
		}
	}
	if _, err := readSkips(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a list that is missing")
	}
}
