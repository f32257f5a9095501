// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"fairlead/e2e/uml/gotest"
)

// event is a line of go test -json, see go doc test2json and, for the build-
// actions, go help buildjson.
type event struct {
	Action     string
	Package    string
	Test       string
	Output     string
	ImportPath string
}

// testID names a test or subtest.
type testID struct{ pkg, test string }

// elsewhere is the same test in the other kernel: see package gotest.
func (id testID) elsewhere() testID {
	if pkg, ok := strings.CutSuffix(id.pkg, gotest.Suffix); ok {
		return testID{pkg, id.test}
	}
	return testID{id.pkg + gotest.Suffix, id.test}
}

// skip is a test that was skipped.
type skip struct {
	testID
	reason string
}

// report gathers events. Packages run at the same time, so it prints what there
// is to say of one when that has ended.
type report struct {
	out            io.Writer
	packages       map[string]*packageRun // those that have not ended
	builds         map[string]string      // output of builds by import path
	brokenBuilds   []string               // import paths
	passed, failed int
	skips          []skip
	passes         map[testID]bool
}

// packageRun is what is known of a package whose tests are running.
type packageRun struct {
	output strings.Builder // of no test in particular
	tests  []*testRun      // in the order in which they started
}

// testRun is a test or subtest.
type testRun struct {
	name   string
	result string // "pass", "fail" or "skip"; empty while it runs
	output []string
}

func newReport(out io.Writer) *report {
	return &report{out: out, packages: map[string]*packageRun{}, builds: map[string]string{}, passes: map[testID]bool{}}
}

// read takes in events up to the end of in. A line that is not an event is
// printed as it is.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.add(e)
			} else {
				fmt.Fprintf(r.out, "%s\n", bytes.TrimRight(line, "\r\n"))
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (r *report) add(e event) {
	switch {
	case e.Action == "build-output":
		r.builds[e.ImportPath] += e.Output
	case e.Action == "build-fail":
		r.brokenBuilds = append(r.brokenBuilds, e.ImportPath)
		fmt.Fprint(r.out, r.builds[e.ImportPath])
	case e.Package == "":
	case e.Test != "":
		r.addToTest(e)
	default:
		r.addToPackage(e)
	}
}

func (r *report) pkg(name string) *packageRun {
	p, ok := r.packages[name]
	if !ok {
		p = &packageRun{}
		r.packages[name] = p
	}
	return p
}

func (r *report) addToPackage(e event) {
	p := r.pkg(e.Package)
	switch e.Action {
	case "output":
		p.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		r.endPackage(e.Package, p, e.Action)
	}
}

func (r *report) addToTest(e event) {
	p := r.pkg(e.Package)
	t := p.running(e.Test)
	switch e.Action {
	case "output":
		if !isProgress(e.Output) {
			t.output = append(t.output, e.Output)
		}
	case "pass", "fail", "skip":
		t.result = e.Action
		r.count(testID{e.Package, e.Test}, t)
	}
}

// running returns the test of that name that has not ended yet, a new one if
// there is none: with -count a name comes more than once.
func (p *packageRun) running(name string) *testRun {
	for _, t := range slices.Backward(p.tests) {
		if t.name == name && t.result == "" {
			return t
		}
	}
	t := &testRun{name: name}
	p.tests = append(p.tests, t)
	return t
}

// isProgress reports whether a line of output only says that a test runs.
func isProgress(line string) bool {
	for _, p := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME "} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

func (r *report) count(id testID, t *testRun) {
	switch t.result {
	case "pass":
		r.passed++
		r.passes[id] = true
	case "fail":
		r.failed++
	case "skip":
		r.skips = append(r.skips, skip{testID: id, reason: t.skipReason()})
	}
}

// logPrefix is what testing puts before a message.
var logPrefix = regexp.MustCompile(`^\s+\S+\.go:\d+: `)

// skipReason returns the last message of a skipped test in one line.
func (t *testRun) skipReason() string {
	var reason []string
	for _, line := range t.output {
		if isResult(line) {
			continue
		}
		if prefix := logPrefix.FindString(line); prefix != "" {
			reason, line = nil, line[len(prefix):]
		}
		if line = strings.TrimSpace(line); line != "" {
			reason = append(reason, line)
		}
	}
	if len(reason) == 0 {
		return "no reason given"
	}
	return strings.Join(reason, " ")
}

// isResult reports whether a line of output tells the result of a test.
func isResult(line string) bool {
	line = strings.TrimLeft(line, " ")
	return strings.HasPrefix(line, "--- PASS: ") || strings.HasPrefix(line, "--- FAIL: ") || strings.HasPrefix(line, "--- SKIP: ")
}

// endPackage prints a package that has ended with result, which is empty if it
// never told one. A bad package counts as one failure if none of its tests does.
func (r *report) endPackage(name string, p *packageRun, result string) {
	delete(r.packages, name)
	failed := r.endTests(p)
	good := result == "pass" || result == "skip"
	if !good && !failed {
		r.failed++
		p.printAll(r.out) // why it failed may be among what its tests printed
	}
	if good {
		printPassed(r.out, p.output.String())
	} else {
		fmt.Fprint(r.out, p.output.String())
	}
	switch {
	case result == "":
		fmt.Fprintf(r.out, "FAIL\t%s\t[did not finish]\n", name)
	case good && failed:
		fmt.Fprintf(r.out, "FAIL\t%s\t[a test did not finish]\n", name)
	}
}

// endTests lets the tests fail that have no result, prints those that failed,
// and reports whether there are any.
func (r *report) endTests(p *packageRun) (failed bool) {
	for _, t := range p.tests {
		if t.result == "" {
			t.result = "fail"
			t.output = append(t.output, "--- FAIL: "+t.name+" (did not finish)\n")
			r.failed++
		}
		if t.result == "fail" {
			failed = true
			t.print(r.out)
		}
	}
	return failed
}

// printAll prints all tests of a package, however they ended.
func (p *packageRun) printAll(out io.Writer) {
	for _, t := range p.tests {
		t.print(out)
	}
}

// print prints a test the way go test does, its result first.
func (t *testRun) print(out io.Writer) {
	for _, results := range []bool{true, false} {
		for _, line := range t.output {
			if isResult(line) == results {
				fmt.Fprint(out, line)
			}
		}
	}
}

// printPassed prints of a good package's output what go test does.
func printPassed(out io.Writer, output string) {
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t") || strings.HasPrefix(line, "\t") {
			fmt.Fprint(out, line)
		}
	}
}

// finish prints what is left after the last event: packages that never ended,
// and the skipped tests.
func (r *report) finish() {
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		r.endPackage(name, r.packages[name], "")
	}
	if len(r.brokenBuilds) > 0 && r.failed == 0 {
		r.failed = len(r.brokenBuilds)
	}
	for _, s := range r.skips {
		fmt.Fprintf(r.out, "skipped: %s %s: %s\n", s.pkg, s.test, s.reason)
	}
	if r.passed+r.failed == 0 {
		fmt.Fprintln(r.out, "FAIL: no test ran")
	}
}

// ok reports whether tests ran and none failed.
func (r *report) ok() bool { return r.passed > 0 && r.failed == 0 }
