// SPDX-License-Identifier: Apache-2.0

// Command fairlead is a node agent that replaces kube-proxy.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"fairlead/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := newCommand().ExecuteContext(ctx)
	told := ctx.Err() != nil // to stop
	stop()
	klog.Flush()
	if errors.Is(err, errRestart) {
		if told {
			return
		}
		err = restart() // returns only if it fails
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fairlead:", err)
		os.Exit(1)
	}
}

// newCommand returns the command line.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "fairlead",
		Short: "Program the kernel so that Services reach their endpoints",
		Long: `Fairlead is a node agent that replaces kube-proxy. It watches Services and
EndpointSlices, in an API server or in a directory of manifests, and programs
this node's kernel so that connections to a Service reach one of its endpoints.

It runs until it is told to stop, and leaves its rules in place when it stops;
"fairlead cleanup" removes them.`,
		Example: `  fairlead --config /var/lib/kube-proxy/config.conf --hostname-override $NODE_NAME
  fairlead --kubeconfig /etc/kubernetes/kubeconfig --cluster-cidr 10.244.0.0/16
  fairlead --manifests /etc/fairlead/manifests`,
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildVersion(),
	}
	line := config.Register(root.Flags())
	root.RunE = func(cmd *cobra.Command, _ []string) error { return start(cmd.Context(), line) }
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(versionCommand(), cleanupCommand())
	return root
}

// start does what the command line asks for.
func start(ctx context.Context, line *config.CommandLine) error {
	s, warnings, err := line.Load()
	if err != nil {
		return err
	}
	if s.WriteTo != "" { // as with kube-proxy, whether it would work here or not
		return s.Write(s.WriteTo)
	}
	cfg, err := check(s)
	if err != nil {
		return err
	}
	if err := setLogging(s); err != nil {
		return err
	}
	for _, w := range warnings {
		klog.FromContext(ctx).Info("Warning: " + w)
	}
	switch {
	case s.Cleanup:
		return cleanup(ctx, removal{services: true, nat: true, portmap: true, excluded: cfg.excludeCIDRs})
	case s.InitOnly:
		return initOnly(ctx, cfg)
	}
	return run(ctx, cfg, line)
}
