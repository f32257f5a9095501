// SPDX-License-Identifier: Apache-2.0

package gotest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// here runs tests in this kernel.
func here(ctx context.Context, dir string, args []string, output io.Writer) (int, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, output, output
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// lost starts tests and loses their kernel.
func lost(_ context.Context, _ string, _ []string, output io.Writer) (int, error) {
	if _, err := io.WriteString(output, "\x16=== RUN   TestCut\n"); err != nil {
		return 0, err
	}
	return 0, errors.New("kernel panic")
}

const data = "./testdata/"

func TestEvents(t *testing.T) {
	const good, bad, cut = "fairlead/e2e/uml/gotest/testdata/good@uml", "fairlead/e2e/uml/gotest/testdata/bad@uml", "fairlead/e2e/uml/gotest/testdata/cut@uml"
	for _, tt := range []struct {
		name   string
		tests  Tests
		run    Run
		passed bool
		want   []string // all but what is printed and the starts of tests
		output string
	}{
		{
			name: "pass and skip", tests: Tests{Packages: []string{data + "good"}}, run: here, passed: true,
			want:   []string{good + " TestGood pass", good + " TestSkipped skip", good + "  pass"},
			output: "ok  \t" + good + "\t",
		},
		{
			name: "selected", tests: Tests{Packages: []string{data + "good"}, Run: "Good|Skipped", Skip: "Skipped"}, run: here, passed: true,
			want: []string{good + " TestGood pass", good + "  pass"},
		},
		{
			name: "fail", tests: Tests{Packages: []string{data + "bad", data + "good"}, Run: "Bad|Good"}, run: here,
			want:   []string{bad + " TestBad fail", bad + "  fail", good + " TestGood pass", good + "  pass"},
			output: "FAIL\t" + bad + "\t",
		},
		{
			name: "broken build", tests: Tests{Packages: []string{data + "broken", data + "good"}, Run: "Good"}, run: here,
			want: []string{"  build-fail", good + " TestGood pass", good + "  pass"},
		},
		{
			name: "kernel lost", tests: Tests{Packages: []string{data + "cut"}}, run: lost,
			want:   []string{cut + "  fail"},
			output: "kernel panic\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.tests.JSON, tt.tests.Timeout = true, time.Minute
			var out strings.Builder
			passed, err := tt.tests.Do(t.Context(), tt.run, &out)
			if passed != tt.passed || err != nil {
				t.Errorf("got passed %t, error %v, want %t", passed, err, tt.passed)
			}
			var got []string
			printed := ""
			for line := range strings.Lines(out.String()) {
				var e event
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatalf("%v in %q", err, line)
				}
				switch e.Action {
				case "start", "run", "build-output":
				case "output":
					printed += e.Output
				default:
					got = append(got, e.Package+" "+e.Test+" "+e.Action)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if !strings.Contains(printed, tt.output) {
				t.Errorf("got output %q, want %q in it", printed, tt.output)
			}
		})
	}
}

func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		tests      Tests
	}{
		{name: "quiet", want: "PASS\nok  \t"},
		{name: "verbose", tests: Tests{Verbose: true}, want: "=== RUN   TestGood\n"},
		{name: "arguments", tests: Tests{Args: []string{"-test.list=."}}, want: "TestGood\nTestSkipped\nok  \t"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.tests.Packages, tt.tests.Timeout = []string{data + "good"}, time.Minute
			var out strings.Builder
			passed, err := tt.tests.Do(t.Context(), here, &out)
			if !passed || err != nil || !strings.Contains(out.String(), tt.want) {
				t.Errorf("got passed %t, error %v, output %q, want %q in it", passed, err, &out, tt.want)
			}
		})
	}
}

func TestNoTests(t *testing.T) {
	for _, tt := range []struct{ name, pattern, want string }{
		{"no tests", "../guest", "no package has tests"},
		{"no package", "./nosuch", "list packages"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Tests{Packages: []string{tt.pattern}}.Do(t.Context(), here, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q in it", err, tt.want)
			}
		})
	}
}
