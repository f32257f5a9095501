// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"fairlead/iptables/ruleset"
)

// spec is a rule in parts. Its text has them in the order in which
// iptables-save prints them.
type spec struct {
	// src, dst and in are matches of source, destination and incoming
	// interface; "! " before one inverts it.
	src, dst, in string
	proto        string
	comment      string
	// more are further matches, followed by a space.
	more string
	// target is where the rule leads, with the options of that.
	target string
}

// jump returns s with a target.
func (s spec) jump(target string) spec {
	s.target = target
	return s
}

func (s spec) rule() ruleset.Rule { return ruleset.Rule(s.append(nil)) }

// append appends the text of the rule.
func (s spec) append(b []byte) []byte {
	b = option(b, "-s ", s.src)
	b = option(b, "-d ", s.dst)
	b = option(b, "-i ", s.in)
	b = option(b, "-p ", s.proto)
	if s.comment != "" {
		b = append(b, commented(s.comment)...)
	}
	b = append(b, s.more...)
	if s.target != "" {
		b = append(b, "-j "...)
		b = append(b, s.target...)
	}
	return bytes.TrimSuffix(b, []byte(" "))
}

func option(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	if rest, inverted := strings.CutPrefix(value, "! "); inverted {
		b = append(b, "! "...)
		value = rest
	}
	b = append(append(b, name...), value...)
	return append(b, ' ')
}

// commented returns a comment match, followed by a space.
func commented(text string) string {
	return "-m comment --comment " + ruleset.Quote(text) + " "
}

// host returns an address as iptables-save prints a single one.
func host(a netip.Addr) string { return a.String() + "/" + strconv.Itoa(a.BitLen()) }

// probability returns 1/n as iptables-save prints it when kube-proxy has
// written it: kube-proxy writes ten decimals, the kernel keeps 31 bits
// (xt_statistic), and iptables prints these with eleven decimals.
func probability(n int) string { return odds(1, n) }

// odds returns k/n in the same way.
func odds(k, n int) string {
	p, _ := strconv.ParseFloat(strconv.FormatFloat(float64(k)/float64(n), 'f', 10, 64), 64)
	const one = 1 << 31
	return strconv.FormatFloat(math.Round(p*one)/one, 'f', 11, 64)
}
