// SPDX-License-Identifier: Apache-2.0

// Command demo shows what Fairlead does to real packets: in a node made of
// network namespaces it runs the agent, lets clients talk to a Service, changes
// the Service's endpoints and times how long that takes to matter. Whatever it
// shows it has checked; it fails on the first thing that does not happen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"fairlead/e2e/lab"
)

// limit bounds the whole demo.
const limit = 2 * time.Minute

func main() {
	binary := flag.String("fairlead", "bin/fairlead", "the agent to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	out := newPrinter(os.Stdout)
	err := run(ctx, *binary, out)
	switch {
	case err == nil:
		return
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything is cleaned up")
	default:
		fmt.Fprintln(os.Stderr, out.red("demo: "+err.Error()))
	}
	stop()
	os.Exit(1)
}

// run makes the laboratory, goes through the steps and cleans up.
func run(ctx context.Context, binary string, out *printer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	binary, err = executable(binary)
	if err != nil {
		return err
	}
	if err := lab.Supported(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairlead-demo-")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	d, err := newDemo(ctx, binary, dir, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(err != nil && !errors.Is(ctx.Err(), context.Canceled))) }()
	return d.steps(ctx)
}

// executable returns the absolute path of the agent, as it is started from
// elsewhere.
func executable(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("find the agent (make build makes it): %w", err)
	}
	return filepath.Abs(found)
}
