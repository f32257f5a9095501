// SPDX-License-Identifier: Apache-2.0

package iptables

import (
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

func (s spec) rule() ruleset.Rule {
	var b strings.Builder
	b.Grow(192)
	option(&b, "-s", s.src)
	option(&b, "-d", s.dst)
	option(&b, "-i", s.in)
	option(&b, "-p", s.proto)
	if s.comment != "" {
		b.WriteString(commented(s.comment))
	}
	b.WriteString(s.more)
	if s.target != "" {
		b.WriteString("-j ")
		b.WriteString(s.target)
	}
	return ruleset.Rule(strings.TrimSuffix(b.String(), " "))
}

func option(b *strings.Builder, name, value string) {
	if value == "" {
		return
	}
	if rest, inverted := strings.CutPrefix(value, "! "); inverted {
		b.WriteString("! ")
		value = rest
	}
	b.WriteString(name + " " + value + " ")
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
func probability(n int) string {
	p, _ := strconv.ParseFloat(strconv.FormatFloat(1/float64(n), 'f', 10, 64), 64)
	const one = 1 << 31
	return strconv.FormatFloat(math.Round(p*one)/one, 'f', 11, 64)
}
