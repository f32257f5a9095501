// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var compare = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// many returns n different CIDRs of IPv4.
func many(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("11.%d.%d.0/24", i/256, i%256))
	}
	return out
}

func TestParse(t *testing.T) {
	private := Defaults().NonMasquerade
	list := func(cidrs []string) string { return `["` + strings.Join(cidrs, `","`) + `"]` }
	for _, tt := range []struct {
		name, text string
		want       Config
		err        string
	}{
		{"empty", "", Config{NonMasquerade: private, Resync: time.Minute}, ""},
		{
			"everything, in YAML",
			"nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - fd00::/8\ncidrLimit: 2\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true\nresyncInterval: 5s\n",
			Config{NonMasquerade: prefixes("10.0.0.0/8", "fd00::/8"), MasqLinkLocal: true, MasqLinkLocalIPv6: true, Resync: 5 * time.Second}, "",
		},
		{
			"in JSON", `{"nonMasqueradeCIDRs": ["192.0.2.0/24"], "resyncInterval": "1m30s"}`,
			Config{NonMasquerade: prefixes("192.0.2.0/24"), Resync: 90 * time.Second}, "",
		},
		{"no CIDRs", "nonMasqueradeCIDRs: []", Config{NonMasquerade: []netip.Prefix{}, Resync: time.Minute}, ""},
		{"what is not said is as before", "masqLinkLocal: true", Config{NonMasquerade: private, MasqLinkLocal: true, Resync: time.Minute}, ""},
		{"fields of others", "somethingNew: 1", Config{NonMasquerade: private, Resync: time.Minute}, ""},
		{"64 CIDRs", "nonMasqueradeCIDRs: " + list(many(64)), Config{NonMasquerade: prefixes(many(64)...), Resync: time.Minute}, ""},
		{"65 CIDRs", "nonMasqueradeCIDRs: " + list(many(65)), Config{}, "has 65 CIDRs, more than the 64 of cidrLimit"},
		{
			"a higher limit", "cidrLimit: 65\nnonMasqueradeCIDRs: " + list(many(65)),
			Config{NonMasquerade: prefixes(many(65)...), Resync: time.Minute}, "",
		},
		{"unaligned", "nonMasqueradeCIDRs: [10.0.0.0/8, 192.0.2.1/24]", Config{}, "192.0.2.1/24 has bits beyond its prefix, write 192.0.2.0/24"},
		{"an address", "nonMasqueradeCIDRs: [192.0.2.1]", Config{}, `"192.0.2.1" is not a CIDR`},
		{"hostile", `nonMasqueradeCIDRs: ["0.0.0.0/0 -j ACCEPT\nCOMMIT"]`, Config{}, `"0.0.0.0/0 -j ACCEPT\nCOMMIT" is not a CIDR`},
		{"mapped", `nonMasqueradeCIDRs: ["::ffff:10.0.0.0/104"]`, Config{}, "is an IPv4-mapped CIDR"},
		{"no YAML", "nonMasqueradeCIDRs: [", Config{}, "parse: "},
		{"a number for a time", "resyncInterval: 60", Config{}, `resyncInterval "60" is not a time`},
		{"no time", "resyncInterval: soon", Config{}, `resyncInterval "soon" is not a time`},
		{"a time of 0", "resyncInterval: 0s", Config{}, `resyncInterval "0s" is not a time above 0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.text), Defaults())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q, want one line with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compare); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
