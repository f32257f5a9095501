// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"fairlead/e2e/build"
	"fairlead/e2e/uml/gotest"
	"fairlead/e2e/uml/machine"
)

// grace is how much longer than its tests a guest may take: they print where
// they are when their own time is over.
const grace = 30 * time.Second

// runTests runs the tests of packages, as go test does.
func runTests(ctx context.Context, args []string, stdout, stderr io.Writer) (code int, err error) {
	var o options
	var t gotest.Tests
	flags := newFlags("flags of go-test", &o, stderr)
	flags.StringVar(&t.Run, "run", "", "run only the tests that match the `regexp`")
	flags.StringVar(&t.Skip, "skip", "", "do not run the tests that match the `regexp`")
	flags.BoolVar(&t.Verbose, "v", false, "print the names and the output of all tests")
	flags.BoolVar(&t.JSON, "json", false, "print events, as go test -json does")
	if i := slices.IndexFunc(args, func(a string) bool { return a == "-args" || a == "--args" }); i >= 0 {
		args, t.Args = args[:i], args[i+1:]
	}
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return codeFailed, nil
	}
	if err := machine.Supported(); err != nil && t.JSON {
		return 0, gotest.Skip(stdout, "fairlead/e2e/uml", err.Error())
	}
	t.Packages, t.Timeout = flags.Args(), o.timeout
	o.timeout += grace
	code, err = o.test(ctx, t, stdout)
	if err != nil {
		fmt.Fprintln(stderr, "uml:", err)
	}
	return code, err
}

// test builds the agent, which tests that run it do not find the means for in a
// guest, and runs the tests.
func (o options) test(ctx context.Context, t gotest.Tests, stdout io.Writer) (code int, err error) {
	dir, err := os.MkdirTemp("", "fairlead-agent-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binary, err := build.Agent(dir)
	if err != nil {
		return 0, err
	}
	o.env = []string{build.AgentVariable + "=" + binary}
	run := func(ctx context.Context, dir string, args []string, output io.Writer) (int, error) {
		return o.boot(ctx, dir, args, output, output)
	}
	passed, err := t.Do(ctx, run, stdout)
	if err == nil && !passed {
		return 1, nil
	}
	return 0, err
}
