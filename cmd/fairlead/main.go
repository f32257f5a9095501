// SPDX-License-Identifier: Apache-2.0

// Command fairlead is a node agent that replaces kube-proxy.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := newCommand().ExecuteContext(ctx)
	stop()
	klog.Flush()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fairlead:", err)
		os.Exit(1)
	}
}

// newCommand returns the command line.
func newCommand() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "fairlead",
		Short: "Program the kernel so that Services reach their endpoints",
		Long: `Fairlead is a node agent that replaces kube-proxy. It watches Services and
EndpointSlices, in an API server or in a directory of manifests, and programs
this node's kernel so that connections to a Service reach one of its endpoints.

It runs until it is told to stop, and leaves its rules in place when it stops;
"fairlead cleanup" removes them.`,
		Example: `  fairlead --kubeconfig /etc/kubernetes/kubeconfig --cluster-cidr 10.244.0.0/16
  fairlead --manifests /etc/fairlead/manifests`,
		Args:          noArguments,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildVersion(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.config()
			if err != nil {
				return err
			}
			return run(cmd.Context(), cfg)
		},
	}
	o.register(root.Flags())
	root.PersistentFlags().AddFlagSet(logFlags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(versionCommand(), cleanupCommand())
	return root
}
