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
	"time"

	"github.com/spf13/pflag"

	"fairlead/e2e/bench/report"
	"fairlead/e2e/uml/guest"
)

func main() {
	if guest.Is() {
		guest.Main() // and does not return
	}
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
	if o.from != "" {
		return again(o, out)
	}
	b, err := newBench(ctx, o, out)
	if err != nil {
		return err
	}
	defer b.close()
	limited, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("all took longer than %s, which --limit allows", o.limit))
	defer cancel()
	err = b.measure(limited)
	if err != nil && limited.Err() != nil { // with what could not be cleaned up
		err = fmt.Errorf("%w: %w", context.Cause(limited), err)
	}
	// What was measured before an error is worth having.
	return errors.Join(err, b.publish(err == nil))
}

// again publishes what an earlier run has found.
func again(o *options, out io.Writer) error {
	r, err := report.Read(o.from)
	if err != nil {
		return err
	}
	return publish(r, o.docs, out)
}

// publish prints the tables and, unless docs is empty, writes the documents.
func publish(r *report.Results, docs string, out io.Writer) error {
	for _, g := range r.Groups() {
		fmt.Fprintf(out, "\n%s", report.Text(g.Table(r.CutoffS)))
	}
	fmt.Fprintf(out, "\n%d of the figures that must hold do not; all took %s\n", r.Failed(), time.Duration(r.TookS*float64(time.Second)).Round(time.Second))
	if docs == "" {
		return nil
	}
	return r.UpdateDocs(docs)
}
