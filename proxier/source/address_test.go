// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseUnicast(t *testing.T) {
	for _, tt := range []struct {
		name   string
		in     string
		want   string
		reason string
	}{
		{name: "IPv4", in: "10.0.0.1", want: "10.0.0.1"},
		{name: "IPv6 in its canonical form", in: "2001:DB8:0::1", want: "2001:db8::1"},
		{name: "leading zeros are decimal, not octal", in: "010.000.00.011", want: "10.0.0.11"},
		{name: "leading zeros after an IPv6 prefix", in: "64:ff9b::010.0.0.01", want: "64:ff9b::a00:1"},
		{name: "class E is unicast", in: "240.0.0.1", want: "240.0.0.1"},
		{name: "unique local is unicast", in: "fd00::1", want: "fd00::1"},
		{name: "empty", in: "", reason: reasonNoAddress},
		{name: "None", in: "None", reason: reasonNoAddress},
		{name: "host name", in: "example.com", reason: reasonNoAddress},
		{name: "octet too large", in: "10.0.0.256", reason: reasonNoAddress},
		{name: "too few octets", in: "10.0.1", reason: reasonNoAddress},
		{name: "empty octet", in: "10..0.1", reason: reasonNoAddress},
		{name: "hexadecimal octet", in: "0x0a.0.0.1", reason: reasonNoAddress},
		{name: "prefix", in: "10.0.0.1/32", reason: reasonNoAddress},
		{name: "with port", in: "10.0.0.1:80", reason: reasonNoAddress},
		{name: "with space", in: " 10.0.0.1", reason: reasonNoAddress},
		{name: "with newline", in: "10.0.0.1\nCOMMIT", reason: reasonNoAddress},
		{name: "endless zeros", in: strings.Repeat("0", 1<<20) + "1.2.3.4", reason: reasonNoAddress},
		{name: "zone", in: "2001:db8::1%eth0", reason: reasonZone},
		{name: "IPv4-mapped", in: "::ffff:1.2.3.4", reason: reasonMapped},
		{name: "IPv4-mapped with leading zeros", in: "::ffff:01.2.3.4", reason: reasonMapped},
		{name: "IPv4-mapped in hexadecimal", in: "::ffff:7f00:1", reason: reasonMapped},
		{name: "IPv4-compatible", in: "::1.2.3.4", reason: reasonCompatible},
		{name: "IPv4-compatible in hexadecimal", in: "::1:0", reason: reasonCompatible},
		{name: "unspecified", in: "0.0.0.0", reason: reasonUnspecified},
		{name: "unspecified IPv6", in: "::", reason: reasonUnspecified},
		{name: "loopback", in: "127.0.0.1", reason: reasonLoopback},
		{name: "the end of loopback", in: "127.255.255.255", reason: reasonLoopback},
		{name: "loopback with leading zeros", in: "0127.0.0.1", reason: reasonLoopback},
		{name: "loopback IPv6", in: "::1", reason: reasonLoopback},
		{name: "cloud metadata", in: "169.254.169.254", reason: reasonLinkLocal},
		{name: "link-local IPv6", in: "fe80::1", reason: reasonLinkLocal},
		{name: "the end of link-local IPv6", in: "febf::1", reason: reasonLinkLocal},
		{name: "multicast", in: "224.0.0.1", reason: reasonMulticast},
		{name: "the end of multicast", in: "239.255.255.255", reason: reasonMulticast},
		{name: "multicast IPv6", in: "ff02::1", reason: reasonMulticast},
		{name: "broadcast", in: "255.255.255.255", reason: reasonBroadcast},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, reason := parseUnicast(tt.in)
			if reason != tt.reason {
				t.Fatalf("parseUnicast(%.80q) reason = %q, want %q", tt.in, reason, tt.reason)
			}
			want := netip.Addr{}
			if tt.want != "" {
				want = netip.MustParseAddr(tt.want)
			}
			if got != want {
				t.Errorf("parseUnicast(%q) = %v, want %v", tt.in, got, want)
			}
		})
	}
}

// comparePrefix lets cmp compare values that hold prefixes.
var comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func prefixes(cidrs ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, cidr := range cidrs {
		out = append(out, netip.MustParsePrefix(cidr))
	}
	return out
}

