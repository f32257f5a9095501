// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fairlead/iptables/ruleset"
)

const accept = "ACCEPT"

// rule is a parsed rule.
type rule struct {
	matches     []match
	probability float64
	target      string
	// leaves is set for a goto: the chain that it goes to returns to where the
	// rule's own chain was jumped to from.
	leaves bool
	// to is for DNAT, value and mask are for MARK.
	to          netip.AddrPort
	value, mask uint32
	// set is one of destinations and sources that the rule matches, empty for
	// none.
	set string
	// addTo is a set or list that the source is added to, empty for none.
	addTo string
	// recent is what is said of xt_recent.
	recent struct {
		name             string
		set, check, miss bool
	}
	// err is why the rule cannot be followed.
	err error
}

// match tells whether a rule takes a packet.
type match func(tr *Tracer, s *state) bool

// match returns the probability that the rule takes the state.
func (r *rule) match(tr *Tracer, s *state) float64 {
	for _, m := range r.matches {
		if !m(tr, s) {
			return 0
		}
	}
	return r.probability
}

// words splits a rule's text; a quoted word is one.
func words(r ruleset.Rule) []string {
	var out []string
	quoted := false
	for _, part := range strings.Fields(string(r)) {
		if quoted {
			out[len(out)-1] += " " + part
		} else {
			out = append(out, part)
		}
		if strings.Count(part, `"`)%2 == 1 {
			quoted = !quoted
		}
	}
	return out
}

// arguments says how many words follow an option, of those that are followed by
// another number than one.
var arguments = map[string]int{
	"--random-fully": 0, "--set": 0, "--rcheck": 0, "--reap": 0, "--rsource": 0, "--exist": 0,
	"--match-set": 2, "--add-set": 2,
}

// parse reads a rule as iptables-save prints it.
func parse(text ruleset.Rule) rule {
	r := rule{probability: 1}
	w := words(text)
	for len(w) > 0 && r.err == nil {
		not := w[0] == "!"
		if not {
			w = w[1:]
		}
		n := 1
		if len(w) > 0 {
			if special, ok := arguments[w[0]]; ok {
				n = special
			}
		}
		if len(w) <= n {
			r.err = errors.New("it ends early")
			break
		}
		r.err = r.option(w[0], w[1:1+n], not)
		w = w[1+n:]
	}
	if r.err == nil {
		r.err = r.complete()
	}
	if r.err != nil {
		r.err = fmt.Errorf("rule %q: %w", text, r.err)
	}
	return r
}

// modules are the matches that are known.
var modules = []string{"addrtype", "comment", "conntrack", "mark", "nfacct", "recent", "sctp", "set", "statistic", "tcp", "udp"}

// option adds one option of a rule.
func (r *rule) option(option string, args []string, not bool) error {
	arg := strings.Join(args, " ")
	if name, ok := strings.CutSuffix(arg, " dst,dst,src"); ok && option == "--match-set" {
		r.set = name
		r.matches = append(r.matches, func(tr *Tracer, s *state) bool {
			return tr.sets[name](s.proto, netip.AddrPortFrom(s.dst, s.dport), s.src) != not
		})
		return nil
	}
	if m, err := matchOf(option, arg); err != nil {
		return fmt.Errorf("%s %s: %w", option, arg, err)
	} else if m != nil {
		r.matches = append(r.matches, func(tr *Tracer, s *state) bool { return m(tr, s) != not })
		return nil
	}
	if option == "--rcheck" {
		r.recent.check, r.recent.miss = true, not
		return nil
	}
	if not {
		return fmt.Errorf("%s cannot be inverted", option)
	}
	if err := r.setting(option, arg); err != nil {
		return fmt.Errorf("%s %s: %w", option, arg, err)
	}
	return nil
}

// errUnknown is why most rules of others cannot be followed.
var errUnknown = errors.New("unknown")

