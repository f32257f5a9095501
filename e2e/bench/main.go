// SPDX-License-Identifier: Apache-2.0

// Command bench measures Fairlead and kube-proxy side by side: each on a node of
// its own against one API server, with the same objects and the same changes. It
// prints a table for each size and writes all figures as JSON. docs/performance.md
// says what is measured, and how.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		return
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted; everything is cleaned up")
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	stop()
	os.Exit(1)
}

// run is the command.
func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	b, err := newBench(ctx, o, out)
	if err != nil {
		return err
	}
	defer b.close()
	err = b.measure(ctx)
	// What was measured before an error is worth having.
	return errors.Join(err, b.publish())
}
