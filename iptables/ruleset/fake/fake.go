// SPDX-License-Identifier: Apache-2.0

// Package fake is an iptables without a kernel, for tests: it understands the
// save and restore commands, keeps their rules in memory, and refuses what the
// kernel or the commands would refuse. It does not bring rules into their
// normal form: who writes what iptables-save would print otherwise sees a
// difference here, as on a real host.
package fake

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"fairlead/iptables/ruleset"
)

// Kernel implements ruleset.Exec for one family and variant. The zero value is
// a host without rules. It is safe for concurrent use.
type Kernel struct {
	// Refuse, where set, makes the kernel refuse rules of its choice.
	Refuse func(k ruleset.ChainKey, r ruleset.Rule) bool
	// Fault, where set, is asked before each restore.
	Fault func() Fault
	// Absent makes every command not found.
	Absent bool

	mu       sync.Mutex
	tables   map[ruleset.Table]*table
	restores []string
	saves    int
	lists    []string
}

// Fault is a failure to inject into a restore command.
type Fault int

// The faults. None of them is the fault of the input.
const (
	NoFault     Fault = iota
	FailBefore        // nothing is committed, and the command says so
	FailBetween       // the first table is committed, the others are not
	FailAfter         // all is committed, and the command fails all the same
	Busy              // the lock was not to be had
)

type table struct {
	policy map[string]string // by built-in chain
	chains map[string][]ruleset.Rule
}

// builtin are the chains that each table starts with.
func builtin(t ruleset.Table) []string {
	switch t {
	case "raw":
		return []string{"PREROUTING", "OUTPUT"}
	case ruleset.Mangle:
		return []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	case ruleset.NAT:
		return []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}
	case ruleset.Filter, "security":
		return []string{"INPUT", "FORWARD", "OUTPUT"}
	}
	return nil
}

func newTable(t ruleset.Table) *table {
	tab := &table{policy: map[string]string{}, chains: map[string][]ruleset.Rule{}}
	for _, c := range builtin(t) {
		tab.policy[c] = "ACCEPT"
		tab.chains[c] = nil
	}
	return tab
}

func (t *table) clone() *table {
	return &table{policy: maps.Clone(t.policy), chains: maps.Clone(t.chains)}
}

// Run implements ruleset.Exec.
func (k *Kernel) Run(ctx context.Context, c ruleset.Command) error {
	var input []byte
	if strings.HasSuffix(c.Name, "-restore") && c.Stdin != nil {
		var err error // nothing is done before all has been read, which may take
		if input, err = io.ReadAll(c.Stdin); err != nil {
			return failure(c, 1, "COMMIT expected at the end")
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.Absent {
		return fmt.Errorf("run %s: %w", c.Name, exec.ErrNotFound)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	switch {
	case slices.Contains(c.Args, "--version"):
		fmt.Fprintln(c.Stdout, "iptables v1.8.9 (nf_tables)")
		return nil
	case strings.HasSuffix(c.Name, "-save"):
		k.saves++
		_, err := io.WriteString(c.Stdout, k.dump().String())
		return err
	case strings.HasSuffix(c.Name, "-restore"):
		return k.restore(c, input)
	case slices.Contains(c.Args, "-S"):
		return k.list(c)
	}
	return fmt.Errorf("fake: no command %s", c.Name)
}

// list prints one chain, as iptables -S does.
func (k *Kernel) list(c ruleset.Command) error {
	table, name := c.Args[slices.Index(c.Args, "-t")+1], c.Args[slices.Index(c.Args, "-S")+1]
	k.lists = append(k.lists, table+"/"+name)
	for _, t := range k.dump() {
		for _, ch := range t.Chains {
			if string(t.Name) != table || ch.Name != name {
				continue
			}
			line := "-N " + name
			if ch.Policy != "-" {
				line = "-P " + name + " " + ch.Policy
			}
			for _, r := range ch.Rules {
				line += strings.TrimRight("\n-A "+name+" "+string(r), " ")
			}
			_, err := io.WriteString(c.Stdout, line+"\n")
			return err
		}
	}
	return failure(c, 1, "No chain/target/match by that name.")
}

// Lists returns the chains that were listed by themselves, as "table/chain".
func (k *Kernel) Lists() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.lists)
}

func (k *Kernel) restore(c ruleset.Command, input []byte) error {
	k.restores = append(k.restores, string(input))
	if !slices.Contains(c.Args, "--noflush") {
		k.tables = nil
	}
	fault := NoFault
	if k.Fault != nil {
		fault = k.Fault()
	}
	switch fault {
	case FailBefore:
		return failure(c, 1, "injected failure")
	case Busy:
		return failure(c, 4, "another app is currently holding the xtables lock")
	}
	sections, err := splitTables(string(input))
	if err != nil {
		return failure(c, 2, err.Error())
	}
	for i, s := range sections {
		if i == 1 && fault == FailBetween {
			return failure(c, 1, "injected failure")
		}
		if err := k.commit(s); err != nil {
			return failure(c, 2, err.Error())
		}
	}
	if fault == FailAfter || fault == FailBetween {
		return failure(c, 1, "injected failure")
	}
	return nil
}

func failure(c ruleset.Command, code int, msg string) error {
	return &ruleset.CommandError{Name: c.Name, ExitCode: code, Stderr: msg}
}

// Save returns the rules as iptables-save prints them.
func (k *Kernel) Save() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dump().String()
}

// Restores returns the inputs of all restore commands so far.
func (k *Kernel) Restores() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.restores)
}

// Saves returns how often the rules were read by a command.
func (k *Kernel) Saves() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.saves
}

// Edit commits text in the restore format as somebody else would.
func (k *Kernel) Edit(text string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	sections, err := splitTables(text)
	if err != nil {
		return err
	}
	for _, s := range sections {
		if err := k.commit(s); err != nil {
			return err
		}
	}
	return nil
}

// Flush empties a table and deletes its chains, as iptables -F and -X do.
func (k *Kernel) Flush(t ruleset.Table) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.tables, t)
}

func (k *Kernel) dump() ruleset.Dump {
	var d ruleset.Dump
	for _, name := range slices.Sorted(maps.Keys(k.tables)) {
		t := k.tables[name]
		dt := ruleset.DumpTable{Name: name}
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(t.chains)), func(c string) bool { return t.policy[c] != "" })
		for _, c := range slices.Concat(builtin(name), names) {
			policy := t.policy[c]
			if policy == "" {
				policy = "-"
			}
			dt.Chains = append(dt.Chains, ruleset.DumpChain{Name: c, Policy: policy, Rules: t.chains[c]})
		}
		d = append(d, dt)
	}
	return d
}
