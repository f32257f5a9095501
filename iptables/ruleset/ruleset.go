// SPDX-License-Identifier: Apache-2.0

// Package ruleset is the engine that owns Fairlead's iptables rules: a model of
// tables, chains and rules in the words of iptables-save, the parser and
// printer of that format, the difference between what is wanted and what is
// there, and the restore commands that close it. It knows nothing of Services.
//
// There is one Engine per address family, and it is the only writer: whoever
// wants rules registers a Contribution, stages chains with Engine.Stage, and
// the Engine alone decides order and batches.
//
// Rules are kept as text, in the normal form in which iptables-save prints
// them. Comparing what is wanted with what is there is then comparing strings,
// and a restart with unchanged objects finds nothing to write.
package ruleset

import (
	"cmp"
	"slices"
	"strings"
)

// Table is the name of an iptables table.
type Table string

// The tables that Fairlead's contributors use.
const (
	Mangle Table = "mangle"
	NAT    Table = "nat"
	Filter Table = "filter"
)

// MaxChainName is the longest chain name that iptables takes
// (XT_EXTENSION_MAXNAMELEN less its final NUL, linux/netfilter/x_tables.h).
const MaxChainName = 28

// MaxComment is the longest comment that iptables takes, in bytes
// (XT_MAX_COMMENT_LEN less its final NUL, linux/netfilter/xt_comment.h).
const MaxComment = 255

// ChainKey identifies a chain of one family.
type ChainKey struct {
	Table Table
	Name  string
}

// String returns "table/name".
func (k ChainKey) String() string { return string(k.Table) + "/" + k.Name }

// compareKeys orders chains by table and name.
func compareKeys(a, b ChainKey) int {
	return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
}

// Rule is what follows "-A CHAIN " in a line of iptables-save, in the normal
// form that iptables-save prints: options in its order, addresses with their
// prefix length, comments quoted as Quote does it.
type Rule string

// Target returns the chain or target that the rule jumps or goes to, empty
// where it has none.
func (r Rule) Target() string {
	_, target, _ := r.words()
	return target
}

// end tells where the rule leads: its target, and of a translation also the
// destination, which tells those of a chain apart.
func (r Rule) end() string {
	_, target, options := r.words()
	if target == "DNAT" {
		return target + options
	}
	return target
}

// comment returns the rule's first comment as it is written, empty where it has
// none.
func (r Rule) comment() string {
	comment, _, _ := r.words()
	return comment
}

// broken tells whether a rule of others goes over several lines, which no restore
// can take.
func (r Rule) broken() bool { return strings.Contains(string(r), "\n") }

// conditional tells whether a rule is left to chance.
func (r Rule) conditional() bool { return strings.Contains(string(r), "-m statistic ") }

// words returns the first comment and the target of a rule, and the options of the
// target.
func (r Rule) words() (comment, target, options string) {
	rest, option := string(r), ""
	for rest != "" && target == "" {
		var tok string
		tok, rest = nextToken(rest)
		switch option {
		case "-j", "-g":
			target = tok
		case "--comment": // its text may be "-j", which needs no quotes
			if comment == "" {
				comment = tok
			}
			tok = ""
		}
		option = tok
	}
	return comment, target, rest
}

// nextToken splits the first word from s. A word that starts with a double
// quote ends at the next one that is not escaped; it is returned with its
// quotes, so that it can never be taken for an option.
func nextToken(s string) (tok, rest string) {
	s = strings.TrimLeft(s, " ")
	if !strings.HasPrefix(s, `"`) {
		tok, rest, _ = strings.Cut(s, " ")
		return tok, rest
	}
	if end := quoteEnd(s); end >= 0 {
		return s[:end], s[end:]
	}
	return s, ""
}

// quoteEnd returns where the quoted word ends that s starts with, or -1.
func quoteEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// Quote returns s as iptables-save prints a string argument: bare where it has
// only letters, digits, '_' and '-', else in double quotes with quotes and
// backslashes escaped (xtables_save_string in iptables' libxtables).
func Quote(s string) string {
	if s != "" && strings.IndexFunc(s, needsQuote) < 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for i := range len(s) {
		if strings.IndexByte(`\"'`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func needsQuote(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
}

// Chain is a chain of ours as it is wanted.
type Chain struct {
	// Unit names what the chain belongs to, a Service port, say. The chains of
	// one unit change in one transaction and are refused together. A chain
	// that many units have rules in has the empty unit; of it, single rules
	// can be refused.
	Unit string
	// Patient chains choose among targets at random. Of one that loses a target
	// it is enough, for a while, that the rules that lead there are gone: what
	// else changes are the odds.
	Patient bool
	// fed is set where the chain has been handed to Feed.
	fed   bool
	Rules []Rule
}

// Equal tells whether the same is wanted of two chains. How they got to the engine
// does not matter.
func (c Chain) Equal(o Chain) bool {
	return c.Unit == o.Unit && c.Patient == o.Patient && slices.Equal(c.Rules, o.Rules)
}

// same tells whether two chains have the same rules.
func (c *Chain) same(o *Chain) bool {
	return c == o || slices.Equal(c.Rules, o.Rules)
}

// Jump is a rule of ours in a chain that is not ours, usually a built-in one. It
// is there while the chain is wanted that it leads to.
type Jump struct {
	ChainKey
	Rule Rule
	// Last puts the rule below all others when it is made, where what others
	// decide comes first.
	Last bool
}

// Contribution declares what one contributor of rules may ever write.
type Contribution struct {
	// Name is for log lines.
	Name string
	// Owns lists the chains that are the contributor's. A name that ends in
	// "*" stands for all names with that prefix.
	Owns []ChainKey
	// Jumps are wanted in foreign chains, in this order. A missing one is
	// inserted above all other rules, or below them if it is Last; one that is
	// there stays where it is. The target of each is an owned chain.
	Jumps []Jump
	// Former are jumps to chains of Owns that this contributor or its like has made
	// otherwise, or for another purpose, and that are not wanted unless they are
	// among Jumps.
	Former []Jump
	// Guests are rules in chains that others use too.
	Guests []Guest
	// Relics are chains of a predecessor, which Clean removes; before, they are
	// left alone.
	Relics []ChainKey
}

// owners answers which chains are ours.
type owners struct {
	exact    map[ChainKey]bool
	relics   map[ChainKey]bool
	prefixes []ChainKey
}

func newOwners(cs []Contribution) owners {
	o := owners{exact: map[ChainKey]bool{}, relics: map[ChainKey]bool{}}
	for _, c := range cs {
		for _, k := range c.Relics {
			o.exact[k], o.relics[k] = true, true
		}
		for _, k := range c.Owns {
			if name, ok := strings.CutSuffix(k.Name, "*"); ok {
				o.prefixes = append(o.prefixes, ChainKey{k.Table, name})
			} else {
				o.exact[k] = true
			}
		}
	}
	return o
}

func (o owners) owns(k ChainKey) bool {
	return o.exact[k] || slices.ContainsFunc(o.prefixes, func(p ChainKey) bool {
		return p.Table == k.Table && strings.HasPrefix(k.Name, p.Name)
	})
}
