// SPDX-License-Identifier: Apache-2.0

// Package idiom is how rules for Services are put, whatever the mode: the text of
// a rule, the names of chains, how the traffic of pods is told, and what all modes
// have that translate with the help of iptables.
package idiom

import (
	"bytes"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// Spec is a rule in parts. Its text has them in the order in which
// iptables-save prints them.
type Spec struct {
	// Src, Dst and In are matches of source, destination and incoming
	// interface; "! " before one inverts it.
	Src, Dst, In string
	Proto        string
	Comment      string
	// More are further matches, followed by a space.
	More string
	// Target is where the rule leads, with the options of that.
	Target string
}

// Jump returns s with a target.
func (s Spec) Jump(target string) Spec {
	s.Target = target
	return s
}

// Rule returns the rule.
func (s Spec) Rule() ruleset.Rule { return ruleset.Rule(s.Append(nil)) }

// Append appends the text of the rule.
func (s Spec) Append(b []byte) []byte {
	b = option(b, "-s ", s.Src)
	b = option(b, "-d ", s.Dst)
	b = option(b, "-i ", s.In)
	b = option(b, "-p ", s.Proto)
	if s.Comment != "" {
		b = append(b, Commented(s.Comment)...)
	}
	b = append(b, s.More...)
	if s.Target != "" {
		b = append(b, "-j "...)
		b = append(b, s.Target...)
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

// Commented returns a comment match, followed by a space.
func Commented(text string) string {
	return "-m comment --comment " + ruleset.Quote(text) + " "
}

// To matches a port of an address, or of any where that is invalid.
func To(a netip.Addr, p model.Protocol, port uint16) Spec {
	proto := p.Lower()
	s := Spec{Proto: proto, More: "-m " + proto + " --dport " + strconv.Itoa(int(port)) + " "}
	if a.IsValid() {
		s.Dst = Host(a)
	}
	return s
}

// OneOf matches k of n packets, at random.
func OneOf(k, n int) string {
	return "-m statistic --mode random --probability " + Odds(k, n) + " "
}

// Host returns an address as iptables-save prints a single one.
func Host(a netip.Addr) string { return a.String() + "/" + strconv.Itoa(a.BitLen()) }

// Probability returns 1/n as iptables-save prints it when kube-proxy has
// written it: kube-proxy writes ten decimals, the kernel keeps 31 bits
// (xt_statistic), and iptables prints these with eleven decimals.
func Probability(n int) string { return Odds(1, n) }

// Odds returns k/n in the same way.
func Odds(k, n int) string {
	p, _ := strconv.ParseFloat(strconv.FormatFloat(float64(k)/float64(n), 'f', 10, 64), 64)
	const one = 1 << 31
	return strconv.FormatFloat(math.Round(p*one)/one, 'f', 11, 64)
}