func TestParsePrefix(t *testing.T) {
	for _, tt := range []struct {
		name   string
		in     string
		want   string
		reason string
	}{
		{name: "IPv4", in: "10.0.0.0/8", want: "10.0.0.0/8"},
		{name: "IPv6", in: "2001:DB8::/32", want: "2001:db8::/32"},
		{name: "the bits of the host are cleared", in: "10.1.2.3/8", want: "10.0.0.0/8"},
		{name: "the bits of an IPv6 host are cleared", in: "2001:db8::1/64", want: "2001:db8::/64"},
		{name: "one address", in: "192.0.2.1/32", want: "192.0.2.1/32"},
		{name: "every address", in: "1.2.3.4/0", want: "0.0.0.0/0"},
		{name: "every IPv6 address", in: "::/0", want: "::/0"},
		{name: "leading zeros", in: "010.0.0.0/08", want: "10.0.0.0/8"},
		{name: "loopback is a range too", in: "127.0.0.0/8", want: "127.0.0.0/8"},
		{name: "empty", in: "", reason: reasonNoPrefix},
		{name: "no length", in: "10.0.0.0", reason: reasonNoPrefix},
		{name: "empty length", in: "10.0.0.0/", reason: reasonNoPrefix},
		{name: "empty address", in: "/8", reason: reasonNoPrefix},
		{name: "too long", in: "10.0.0.0/33", reason: reasonNoPrefix},
		{name: "too long for IPv6", in: "::/129", reason: reasonNoPrefix},
		{name: "far too long", in: "10.0.0.0/4294967304", reason: reasonNoPrefix},
		{name: "negative", in: "10.0.0.0/-1", reason: reasonNoPrefix},
		{name: "signed", in: "10.0.0.0/+8", reason: reasonNoPrefix},
		{name: "netmask", in: "10.0.0.0/255.0.0.0", reason: reasonNoPrefix},
		{name: "two lengths", in: "10.0.0.0/8/8", reason: reasonNoPrefix},
		{name: "newline", in: "10.0.0.0/8\nCOMMIT", reason: reasonNoPrefix},
		{name: "endless zeros", in: "10.0.0.0/" + strings.Repeat("0", 1<<20) + "8", reason: reasonNoPrefix},
		{name: "zone", in: "fe80::%eth0/64", reason: reasonZone},
		{name: "IPv4-mapped", in: "::ffff:10.0.0.0/104", reason: reasonMapped},
		{name: "IPv4-compatible", in: "::10.0.0.0/104", reason: reasonCompatible},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, reason := parsePrefix(tt.in)
			if reason != tt.reason {
				t.Fatalf("parsePrefix(%.80q) reason = %q, want %q", tt.in, reason, tt.reason)
			}
			want := netip.Prefix{}
			if tt.want != "" {
				want = netip.MustParsePrefix(tt.want)
			}
			if got != want {
				t.Errorf("parsePrefix(%q) = %v, want %v", tt.in, got, want)
			}
		})
	}
}

func TestIsLabelValue(t *testing.T) {
	for in, want := range map[string]bool{
		"a": true, "europe-west1_b.C": true, "0": true, "A": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, "-a": false, "a-": false, ".a": false, "a_": false,
		"a b": false, "a\n": false, "a\x00": false, `a"`: false, "a/b": false, "ä": false,
	} {
		if got := isLabelValue(in); got != want {
			t.Errorf("isLabelValue(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		in               string
		label, subdomain bool
	}{
		{"a", true, true},
		{"web-1", true, true},
		{"0web", true, true},
		{"a.b", false, true},
		{strings.Repeat("a", 63), true, true},
		{strings.Repeat("a", 64), false, true},
		{strings.Repeat("a", 253), false, true},
		{strings.Repeat("a", 254), false, false},
		{"", false, false},
		{"-a", false, false},
		{"a-", false, false},
		{"a.-b", false, false},
		{"a..b", false, false},
		{".a", false, false},
		{"a.", false, false},
		{"A", false, false},
		{"a_b", false, false},
		{"a/b", false, false},
		{"a b", false, false},
		{"a\n", false, false},
		{"a\x00", false, false},
		{`a"`, false, false},
		{"ä", false, false},
	} {
		if got := isLabel(tt.in); got != tt.label {
			t.Errorf("isLabel(%q) = %v, want %v", tt.in, got, tt.label)
		}
		if got := isSubdomain(tt.in); got != tt.subdomain {
			t.Errorf("isSubdomain(%q) = %v, want %v", tt.in, got, tt.subdomain)
		}
	}
}
