// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"fairlead/ipvs/servers"
)

var (
	web = servers.Key{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: servers.TCP, Port: 80}
	dns = servers.Key{Addr: netip.MustParseAddr("10.96.0.2"), Protocol: servers.TCP, Port: 53}
	one = netip.MustParseAddrPort("10.244.0.1:80")
	two = netip.MustParseAddrPort("10.244.0.2:80")
)

// status is a destination with connections.
func status(addr netip.AddrPort, active, inactive int) servers.Status {
	return servers.Status{Destination: servers.Destination{Addr: addr}, ActiveConns: active, InactiveConns: inactive}
}

// listed is the virtual server web with destinations.
func listed(all ...servers.Status) servers.Listed {
	return servers.Listed{Server: servers.Server{Key: web}, Destinations: all}
}

func TestDone(t *testing.T) {
	start := time.Unix(0, 0)
	const period = time.Minute
	type addrs = []netip.AddrPort
	for _, tt := range []struct {
		name   string
		before func(d *Drains)
		after  time.Duration
		listed servers.Listed
		want   addrs
		// left are those of web that drain, as long as nobody says Stop.
		left addrs
	}{
		{"no connections", nil, 0, listed(status(two, 0, 0), status(one, 0, 0)), addrs{one, two}, addrs{one, two}},
		{"an active connection", nil, period - 1, listed(status(one, 1, 0), status(two, 0, 0)), addrs{two}, addrs{one, two}},
		{"a connection that closes", nil, period - 1, listed(status(one, 0, 1), status(two, 0, 0)), addrs{two}, addrs{one, two}},
		{"the time has passed", nil, period, listed(status(one, 1, 0), status(two, 0, 1)), addrs{one, two}, addrs{one, two}},
		{"one does not drain", func(d *Drains) { d.Stop(web, one) }, 0, listed(status(one, 0, 0), status(two, 0, 0)), addrs{two}, addrs{two}},
		{"one has gone by itself", nil, 0, listed(status(two, 1, 0)), nil, addrs{two}},
		{"all have gone by themselves", nil, 0, listed(), nil, nil},
		{"the virtual server has gone", func(d *Drains) { d.Forget(web) }, 0, listed(status(one, 0, 0)), nil, nil},
		{"it starts to drain once more, which gives it no more time",
			func(d *Drains) { d.Start(web, one, start.Add(period/2)) }, period, listed(status(one, 1, 0), status(two, 1, 0)), addrs{one, two}, addrs{one, two}},
		{"it was wanted in between, which does",
			func(d *Drains) { d.Stop(web, one); d.Start(web, one, start.Add(period/2)) }, period, listed(status(one, 1, 0), status(two, 1, 0)), addrs{two}, addrs{one, two}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := New(period)
			d.Start(web, one, start)
			d.Start(web, two, start)
			d.Start(dns, one, start)
			if tt.before != nil {
				tt.before(d)
			}
			if got := d.Done(tt.listed, start.Add(tt.after)); !slices.Equal(got, tt.want) {
				t.Errorf("Done() = %v, want %v", got, tt.want)
			}
			var left addrs
			for _, a := range []netip.AddrPort{one, two} {
				if d.Draining(web, a) {
					left = append(left, a)
				}
			}
			keys := []servers.Key{web, dns}
			if tt.left == nil {
				keys = keys[1:]
			}
			if !slices.Equal(left, tt.left) || d.Len() != len(tt.left)+1 || !slices.Equal(d.Servers(), keys) {
				t.Errorf("%v drain, %d, of %v, want %v of %v", left, d.Len(), d.Servers(), tt.left, keys)
			}
		})
	}
}

func TestWorth(t *testing.T) {
	for p, want := range map[servers.Protocol]bool{servers.TCP: true, servers.SCTP: true, servers.UDP: false} {
		if Worth(p) != want {
			t.Errorf("Worth(%s) = %t, want %t", p, !want, want)
		}
	}
}
