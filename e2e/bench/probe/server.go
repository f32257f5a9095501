// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"fairlead/e2e/lab"
)

// Serve takes TCP connections at an address of a namespace and closes them, until
// the listener that it returns is closed.
func Serve(ctx context.Context, ns *lab.NS, at netip.AddrPort) (net.Listener, error) {
	l, err := ns.Listen(ctx, "tcp4", at.String())
	if err != nil {
		return nil, fmt.Errorf("serve in %s: %w", ns.Label, err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close() // the client has reset it
		}
	}()
	return l, nil
}
