// SPDX-License-Identifier: Apache-2.0

// Package egress is how pods reach the outside: with the node's address, where
// nobody there knows the way to theirs. Which destinations see a pod's own address
// says a list of CIDRs, in flags or in the file of ip-masq-agent, which is read as
// that reads it.
package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"
)

// Config says what is masqueraded of what pods send.
type Config struct {
	// NonMasquerade are the destinations, of either family, that see a pod's own
	// address. They have the bits of the host cleared.
	NonMasquerade []netip.Prefix
	// MasqLinkLocal and MasqLinkLocalIPv6 masquerade also what is for link-local
	// addresses.
	MasqLinkLocal, MasqLinkLocalIPv6 bool
	// Resync is how often the file is read without a sign of a change.
	Resync time.Duration
}

// The defaults of ip-masq-agent.
const (
	defaultLimit  = 64
	defaultResync = time.Minute
)

// Defaults returns what holds where nobody says anything, as in ip-masq-agent:
// private addresses of IPv4 (RFC 1918) see pods' own.
func Defaults() Config {
	return Config{
		NonMasquerade: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
		},
		Resync: defaultResync,
	}
}

// file is the file of ip-masq-agent.
type file struct {
	NonMasqueradeCIDRs *[]string `json:"nonMasqueradeCIDRs"`
	CIDRLimit          *int      `json:"cidrLimit"`
	MasqLinkLocal      *bool     `json:"masqLinkLocal"`
	MasqLinkLocalIPv6  *bool     `json:"masqLinkLocalIPv6"`
	ResyncInterval     *string   `json:"resyncInterval"`
}

// Parse reads the file of ip-masq-agent, in YAML or JSON. What it does not say is
// as defaults have it. A file of which anything is wrong is refused as a whole.
func Parse(text []byte, defaults Config) (Config, error) {
	var in file
	if err := yaml.Unmarshal(text, &in); err != nil {
		return Config{}, fmt.Errorf("parse: %w", err)
	}
	out, limit := defaults, defaultLimit
	set(&limit, in.CIDRLimit)
	set(&out.MasqLinkLocal, in.MasqLinkLocal)
	set(&out.MasqLinkLocalIPv6, in.MasqLinkLocalIPv6)
	if in.ResyncInterval != nil {
		d, err := time.ParseDuration(*in.ResyncInterval)
		if err != nil || d <= 0 {
			return Config{}, fmt.Errorf("resyncInterval %q is not a time above 0, like 60s", *in.ResyncInterval)
		}
		out.Resync = d
	}
	if in.NonMasqueradeCIDRs == nil {
		return out, nil
	}
	if n := len(*in.NonMasqueradeCIDRs); n > limit {
		return Config{}, fmt.Errorf("nonMasqueradeCIDRs has %d CIDRs, more than the %d of cidrLimit", n, limit)
	}
	var err error
	out.NonMasquerade, err = ParseCIDRs(*in.NonMasqueradeCIDRs)
	if err != nil {
		return Config{}, fmt.Errorf("nonMasqueradeCIDRs: %w", err)
	}
	return out, nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// ParseCIDRs reads CIDRs of either family. An address with bits beyond the prefix
// is refused: it is more likely a slip than meant.
func ParseCIDRs(list []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(list))
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s is not a CIDR, like 192.0.2.0/24", strconv.Quote(text))
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("%s is an IPv4-mapped CIDR, write it as one of IPv4", text)
		case p != p.Masked():
			return nil, fmt.Errorf("%s has bits beyond its prefix, write %s", text, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// ErrUnknown is why nothing is masqueraded anew: there is a file that has never
// made sense.
var ErrUnknown = errors.New("the file that says what to masquerade has never made sense")
