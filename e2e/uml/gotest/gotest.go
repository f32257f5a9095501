// SPDX-License-Identifier: Apache-2.0

// Package gotest runs the tests of Go packages where go test cannot: it builds
// them here, and has somebody else run them.
package gotest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Suffix is what the name of a package ends with in what is reported of its
// tests, so that they are not taken for those on the machine's own kernel.
const Suffix = "@uml"

// Run runs a program in a directory, and returns its exit code. An error means
// that there is none.
type Run func(ctx context.Context, dir string, args []string, output io.Writer) (code int, err error)

// Tests are tests to run.
type Tests struct {
	// Packages are patterns as go list takes them.
	Packages []string
	// Run and Skip select tests as those flags of go test do.
	Run, Skip string
	Verbose   bool
	// Timeout bounds the tests of one package.
	Timeout time.Duration
	// Args are for the test binaries.
	Args []string
	// JSON asks for what go test -json prints, instead of what go test does.
	JSON bool
}

// Do builds and runs the tests, one package after the other, and reports to out
// whether all passed. An error means that no more could be run, or reported.
func (t Tests) Do(ctx context.Context, run Run, out io.Writer) (passed bool, err error) {
	packages, err := list(ctx, t.Packages)
	if err != nil {
		return false, errors.Join(err, t.broken(out, strings.Join(t.Packages, " "), err))
	}
	dir, err := os.MkdirTemp("", "fairlead-gotest-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	passed = true
	for _, p := range packages {
		binary := filepath.Join(dir, "test")
		if err := build(ctx, p, binary); err != nil {
			passed = false
			if err := t.broken(out, p.ImportPath, err); err != nil {
				return false, err
			}
			continue
		}
		ok, err := t.one(ctx, run, p, binary, out)
		if err != nil {
			return false, err
		}
		passed = passed && ok
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
	}
	return passed, nil
}

// pkg is a package with tests.
type pkg struct{ ImportPath, Dir string }

// list returns the packages that have tests.
func list(ctx context.Context, patterns []string) ([]pkg, error) {
	args := append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, patterns...)
	cmd := exec.CommandContext(ctx, "go", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var out []pkg
	for d := json.NewDecoder(strings.NewReader(string(text))); ; {
		var p struct {
			pkg
			TestGoFiles, XTestGoFiles []string
		}
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			if len(out) == 0 {
				return nil, fmt.Errorf("no package has tests: %s", strings.Join(patterns, " "))
			}
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("list packages: %w", err)
		}
		if len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 {
			out = append(out, p.pkg)
		}
	}
}

func build(ctx context.Context, p pkg, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, p.ImportPath)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build tests of %s: %w\n%s", p.ImportPath, err, strings.TrimSpace(string(text)))
	}
	return nil
}

// broken reports a package that could not be built, as go help buildjson says.
func (t Tests) broken(out io.Writer, importPath string, cause error) error {
	if !t.JSON {
		_, err := fmt.Fprintln(out, cause)
		return err
	}
	type buildEvent struct{ ImportPath, Action, Output string }
	enc := json.NewEncoder(out)
	if err := enc.Encode(buildEvent{importPath, "build-output", cause.Error() + "\n"}); err != nil {
		return err
	}
	return enc.Encode(buildEvent{ImportPath: importPath, Action: "build-fail"})
}

// Skip reports, as a test that was skipped, that no tests can be run.
func Skip(out io.Writer, pkg, test, reason string) error {
	enc := json.NewEncoder(out)
	for _, e := range []event{
		{Action: "run", Package: pkg, Test: test},
		{Action: "output", Package: pkg, Test: test, Output: reason + "\n"},
		{Action: "skip", Package: pkg, Test: test},
		{Action: "pass", Package: pkg},
	} {
		e.Time = time.Now()
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	return nil
}

// one runs the tests of a package.
func (t Tests) one(ctx context.Context, run Run, p pkg, binary string, out io.Writer) (passed bool, err error) {
	name := p.ImportPath + Suffix
	args := append([]string{binary}, t.flags()...)
	started := time.Now()
	var output io.Writer = out
	var events *converter
	if t.JSON {
		if events, err = convert(name, out); err != nil {
			return false, err
		}
		output = events
	}
	code, err := run(ctx, p.Dir, args, output)
	if err != nil {
		fmt.Fprintln(output, err)
	}
	passed = err == nil && code == 0
	elapsed := time.Since(started)
	last := fmt.Sprintf("%s\t%s\t%.3fs\n", map[bool]string{true: "ok  ", false: "FAIL"}[passed], name, elapsed.Seconds())
	if events != nil {
		return passed, events.close(last, passed, elapsed)
	}
	_, err = io.WriteString(out, last)
	return passed, err
}

// flags are those of a test binary.
func (t Tests) flags() []string {
	out := []string{"-test.paniconexit0", "-test.timeout=" + t.Timeout.String()}
	switch {
	case t.JSON:
		out = append(out, "-test.v=test2json")
	case t.Verbose:
		out = append(out, "-test.v")
	}
	if t.Run != "" {
		out = append(out, "-test.run="+t.Run)
	}
	if t.Skip != "" {
		out = append(out, "-test.skip="+t.Skip)
	}
	return append(out, t.Args...)
}

// converter turns what a test binary prints into events.
type converter struct {
	io.WriteCloser
	cmd  *exec.Cmd
	name string
	out  io.Writer
	done chan error
}

// event is what is looked at of the events of go test -json.
type event struct {
	Time    time.Time
	Action  string
	Package string
	Test    string  `json:",omitempty"`
	Output  string  `json:",omitempty"`
	Elapsed float64 `json:",omitempty"`
}

// convert starts a converter, which writes the events of the package to out.
func convert(name string, out io.Writer) (*converter, error) {
	c := &converter{name: name, out: out, done: make(chan error, 1)}
	c.cmd = exec.Command("go", "tool", "test2json", "-t", "-p", name)
	var err error
	if c.WriteCloser, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	events, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("run test2json: %w", err)
	}
	go func() { c.done <- c.pass(events) }()
	return c, nil
}

// pass passes on all events but the last: how a package ended is known by the
// exit code of its tests.
func (c *converter) pass(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			continue
		}
		if _, err := io.WriteString(c.out, line); err != nil {
			return err
		}
	}
}

// close ends the events with how the package has ended.
func (c *converter) close(last string, passed bool, elapsed time.Duration) error {
	err := c.Close()
	err = errors.Join(err, <-c.done, c.cmd.Wait())
	if err != nil {
		return fmt.Errorf("convert what tests printed: %w", err)
	}
	action := "fail"
	if passed {
		action = "pass"
	}
	enc := json.NewEncoder(c.out)
	if err := enc.Encode(event{Time: time.Now(), Action: "output", Package: c.name, Output: last}); err != nil {
		return err
	}
	return enc.Encode(event{Time: time.Now(), Action: action, Package: c.name, Elapsed: elapsed.Seconds()})
}
