// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"net/netip"
	"path/filepath"
	"strconv"
)

// byHand makes a node that has the least it takes to lead connections to an endpoint:
// one rule that translates their destination, and one that masquerades them. What is
// above that in a connect to a Service is what finding it costs. The node is to be removed
// even where there is an error, unless it is nil.
func (b *bench) byHand(ctx context.Context, service, endpoint netip.AddrPort) (*node, error) {
	n, err := b.newNode(ctx, b.node.Variant)
	if err != nil {
		return nil, err
	}
	iptables := filepath.Join(n.Tools, "iptables")
	for _, rule := range [][]string{
		{"OUTPUT", "-d", service.Addr().String(), "-p", "tcp", "--dport", strconv.Itoa(int(service.Port())), "-j", "DNAT", "--to-destination", endpoint.String()},
		{"POSTROUTING", "-d", endpoint.Addr().String(), "-j", "MASQUERADE", "--random-fully"},
	} {
		if _, err := n.Run(ctx, iptables, append([]string{"-w", "-t", "nat", "-A"}, rule...)...); err != nil {
			return n, err
		}
	}
	return n, nil
}
