// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"context"
	"strconv"
)

// Counters reads the rules of a table, whoever has made them, and calls visit for each
// with the packets that it has matched. The text of a rule is valid during the call only.
func (c Commands) Counters(ctx context.Context, x Exec, t Table, visit func(k ChainKey, packets uint64, text []byte)) error {
	return c.save(ctx, x, countedRules(visit), "-c", "-t", string(t))
}

// countedRules is a visitor that is told counters, too.
type countedRules func(k ChainKey, packets uint64, text []byte)

func (countedRules) unreadable(t Table) error { return unreadable(t) }

func (countedRules) table(Table) {}

func (countedRules) chain(ChainKey, string) {}

func (countedRules) rule(ChainKey, []byte) {} // see counted

func (r countedRules) counted(k ChainKey, packets uint64, text []byte) { r(k, packets, text) }

// counter is a visitor that is told the packets that a rule has matched, in the place of
// the rule alone.
type counter interface {
	counted(k ChainKey, packets uint64, text []byte)
}

// packetsOf reads what iptables-save -c puts before a rule: [packets:bytes].
func packetsOf(line []byte) (uint64, error) {
	rest, _ := bytes.CutPrefix(line, []byte("["))
	n, _, _ := bytes.Cut(rest, []byte(":"))
	return strconv.ParseUint(string(n), 10, 64)
}