// setting takes an option that is no match by itself.
func (r *rule) setting(option, arg string) error {
	var err error
	switch option {
	case "-m":
		if !slices.Contains(modules, arg) {
			err = errUnknown
		}
	case "--mode":
		if arg != "random" {
			err = errUnknown
		}
	case "--mask": // that of a whole address
		if arg != "255.255.255.255" && arg != "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" {
			err = errUnknown
		}
	case "--comment", "--random-fully", "--reject-with", "--seconds", "--reap", "--rsource", "--exist", "--timeout", "--nfacct-name":
	case "--set":
		r.recent.set = true
	case "--name":
		r.recent.name = arg
	case "--set-xmark":
		r.value, r.mask, err = valueAndMask(arg)
	case "--probability":
		r.probability, err = strconv.ParseFloat(arg, 64)
	case "--to-destination":
		r.to, err = netip.ParseAddrPort(arg)
	case "--add-set":
		r.addTo, err = sourceSet(arg)
	case "-j":
		r.target = arg
	case "-g":
		r.target, r.leaves = arg, true
	default:
		err = errUnknown
	}
	return err
}

// complete checks what options say together.
func (r *rule) complete() error {
	switch {
	case r.target == "DNAT" && !r.to.IsValid():
		return errors.New("DNAT to nowhere")
	case r.target == "SET" && r.addTo == "":
		return errors.New("SET without a set")
	case r.probability < 0 || r.probability > 1:
		return fmt.Errorf("probability %g", r.probability)
	case !r.recent.set && !r.recent.check && r.recent.name == "":
		return nil
	case r.recent.set == r.recent.check || r.recent.name == "":
		return errors.New("it does not either ask for a list or add to one")
	}
	name, miss := r.recent.name, r.recent.miss
	if r.recent.check {
		r.matches = append(r.matches, func(_ *Tracer, s *state) bool { return s.knows(name) != miss })
		return nil
	}
	if r.addTo != "" {
		return errors.New("it adds to a set and to a list")
	}
	r.addTo = name
	return nil
}

// matchOf returns the match that an option is, nil if it is none.
func matchOf(option, arg string) (match, error) {
	switch option {
	case "-s", "-d":
		prefix, err := netip.ParsePrefix(arg)
		return func(_ *Tracer, s *state) bool {
			return option == "-s" && prefix.Contains(s.src) || option == "-d" && prefix.Contains(s.dst)
		}, err
	case "-p":
		if !slices.Contains([]string{"tcp", "udp", "sctp"}, arg) {
			return nil, errUnknown
		}
		return func(_ *Tracer, s *state) bool { return s.proto == arg }, nil
	case "--dport":
		low, high, err := portRange(arg)
		return func(_ *Tracer, s *state) bool { return low <= s.dport && s.dport <= high }, err
	case "--ctstate":
		return stateMatch(strings.Split(arg, ","))
	case "--dst-type", "--src-type":
		if arg != "LOCAL" {
			return nil, errUnknown
		}
		return func(tr *Tracer, s *state) bool {
			return slices.Contains(tr.local, map[string]netip.Addr{"--dst-type": s.dst, "--src-type": s.src}[option])
		}, nil
	case "--mark":
		value, mask, err := valueAndMask(arg)
		return func(_ *Tracer, s *state) bool { return s.mark&mask == value }, err
	case "--match-set":
		set, err := sourceSet(arg)
		return func(_ *Tracer, s *state) bool { return s.knows(set) }, err
	}
	return nil, nil
}

// stateMatch is that of conntrack's states. The first packet of a connection is
// new, and valid.
func stateMatch(states []string) (match, error) {
	for _, s := range states {
		if !slices.Contains([]string{"NEW", "ESTABLISHED", "RELATED", "INVALID", "DNAT"}, s) {
			return nil, errUnknown
		}
	}
	isNew, isDNAT := slices.Contains(states, "NEW"), slices.Contains(states, "DNAT")
	return func(_ *Tracer, s *state) bool { return isNew || isDNAT && s.dnat }, nil
}

// portRange parses "80" and "80:90".
func portRange(arg string) (low, high uint16, err error) {
	first, last, ranged := strings.Cut(arg, ":")
	if !ranged {
		last = first
	}
	l, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	h, err := strconv.ParseUint(last, 10, 16)
	return uint16(l), uint16(h), err
}

// valueAndMask parses "0x4000/0x4000".
func valueAndMask(arg string) (value, mask uint32, err error) {
	first, second, _ := strings.Cut(arg, "/")
	v, err := strconv.ParseUint(first, 0, 32)
	if err != nil {
		return 0, 0, err
	}
	m, err := strconv.ParseUint(second, 0, 32)
	return uint32(v), uint32(m), err
}

// sourceSet parses "NAME src".
func sourceSet(arg string) (string, error) {
	name, found := strings.CutSuffix(arg, " src")
	if !found {
		return "", errUnknown
	}
	return name, nil
}
