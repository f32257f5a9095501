// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
)

// Sets are the kernel's sets of client addresses, of one family. In the set of
// an endpoint's chain, which has the chain's name, are the clients that session
// affinity leads there.
type Sets interface {
	// List returns the names of all sets that can serve, whoever made them.
	List() ([]string, error)
	// Create makes a set. One that is there stays as it is.
	Create(name string) error
	// Flush removes all addresses from a set.
	Flush(name string) error
	// Destroy removes a set. It fails while a rule names the set, and for a
	// moment after.
	Destroy(name string) error
}

// ProbeSets tells why rules cannot use sets here: what the kernel or iptables
// lacks. It leaves nothing behind.
func ProbeSets(ctx context.Context, exec ruleset.Exec, cmds ruleset.Commands, sets Sets) (err error) {
	name := idiom.HashName(endpointPrefix, "probe of "+cmds.Restore)
	if err := sets.Create(name); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sets.Destroy(name)) }()
	return probe(ctx, exec, cmds, name, idiom.Spec{More: inSet(name)}.Jump(addToSet(name, time.Second)).Rule())
}

// ProbeCounter tells why rules cannot count with an nfacct object here, which
// must be there. It leaves nothing behind.
func ProbeCounter(ctx context.Context, exec ruleset.Exec, cmds ruleset.Commands, name string) error {
	return probe(ctx, exec, cmds, "PROBE", idiom.Spec{More: idiom.Counted(name)}.Jump("DROP").Rule())
}

// probe tells why a rule, in a chain of that name, cannot be written.
func probe(ctx context.Context, exec ruleset.Exec, cmds ruleset.Commands, chain string, r ruleset.Rule) error {
	// The legacy command reads the whole table, and nat is the large one.
	text := fmt.Sprintf("*filter\n:%s - [0:0]\n-A %[1]s %s\nCOMMIT\n", chain, r)
	return exec.Run(ctx, ruleset.Command{
		Name: cmds.Restore, Args: []string{"-w", "30", "--test", "-n"}, Stdin: strings.NewReader(text),
	})
}

// CleanSets removes all sets of this mode, that of endpoints that reach themselves
// only if loops is given. The rules that name them must have gone before.
func CleanSets(ctx context.Context, sets Sets, loops Loops) error {
	names, err := sets.List()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !isEndpointChain(n) })
	destroy := sets.Destroy
	if loops == nil {
		return destroyAll(ctx, names, destroy)
	}
	if _, found, err := loops.List(); err == nil && found {
		names = append(names, loops.Name())
		destroy = func(n string) error {
			if n == loops.Name() {
				return loops.Destroy()
			}
			return sets.Destroy(n)
		}
	}
	return destroyAll(ctx, names, destroy)
}

// destroyAll destroys sets, some of which rules of others may name.
func destroyAll(ctx context.Context, names []string, destroy func(string) error) error {
	const patience = 5 * time.Second // for the kernel to free the last rules
	var kept error
	for start, pause := time.Now(), time.Millisecond; ; pause *= 2 {
		kept = nil
		names = slices.DeleteFunc(names, func(n string) bool {
			err := destroy(n)
			kept = errors.Join(kept, err)
			return err == nil
		})
		if len(names) == 0 || time.Since(start) > patience {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	if kept != nil {
		klog.FromContext(ctx).Info("Sets stay: rules of others name them", "sets", names, "reason", kept.Error())
	}
	return nil
}

// isEndpointChain tells whether a name is that of an endpoint's chain.
func isEndpointChain(name string) bool {
	hash, ok := strings.CutPrefix(name, endpointPrefix)
	return ok && len(hash) == 16 && strings.Trim(hash, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}
