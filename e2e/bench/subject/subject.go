// SPDX-License-Identifier: Apache-2.0

// Package subject is what is measured: service proxies as processes on a node,
// and what the kernel and they themselves tell of them.
package subject

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"fairlead/e2e/lab"
)

// Subject is a program with flags.
type Subject struct {
	// Name is that of -subjects and of the tables' columns.
	Name string
	// Binary is the program.
	Binary string
	// Flags are those that make it this subject.
	Flags []string
	// HasFloor tells that all it does to the kernel it does by restore commands,
	// so that feeding these again is the least that it can take.
	HasFloor bool
	// eager are flags that let it sync at once after each change, and do little else.
	eager []string
	// common are the flags of its program for a node.
	common func(Node) []string
}

// Node is where and for what a subject runs.
type Node struct {
	*lab.Node
	Variant     lab.Variant
	Kubeconfig  string
	ClusterCIDR string
	// Tools is a directory that has the variant's commands under their plain
	// names; see lab.Variant.Link. It comes first in PATH.
	Tools string
	// Log receives what subjects print.
	Log string
}

// All returns the subjects that there are, of two programs.
func All(fairlead, kubeProxy string) []Subject {
	return []Subject{
		{Name: "fairlead", Binary: fairlead, HasFloor: true, common: fairleadFlags},
		{Name: "fairlead-compact", Binary: fairlead, HasFloor: true, common: fairleadFlags, Flags: []string{"--iptables-compact"}},
		{
			Name: "kube-proxy", Binary: kubeProxy, common: kubeProxyFlags, Flags: []string{"--proxy-mode=iptables"},
			// By default it waits out a second since the last sync, which a
			// measurement of many changes would see and few users do.
			eager: []string{"--iptables-min-sync-period=50ms"},
		},
	}
}

// IPVS returns the subjects that have an IPVS mode, in that.
func IPVS(fairlead, kubeProxy string) []Subject {
	mode := []string{"--proxy-mode=ipvs"}
	// A check of all that is there, which is due every half a minute, is no part of
	// what one change costs; by chance one more or less of them would be among a few.
	const unchecked = "--ipvs-sync-period=1h"
	return []Subject{
		{Name: "fairlead", Binary: fairlead, common: fairleadFlags, Flags: mode, eager: []string{unchecked}},
		{
			Name: "kube-proxy", Binary: kubeProxy, common: kubeProxyFlags, Flags: mode,
			eager: []string{"--ipvs-min-sync-period=50ms", unchecked},
		},
	}
}

// NFTables returns the subjects that have a nftables mode, in that.
func NFTables(fairlead, kubeProxy string) []Subject {
	mode := []string{"--proxy-mode=nftables"}
	return []Subject{
		{Name: "fairlead", Binary: fairlead, common: fairleadFlags, Flags: mode},
		{
			Name: "kube-proxy", Binary: kubeProxy, common: kubeProxyFlags, Flags: mode,
			eager: []string{"--iptables-min-sync-period=50ms"}, // which is for that mode, too
		},
	}
}

// Missing tells what keeps a subject from being measured: its program, or a
// flag that this build of it does not have.
func (s Subject) Missing(ctx context.Context) error {
	help, err := exec.CommandContext(ctx, s.Binary, "--help").CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s --help: %w", s.Binary, err)
	}
	for _, f := range s.Flags {
		name, _, _ := strings.Cut(f, "=")
		if !strings.Contains(string(help), name+" ") {
			return fmt.Errorf("this build of %s has no %s", filepath.Base(s.Binary), name)
		}
	}
	return nil
}

func fairleadFlags(n Node) []string {
	return []string{
		"-v=2", "--kubeconfig=" + n.Kubeconfig, "--hostname-override=" + n.Label,
		"--cluster-cidr=" + n.ClusterCIDR, "--iptables-variant=" + string(n.Variant),
		"--pod-masquerade=off", "--state-file=", // kube-proxy does not masquerade pods
	}
}

func kubeProxyFlags(n Node) []string {
	return []string{
		"-v=2", "--kubeconfig=" + n.Kubeconfig, "--hostname-override=" + n.Label,
		"--cluster-cidr=" + n.ClusterCIDR,
		// Limits of the machine's kernel are not for a measurement to change.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--oom-score-adj=0",
	}
}

// Options are how a subject is started.
type Options struct {
	// Eager adds the flags that let it sync at once after each change, and in IPVS mode
	// check the kernel for nothing else.
	Eager bool
	// Path, unless empty, comes before all else in PATH.
	Path string
}

// command is the subject for a node.
func (s Subject) command(ctx context.Context, n Node, o Options) *exec.Cmd {
	args := append(s.common(n), s.Flags...)
	if o.Eager {
		args = append(args, s.eager...)
	}
	path := n.Tools + ":" + os.Getenv("PATH")
	if o.Path != "" {
		path = o.Path + ":" + path
	}
	cmd := n.Command(ctx, s.Binary, args...)
	cmd.Env = append(os.Environ(), "PATH="+path)
	return cmd
}
