// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"slices"
	"strings"
)

// Save returns virtual servers as ipvsadm -Sn prints them, in order.
func Save(list []Listed) string {
	var b strings.Builder
	list = slices.Clone(list)
	slices.SortFunc(list, func(l, m Listed) int { return l.Key.Compare(m.Key) })
	for _, l := range list {
		b.WriteString("-A " + l.Server.String() + "\n")
		destinations := slices.Clone(l.Destinations)
		slices.SortFunc(destinations, func(d, e Status) int { return d.Addr.Compare(e.Addr) })
		for _, d := range destinations {
			b.WriteString("-a " + d.Line(l.Key) + "\n")
		}
	}
	return b.String()
}
