// SPDX-License-Identifier: Apache-2.0

// Package gotest runs the tests of Go packages where go test cannot: it builds
// them here, and has somebody else run them.
package gotest

import (
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
