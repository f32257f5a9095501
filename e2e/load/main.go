// SPDX-License-Identifier: Apache-2.0

// Command load fills an API server with Services and endpoints, and then changes
// them at a given rate. The same flags and the same seed make the same objects
// and the same changes. See --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/tools/clientcmd"

	"fairlead/e2e/load/workload"
)

const usage = `Load fills an API server with Services and EndpointSlices, and then changes them.

  load --kubeconfig FILE --services 10000 --endpoints 10
  load --kubeconfig FILE --services 10000 --endpoints 10 --create=false --changes 1000 --rate 20
  load --kubeconfig FILE --delete
  load --services 10 --endpoints 2 --changes 5 --dry-run

Service number n is svc-%06d of the namespace, with the n-th cluster IP from the
256th of --service-cidr on. The Services have no selectors. A change is one of:
  replace  one endpoint gives way to a new one
  scale    a Service gets another number of endpoints, up to twice as many
  add      a Service comes, with its endpoints
  remove   a Service goes, with its endpoints
Which changes there are, and in what order, follows from the flags alone. They
start from what --services and --endpoints describe, so load it first.

Flags:
`

// options are the flags.
type options struct {
	plan                          workload.Plan
	kubeconfig, context           string
	serviceCIDR, endpointCIDR     string
	mix                           string
	workers, changes              int
	rate                          float64
	seed                          uint64
	create, remove, dryRun, quiet bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func (o *options) register(fs *pflag.FlagSet) {
	o.plan = workload.DefaultPlan()
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "File with the address and credentials of the API server; empty means as kubectl finds it.")
	fs.StringVar(&o.context, "context", "", "Context of the kubeconfig; empty means its current one.")
	fs.IntVar(&o.plan.Services, "services", o.plan.Services, "Number of Services.")
	fs.IntVar(&o.plan.Endpoints, "endpoints", o.plan.Endpoints, "Number of endpoints of each Service, in EndpointSlices of up to 100.")
	fs.StringVar(&o.plan.Namespace, "namespace", o.plan.Namespace, "Namespace of all objects; made if it is not there.")
	fs.StringVar(&o.serviceCIDR, "service-cidr", o.plan.ServiceCIDR.String(), "Range of the cluster IPs, part of the API server's.")
	fs.StringVar(&o.endpointCIDR, "endpoint-cidr", o.plan.EndpointCIDR.String(), "Range of the endpoints' addresses.")
	fs.Uint16Var(&o.plan.Port, "port", o.plan.Port, "Port of the Services.")
	fs.Uint16Var(&o.plan.TargetPort, "target-port", o.plan.TargetPort, "Port of the endpoints.")
	fs.IntVar(&o.plan.Nodes, "nodes", o.plan.Nodes, "Number of nodes that the endpoints are said to be on.")
	fs.BoolVar(&o.create, "create", true, "Write Services and endpoints before the changes.")
	fs.IntVar(&o.changes, "changes", 0, "Number of changes to make.")
	fs.Float64Var(&o.rate, "rate", 20, "Changes in a second; 0 means as many as the API server takes.")
	fs.StringVar(&o.mix, "mix", workload.DefaultMix().String(), "Kinds of changes and how often each is, relative to the others.")
	fs.Uint64Var(&o.seed, "seed", 1, "Other changes for every number.")
	fs.IntVar(&o.workers, "workers", 32, "Requests under way at a time.")
	fs.BoolVar(&o.remove, "delete", false, "Delete all that this command has written to the namespace, and do nothing else.")
	fs.BoolVar(&o.dryRun, "dry-run", false, "Print the changes, and write nothing.")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Print no progress.")
}

func (o *options) parse(args []string, out io.Writer) error {
	fs := pflag.NewFlagSet("load", pflag.ContinueOnError)
	o.register(fs)
	fs.SortFlags = false
	fs.Usage = func() { fmt.Fprint(out, usage, fs.FlagUsages()) }
	if err := fs.Parse(args); err != nil {
		return err
	}
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("argument %q is not understood; all is in flags, see --help", fs.Arg(0))
	case o.workers < 1:
		return fmt.Errorf("--workers %d must be at least 1", o.workers)
	case o.rate < 0 || o.changes < 0:
		return fmt.Errorf("--rate %g and --changes %d must not be below 0", o.rate, o.changes)
	}
	if err := o.plan.SetCIDRs(o.serviceCIDR, o.endpointCIDR); err != nil {
		return err
	}
	return o.plan.Validate()
}

// run is the command.
func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	if err := o.parse(args, out); err != nil {
		return err
	}
	mix, err := workload.ParseMix(o.mix)
	if err != nil {
		return err
	}
	changes := workload.NewChurn(o.plan, mix, o.seed).Take(o.changes)
	if o.dryRun {
		for _, c := range changes {
			fmt.Fprintln(out, c)
		}
		return nil
	}
	w, err := o.writer()
	if err != nil {
		return err
	}
	if o.remove {
		start := time.Now()
		n, err := w.DeleteAll(ctx)
		fmt.Fprintf(out, "deleted %s\n", speed(n, "objects", time.Since(start)))
		return err
	}
	if o.create {
		if err := o.fill(ctx, w, out); err != nil {
			return err
		}
	}
	if o.changes > 0 {
		took, err := w.Run(ctx, o.rate, slices.Values(changes))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "made %s\n", speed(o.changes, "changes", took))
	}
	return nil
}

func (o *options) writer() (*workload.Writer, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: o.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := workload.NewClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client of %s: %w", cfg.Host, err)
	}
	return &workload.Writer{Client: client, Plan: o.plan, Workers: o.workers}, nil
}

// fill writes what is planned, and tells of every tenth of it.
func (o *options) fill(ctx context.Context, w *workload.Writer, out io.Writer) error {
	if err := w.Namespace(ctx); err != nil {
		return err
	}
	start, total := time.Now(), o.plan.Services
	progress := func(done int) {
		if !o.quiet && done != total && done%max(total/10, 1000) == 0 {
			fmt.Fprintf(out, "  %d of %d Services after %.1f s\n", done, total, time.Since(start).Seconds())
		}
	}
	if err := w.Create(ctx, 0, total, progress); err != nil {
		return err
	}
	fmt.Fprintf(out, "wrote %s, %d endpoints each\n", speed(total, "Services", time.Since(start)), o.plan.Endpoints)
	return nil
}

// speed tells how many of something took how long.
func speed(n int, what string, took time.Duration) string {
	return fmt.Sprintf("%d %s in %.1f s (%.0f/s)", n, what, took.Seconds(), float64(n)/max(took.Seconds(), 1e-6))
}
