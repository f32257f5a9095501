// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

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
			e := attrs(data)
			if n := e.get(unix.NFTA_EXPR_DATA).get(unix.NFTA_COUNTER_PACKETS); e.get(unix.NFTA_EXPR_NAME).text() == "counter" && len(n) == 8 {
				packets += binary.BigEndian.Uint64(n)
			}
		})
		return nil
	})
	return packets, k.reading(err)
}
