// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"fmt"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// counterExpr is the name of the expression that counts.
const counterExpr = "counter"

// Counted returns how many packets the rules of a chain have counted, none where there is
// no such chain. It waits for a transaction of the same Kernel.
func (k *Kernel) Counted(chain string) (packets uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	of := func(b *buffer) {
		b.text(unix.NFTA_RULE_TABLE, k.name)
		b.text(unix.NFTA_RULE_CHAIN, chain)
	}
	err = k.list(unix.NFT_MSG_GETRULE, of, func(a attrs) error {
		if a.get(unix.NFTA_RULE_TABLE).text() != k.name || a.get(unix.NFTA_RULE_CHAIN).text() != chain {
			return nil
		}
		a.get(unix.NFTA_RULE_EXPRESSIONS).each(func(_ uint16, data []byte) {
			n, _ := countIn(data)
			packets += n
		})
		return nil
	})
	return packets, k.reading(err)
}

// Counts calls yield for each element of a set that counts, with the packets and bytes that
// have been found by it. It waits for a transaction of the same Kernel. A dump that was
// disturbed is an error of unix.EINTR, and to be repeated.
func (k *Kernel) Counts(s *table.Set, yield func(e table.Element, packets, bytes uint64)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.dumpElements(s, func(data []byte) {
		e, _ := elementOf(s, data)
		packets, bytes := countIn(attrs(data).get(unix.NFTA_SET_ELEM_EXPR))
		yield(e, packets, bytes)
	})
	if err != nil {
		return fmt.Errorf("read what elements of %s have counted: %w", s.Name, err)
	}
	return nil
}

// countIn reads an expression that counts; another one has counted nothing.
func countIn(expr attrs) (packets, bytes uint64) {
	if expr.get(unix.NFTA_EXPR_NAME).text() != counterExpr {
		return 0, 0
	}
	data := expr.get(unix.NFTA_EXPR_DATA)
	return data.get(unix.NFTA_COUNTER_PACKETS).long(), data.get(unix.NFTA_COUNTER_BYTES).long()
}
