// SPDX-License-Identifier: Apache-2.0

package gotest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// NoKernel is the test that is reported as skipped where there is no second kernel.
const NoKernel = "TestSecondKernel"

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

// Skip reports, as a test of a package that was skipped, that there is no second
// kernel.
func Skip(out io.Writer, importPath, reason string) error {
	pkg, test := importPath+Suffix, NoKernel
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
