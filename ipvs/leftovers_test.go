// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fairlead/ipvs/drain"
	"fairlead/ipvs/servers"
	"fairlead/nat/ipset"
	"fairlead/proxier/model"
)

// TestLeftovers: what IPVS mode has left goes at once where it has no connections, and
// with its addresses and the sets when these have ended or have had their time. No
// new ones come to it.
func TestLeftovers(t *testing.T) {
	for _, tt := range []struct {
		name string
		// grace is how long connections may go on.
		grace time.Duration
		// ends is set if they end by themselves.
		ends bool
		// later is when nothing is to be left.
		later time.Duration
	}{
		{"connections end", time.Hour, true, drain.Interval},
		{"time is over", time.Minute, false, time.Minute + drain.Interval},
		{"no time", 0, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(model.IPv4)
			a := h.agent(t, config(model.IPv4))
			web, dns := portName("shop", "web", "http", model.TCP), portName("kube-system", "kube-dns", "dns", model.UDP)
			a.sync(port(web, "10.96.0.10", 80, one, three), port(portName("shop", "idle", "http", model.TCP), "10.96.0.11", 80, one), port(dns, "10.96.0.53", 53, one))
			busy := servers.Key{Addr: netip.MustParseAddr("10.96.0.10"), Protocol: servers.TCP, Port: 80}
			h.servers.SetConns(busy, netip.MustParseAddrPort(three), 1, 0)
			if _, err := a.engine.Clean(t.Context()); err != nil {
				t.Fatal(err)
			}
			left := NewLeftovers(model.IPv4, Remains{
				Servers: &h.servers, Device: &h.device, GracePeriod: tt.grace,
				Sets: func(name string, typ ipset.Type) Set { return h.sets.Set(name, typ, false) },
			})
			got, err := left.Remove(h.now)
			if err != nil || !slices.Equal(got.UDP, []netip.AddrPort{netip.MustParseAddrPort("10.96.0.53:53")}) {
				t.Fatalf("Remove() = %+v, %v", got, err)
			}
			if tt.grace > 0 {
				want := "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.1.7:8080 -m -w 0\n"
				if save := h.servers.Save(); got.Left != 1 || save != want {
					t.Errorf("with a connection %d are left:\n%swant:\n%s", got.Left, save, want)
				}
				if addrs := h.device.Save(); addrs != "kube-ipvs0\n    10.96.0.10/32\n" || !strings.Contains(h.sets.Save(), "KUBE-IPVS-IPS") {
					t.Errorf("its address, or the sets, are not left: %s", addrs)
				}
				if tt.ends {
					h.servers.SetConns(busy, netip.MustParseAddrPort(three), 0, 0)
				}
				if got, err = left.Remove(h.now.Add(tt.later)); err != nil {
					t.Fatal(err)
				}
			}
			if rest := h.servers.Save() + h.sets.Save() + h.device.Save(); got.Left != 0 || rest != "kube-ipvs0\n" {
				t.Errorf("in the end %d are left:\n%s", got.Left, rest)
			}
		})
	}
}

// TestRemoveOwnSets: all sets stay that kube-proxy has, by the list of its source.
func TestRemoveOwnSets(t *testing.T) {
	for _, f := range model.Families() {
		h := newHost(f)
		a := h.agent(t, config(f))
		a.sync()
		if _, err := a.engine.Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := RemoveOwnSets(f, func(name string, typ ipset.Type) Set { return h.sets.Set(name, typ, f == model.IPv6) })
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(h.sets.Save()) {
			if name, ok := strings.CutPrefix(line, "create "); ok {
				got = append(got, strings.Replace(strings.Fields(name)[0], "KUBE-6-", "KUBE-", 1))
			}
		}
		slices.Sort(got)
		want := []string{
			"KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL", "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS",
			"KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-FW", "KUBE-LOAD-BALANCER-LOCAL", "KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-LOAD-BALANCER-SOURCE-IP",
			"KUBE-LOOP-BACK", "KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-NODE-PORT-LOCAL-UDP",
			"KUBE-NODE-PORT-SCTP-HASH", "KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-UDP",
		}
		if f == model.IPv6 { // of which names are cut
			for i, name := range want {
				want[i] = name[:min(len(name), maxSetName-len("6-"))]
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: left are %q, want %q", f, got, want)
		}
	}
}
