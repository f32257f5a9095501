// SPDX-License-Identifier: Apache-2.0

// Package watch finds out which chains others may have changed in the kernel,
// at a cost that does not depend on how many rules there are.
//
// With the nft variant the kernel tells of each commit (NFT). With the legacy
// variant it can only be asked how many entries a table has (Legacy), and once
// in a while everything has to be read, whatever the answer.
package watch

import (
	"fairlead/iptables/ruleset"
)

// Config says what to watch.
type Config struct {
	IPv6 bool
	// Tables are those that the engine writes. What happens in others does not
	// matter.
	Tables []ruleset.Table
	// Owns tells which chains are ours. It is called with a lock held, and must
	// be quick.
	Owns func(ruleset.ChainKey) bool
}

// builtin tells whether a chain is one that iptables has in each table for the
// hooks (linux/netfilter.h).
func builtin(name string) bool {
	switch name {
	case "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING":
		return true
	}
	return false
}
