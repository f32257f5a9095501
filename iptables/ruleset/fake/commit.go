// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"fmt"
	"slices"
	"strings"

	"fairlead/iptables/ruleset"
)

// tableInput is one table's part of a restore input.
type tableInput struct {
	name  ruleset.Table
	lines []string
}

// splitTables splits a restore input at its table and COMMIT lines.
func splitTables(text string) ([]tableInput, error) {
	var out []tableInput
	open := false
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*' && !open:
			out = append(out, tableInput{name: ruleset.Table(line[1:])})
			open = true
		case line == "COMMIT" && open:
			open = false
		case open:
			last := &out[len(out)-1]
			last.lines = append(last.lines, line)
		default:
			return nil, fmt.Errorf("line %d failed: %q", i+1, line)
		}
	}
	if open {
		return nil, fmt.Errorf("COMMIT expected at the end")
	}
	return out, nil
}

// commit applies one table's lines, all or none.
func (k *Kernel) commit(in tableInput) error {
	if builtin(in.name) == nil {
		return fmt.Errorf("can't initialize table %q: Table does not exist", in.name)
	}
	old := k.tables[in.name]
	if old == nil {
		old = newTable(in.name)
	}
	c := &committer{kernel: k, table: in.name, tab: old.clone()}
	for _, line := range in.lines {
		if err := c.line(line); err != nil {
			return fmt.Errorf("line %q failed: %w", line, err)
		}
	}
	if k.tables == nil {
		k.tables = map[ruleset.Table]*table{}
	}
	k.tables[in.name] = c.tab
	return nil
}

// committer is the work on one table's copy.
type committer struct {
	kernel *Kernel
	table  ruleset.Table
	tab    *table
}

func (c *committer) line(line string) error {
	if decl, ok := strings.CutPrefix(line, ":"); ok {
		return c.declare(strings.Fields(decl))
	}
	op, rest, _ := strings.Cut(line, " ")
	chain, text, _ := strings.Cut(rest, " ")
	rule := ruleset.Rule(text)
	if op == "-N" {
		return c.create(chain)
	}
	if _, ok := c.tab.chains[chain]; !ok {
		return fmt.Errorf("no chain %q", chain)
	}
	switch op {
	case "-A":
		return c.insert(chain, len(c.tab.chains[chain]), rule)
	case "-I":
		return c.insert(chain, 0, rule)
	case "-D":
		return c.delete(chain, rule)
	case "-F":
		c.tab.chains[chain] = nil
		return nil
	case "-X":
		return c.drop(chain)
	}
	return fmt.Errorf("unknown option %q", op)
}

// declare makes a chain, or flushes one that exists.
func (c *committer) declare(fields []string) error {
	if len(fields) < 2 {
		return fmt.Errorf("bad chain declaration")
	}
	name, policy := fields[0], fields[1]
	if len(name) > ruleset.MaxChainName {
		return fmt.Errorf("chain name %q too long (must be under %d chars)", name, ruleset.MaxChainName+1)
	}
	if _, isBuiltin := c.tab.policy[name]; isBuiltin {
		c.tab.policy[name] = policy
	}
	c.tab.chains[name] = nil
	return nil
}

// create makes a chain that must not be there yet.
func (c *committer) create(name string) error {
	if _, exists := c.tab.chains[name]; exists {
		return fmt.Errorf("chain %q already exists", name)
	}
	return c.declare([]string{name, "-"})
}

func (c *committer) insert(chain string, at int, r ruleset.Rule) error {
	if err := c.check(chain, r); err != nil {
		return err
	}
	c.tab.chains[chain] = slices.Insert(slices.Clone(c.tab.chains[chain]), at, r)
	return nil
}

// check refuses what the kernel would refuse.
func (c *committer) check(chain string, r ruleset.Rule) error {
	if c.kernel.Refuse != nil && c.kernel.Refuse(ruleset.ChainKey{Table: c.table, Name: chain}, r) {
		return fmt.Errorf("RULE_APPEND failed (Invalid argument): rule in chain %s", chain)
	}
	if strings.ContainsAny(string(r), "\n\x00") {
		return fmt.Errorf("control character in rule")
	}
	target := r.Target()
	if target == "" || slices.Contains(extensions(), target) {
		return nil
	}
	if _, ok := c.tab.chains[target]; !ok {
		return fmt.Errorf("chain %q does not exist", target)
	}
	if _, isBuiltin := c.tab.policy[target]; isBuiltin {
		return fmt.Errorf("jump to built-in chain %q", target)
	}
	return nil
}

// extensions are targets that are not chains.
func extensions() []string {
	return []string{
		"ACCEPT", "DROP", "RETURN", "QUEUE", "REJECT", "LOG", "MARK", "CONNMARK",
		"DNAT", "SNAT", "MASQUERADE", "REDIRECT", "TCPMSS", "CT", "NOTRACK", "SET",
	}
}

func (c *committer) delete(chain string, r ruleset.Rule) error {
	i := slices.Index(c.tab.chains[chain], r)
	if i < 0 {
		return fmt.Errorf("bad rule (does a matching rule exist in that chain?)")
	}
	c.tab.chains[chain] = slices.Delete(slices.Clone(c.tab.chains[chain]), i, i+1)
	return nil
}

func (c *committer) drop(chain string) error {
	if _, isBuiltin := c.tab.policy[chain]; isBuiltin {
		return fmt.Errorf("chain %q is built in", chain)
	}
	if len(c.tab.chains[chain]) > 0 {
		return fmt.Errorf("chain %q: Directory not empty", chain)
	}
	for from, rules := range c.tab.chains {
		for _, r := range rules {
			if r.Target() == chain {
				return fmt.Errorf("chain %q: Device or resource busy, referenced by %s", chain, from)
			}
		}
	}
	delete(c.tab.chains, chain)
	return nil
}
