// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"fairlead/iptables/ruleset"
	"fairlead/nat/nft"
	"fairlead/proxier/model"
)

// lookout finds out who else on the node does something. It looks for the first time
// while the objects are being listed, and after that at most a hundredth of the time:
// with the legacy variant, to read one chain is to read all, which takes 0.3 s at 10,000
// Services.
type lookout struct {
	look  func(ctx context.Context) string
	first chan string // nil once it has been taken
	who   string
	// next is when to look again at the earliest.
	next time.Time
}

// lookAhead starts to look.
func lookAhead(ctx context.Context, look func(ctx context.Context) string) *lookout {
	l := &lookout{look: look, first: make(chan string, 1)}
	go func() { l.first <- look(ctx) }()
	return l
}

// ask returns who it is, empty for nobody, looking again if that is due.
func (l *lookout) ask(ctx context.Context, again bool) string {
	if l.first != nil {
		select {
		case l.who = <-l.first:
			l.first = nil
		case <-ctx.Done():
		}
		return l.who
	}
	if start := time.Now(); again && !start.Before(l.next) {
		l.who = l.look(ctx)
		l.next = time.Now().Add(100 * time.Since(start))
	}
	return l.who
}

// chainReader returns the rules of a chain of table nat in one family, whoever has made
// it, none where it is not there. What was read at start, or nf_tables does not have, is
// not asked of a command.
func (n *nodeKernel) chainReader(ctx context.Context, f model.Family) func(name string) []ruleset.Rule {
	return func(name string) []ruleset.Rule {
		k := ruleset.ChainKey{Table: ruleset.NAT, Name: name}
		if n.variant == ruleset.NFT { // and to wait for a reading of all is to wait for long
			if has, err := (ruleset.KernelNFTables{}).HasChain(f == model.IPv6, ruleset.NAT, name); err == nil && !has {
				return nil
			}
		} else if r := n.readings[f]; r != nil {
			if rules, ok := r.Chain(k); ok {
				return rules
			}
		}
		cmds, ok := n.commands[f]
		if !ok {
			return nil
		}
		return cmds.List(ctx, ruleset.SystemExec{}, k)
	}
}

// tables returns the names of the tables of nf_tables.
func tables(ctx context.Context) []string {
	names, err := nft.Tables()
	if err != nil {
		klog.FromContext(ctx).Info("Cannot see what others do by nf_tables", "reason", err.Error())
	}
	return names
}
