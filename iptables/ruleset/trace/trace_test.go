// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fairlead/iptables/ruleset"
)

// The addresses of the tests.
const (
	nodeIP  = "192.0.2.1"
	vip     = "10.96.0.10:80"
	client  = "10.244.0.9"
	one     = "10.244.0.1:8080"
	two     = "10.244.0.2:8080"
	onNode  = "192.0.2.1:80"
	toOne   = "-j DNAT --to-destination " + one
	toTwo   = "-j DNAT --to-destination " + two
	learned = " learned "
)

// tracer returns a Tracer over rules like "nat PREROUTING -j X", and an empty
// chain where there are only the first two words.
func tracer(t *testing.T, rules ...string) *Tracer {
	t.Helper()
	chains := map[ruleset.Table][]string{
		ruleset.NAT:    {"PREROUTING", "OUTPUT", "POSTROUTING"},
		ruleset.Filter: {"INPUT", "FORWARD", "OUTPUT"},
	}
	text := map[ruleset.Table]string{}
	for _, r := range rules {
		words := strings.SplitN(r, " ", 3)
		table := ruleset.Table(words[0])
		if !slices.Contains(chains[table], words[1]) {
			chains[table] = append(chains[table], words[1])
		}
		if len(words) == 3 {
			text[table] += "-A " + words[1] + " " + words[2] + "\n"
		}
	}
	var b strings.Builder
	for table, names := range chains {
		fmt.Fprintf(&b, "*%s\n", table)
		for _, name := range names {
			fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		}
		b.WriteString(text[table] + "COMMIT\n")
	}
	d, err := ruleset.Parse(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return New(d, netip.MustParseAddr(nodeIP))
}

// packet is of a client that asks the virtual IP by TCP, unless a test says
// otherwise.
func packet(changes ...func(*Packet)) Packet {
	p := Packet{Src: netip.MustParseAddr(client), Dst: netip.MustParseAddrPort(vip), Proto: "tcp"}
	for _, change := range changes {
		change(&p)
	}
	return p
}

func to(dst string) func(*Packet)        { return func(p *Packet) { p.Dst = netip.MustParseAddrPort(dst) } }
func from(src string) func(*Packet)      { return func(p *Packet) { p.Src = netip.MustParseAddr(src) } }
func proto(name string) func(*Packet)    { return func(p *Packet) { p.Proto = name } }
func known(sets ...string) func(*Packet) { return func(p *Packet) { p.Known = sets } }
func fromNode(p *Packet)                 { p.Src, p.FromNode = netip.MustParseAddr(nodeIP), true }

// inWords are fates as "1/2 10.244.0.1:8080 ACCEPT masqueraded learned X", sorted.
// One that is certain has no probability.
func inWords(fates map[Fate]float64) string {
	var out []string
	for f, p := range fates {
		text := f.To.String() + " " + f.Verdict
		if f.Masqueraded {
			text += " masqueraded"
		}
		if f.Learned != "" {
			text += learned + f.Learned
		}
		if p != 1 {
			text = fmt.Sprintf("%.2f %s", p, text)
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestTrace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules []string
		pkt   Packet
		want  string
	}{
		{"no rules", nil, packet(), vip + " ACCEPT"},
		{"DNAT", []string{"nat PREROUTING " + toOne}, packet(), one + " ACCEPT"},
		{"DNAT ends the table's chains", []string{"nat PREROUTING " + toOne, "nat PREROUTING " + toTwo}, packet(), one + " ACCEPT"},
		{"DNAT for IPv6", []string{"nat PREROUTING -j DNAT --to-destination [fd00::1]:8080"},
			packet(from("fd00::9"), to("[fd00::a]:80")), "[fd00::1]:8080 ACCEPT"},

		{"a pod's packet does not meet OUTPUT", []string{"nat OUTPUT " + toOne, "filter OUTPUT -j DROP"}, packet(), vip + " ACCEPT"},
		{"the node's does", []string{"nat OUTPUT " + toOne}, packet(fromNode), one + " ACCEPT"},
		{"the node's does not meet PREROUTING and FORWARD", []string{"nat PREROUTING " + toOne, "filter FORWARD -j DROP"},
			packet(fromNode), vip + " ACCEPT"},
		{"what passes the node meets no INPUT", []string{"filter INPUT -j DROP"}, packet(), vip + " ACCEPT"},
		{"what is for the node does", []string{"filter INPUT -j DROP", "filter FORWARD -j REJECT --reject-with icmp-port-unreachable"},
			packet(to(onNode)), onNode + " DROP"},
		{"what is translated away does not", []string{"nat PREROUTING " + toOne, "filter INPUT -j DROP"}, packet(to(onNode)), one + " ACCEPT"},
		{"what the node sends to itself goes out and comes in", []string{"nat POSTROUTING -j MASQUERADE", "filter INPUT -j DROP"},
			packet(fromNode, to(onNode)), onNode + " DROP masqueraded"},
		{"127.0.0.1 and ::1 are the node's", []string{"filter INPUT -j DROP"}, packet(fromNode, to("[::1]:80")), "[::1]:80 DROP"},

		{"DROP", []string{"filter FORWARD -j DROP"}, packet(), vip + " DROP"},
		{"REJECT", []string{"filter FORWARD -p tcp -j REJECT --reject-with icmp-port-unreachable"}, packet(), vip + " REJECT"},
		{"ACCEPT saves from a later DROP", []string{"filter FORWARD -j ACCEPT", "filter FORWARD -j DROP"}, packet(), vip + " ACCEPT"},
		{"ACCEPT in one table does not save from another", []string{"nat PREROUTING -j ACCEPT", "filter FORWARD -j DROP"}, packet(), vip + " DROP"},
		{"what is dropped is not masqueraded", []string{"filter FORWARD -j DROP", "nat POSTROUTING -j MASQUERADE"}, packet(), vip + " DROP"},
		{"MASQUERADE", []string{"nat POSTROUTING -j MASQUERADE --random-fully"}, packet(), vip + " ACCEPT masqueraded"},

		{"jump and back", []string{"nat PREROUTING -j A", "nat PREROUTING " + toOne, "nat A"}, packet(), one + " ACCEPT"},
		{"RETURN from a chain", []string{"nat PREROUTING -j A", "nat PREROUTING " + toOne, "nat A -j RETURN", "nat A " + toTwo}, packet(), one + " ACCEPT"},
		{"RETURN from a built-in chain is its policy", []string{"filter FORWARD -j RETURN", "filter FORWARD -j DROP"}, packet(), vip + " ACCEPT"},
		{"a goto's chain returns past the rule's chain", []string{"nat PREROUTING -j A", "nat PREROUTING " + toOne, "nat A -g B", "nat A " + toTwo, "nat B -j RETURN"},
			packet(), one + " ACCEPT"},
		{"a goto's chain decides", []string{"nat PREROUTING -g B", "nat PREROUTING " + toTwo, "nat B " + toOne}, packet(), one + " ACCEPT"},
		{"a rule without a target", []string{"filter FORWARD -p tcp -m comment --comment \"a -j DROP in quotes\"", "filter FORWARD -j DROP"}, packet(), vip + " DROP"},

		{"half and half", []string{"nat PREROUTING -m statistic --mode random --probability 0.50000000000 " + toOne, "nat PREROUTING " + toTwo},
			packet(), "0.50 " + one + " ACCEPT; 0.50 " + two + " ACCEPT"},
		{"probabilities multiply, and join again", []string{
			"nat PREROUTING -m statistic --mode random --probability 0.25000000000 -j A",
			"nat PREROUTING -m statistic --mode random --probability 0.50000000000 -j A", "nat PREROUTING " + toTwo,
			"nat A -m statistic --mode random --probability 0.40000000000 " + toOne, "nat A " + toTwo,
		}, packet(), "0.25 " + one + " ACCEPT; 0.75 " + two + " ACCEPT"},
		{"a random branch that is not matched", []string{"nat PREROUTING -p udp -m statistic --mode random --probability 0.50000000000 " + toOne},
			packet(), vip + " ACCEPT"},

		{"a mark is seen in a later table", []string{"nat PREROUTING -j MARK --set-xmark 0x4000/0x4000", "nat PREROUTING " + toOne,
			"nat POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE"}, packet(), one + " ACCEPT masqueraded"},
		{"a mark of two bits, xor, and a mask", []string{"nat PREROUTING -j MARK --set-xmark 0xc000/0x0", "nat PREROUTING -j MARK --set-xmark 0x8000/0x0",
			"filter FORWARD -m mark ! --mark 0x4000/0xc000 -j DROP"}, packet(), vip + " ACCEPT"},
		{"no mark", []string{"filter FORWARD -m mark --mark 0x0/0xffffffff -j DROP"}, packet(), vip + " DROP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fates, err := tracer(t, tt.rules...).Trace(tt.pkt)
			if err != nil {
				t.Fatal(err)
			}
			if got := inWords(fates); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			sum := 0.0
			for p := range maps.Values(fates) {
				sum += p
			}
			if math.Abs(sum-1) > 1e-9 {
				t.Errorf("the probabilities come to %g", sum)
			}
		})
	}
}

// TestMatches: each match takes the one packet and not the other, and the
// inverted one the other way round.
func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		match   string // "!" is where it can be inverted
		yes, no Packet
	}{
		{"! -s 10.244.0.0/24", packet(), packet(from("10.244.1.9"))},
		{"! -d 10.96.0.10/32", packet(), packet(to("10.96.0.11:80"))},
		{"! -p tcp", packet(), packet(proto("udp"))},
		{"! -p sctp", packet(proto("sctp")), packet()},
		{"-p tcp -m tcp ! --dport 80", packet(), packet(to("10.96.0.10:81"))},
		{"! --dport 80:90", packet(to("10.96.0.10:90")), packet(to("10.96.0.10:91"))},
		{"! --dport 81:90", packet(to("10.96.0.10:81")), packet()},
		{"-m addrtype ! --src-type LOCAL", packet(from(nodeIP)), packet()},
		{"-m addrtype ! --dst-type LOCAL", packet(to(onNode)), packet()},
		{"-m set ! --match-set A src", packet(known("B", "A")), packet(known("B"))},
		{"-m recent ! --rcheck --seconds 10 --reap --name A --mask 255.255.255.255 --rsource", packet(known("A")), packet()},
		{"-s 10.244.0.0/24 -p tcp -d 10.96.0.0/16", packet(), packet(proto("udp"))},
	} {
		for match, inverted := range map[string]bool{tt.match: strings.Contains(tt.match, "!"), strings.Replace(tt.match, "! ", "", 1): false} {
			// Of a packet to the node FORWARD hears nothing: so in nat.
			tr := tracer(t, "nat PREROUTING "+match+" "+toOne)
			for want, pkt := range map[bool]Packet{true: tt.yes, false: tt.no} {
				fates, err := tr.Trace(pkt)
				if err != nil {
					t.Errorf("%q: %v", match, err)
				}
				if _, got := fates[Fate{To: netip.MustParseAddrPort(one), Verdict: accept}]; got != (want != inverted) {
					t.Errorf("%q takes %+v: %v", match, pkt, got)
				}
			}
		}
	}
}

// TestStates: the first packet of a connection is NEW, and DNAT once it is
// translated.
func TestStates(t *testing.T) {
	for match, want := range map[string][2]bool{ // of an untranslated packet and of a translated one
		"--ctstate NEW":                        {true, true},
		"! --ctstate NEW":                      {false, false},
		"--ctstate RELATED,ESTABLISHED":        {false, false},
		"--ctstate INVALID":                    {false, false},
		"--ctstate DNAT":                       {false, true},
		"! --ctstate RELATED,ESTABLISHED,DNAT": {true, false},
		"--ctstate NEW,DNAT":                   {true, true},
	} {
		for i, rules := range [][]string{nil, {"nat PREROUTING " + toOne}} {
			fates, err := tracer(t, append(rules, "filter FORWARD -m conntrack "+match+" -j DROP")...).Trace(packet())
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.HasSuffix(inWords(fates), "DROP"); got != want[i] {
				t.Errorf("%s, translated %v: %v, want %v", match, i == 1, got, want[i])
			}
		}
	}
}

// TestMemory: a client goes to an endpoint that knows it, and otherwise gets to
// be known by the one that it goes to.
func TestMemory(t *testing.T) {
	for name, rules := range map[string][]string{
		"sets": {
			"nat PREROUTING -m set --match-set ONE src -j ONE", "nat PREROUTING -m set --match-set TWO src -j TWO",
			"nat PREROUTING -m statistic --mode random --probability 0.50000000000 -j ONE", "nat PREROUTING -j TWO",
			"nat ONE -j SET --add-set ONE src --exist --timeout 60", "nat ONE " + toOne,
			"nat TWO -j SET --add-set TWO src --exist --timeout 60", "nat TWO " + toTwo,
		},
		"recent": {
			"nat PREROUTING -m recent --rcheck --seconds 60 --reap --name ONE --mask 255.255.255.255 --rsource -j ONE",
			"nat PREROUTING -m recent --rcheck --seconds 60 --reap --name TWO --mask 255.255.255.255 --rsource -j TWO",
			"nat PREROUTING -m statistic --mode random --probability 0.50000000000 -j ONE", "nat PREROUTING -j TWO",
			"nat ONE -p tcp -m recent --set --name ONE --mask 255.255.255.255 --rsource -m tcp " + toOne,
			"nat TWO -p tcp -m recent --set --name TWO --mask 255.255.255.255 --rsource -m tcp " + toTwo,
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := tracer(t, rules...)
			for _, tt := range []struct {
				name  string
				known []string
				want  string
			}{
				{"unknown", nil, "0.50 " + one + " ACCEPT learned ONE; 0.50 " + two + " ACCEPT learned TWO"},
				{"known to one", []string{"ONE"}, one + " ACCEPT learned ONE"},
				{"known to the other", []string{"TWO"}, two + " ACCEPT learned TWO"},
				{"known to both", []string{"TWO", "ONE"}, one + " ACCEPT learned ONE"},
				{"known elsewhere", []string{"THREE"}, "0.50 " + one + " ACCEPT learned ONE; 0.50 " + two + " ACCEPT learned TWO"},
			} {
				fates, err := tr.Trace(packet(known(tt.known...)))
				if err != nil {
					t.Fatal(err)
				}
				if got := inWords(fates); got != tt.want {
					t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
				}
			}
		})
	}
	t.Run("what a rule adds a later one knows", func(t *testing.T) {
		fates, err := tracer(t, "nat PREROUTING -j SET --add-set A src --exist --timeout 60", "filter FORWARD -m set --match-set A src -j DROP").Trace(packet())
		if got, want := inWords(fates), vip+" DROP learned A"; got != want || err != nil {
			t.Errorf("got %q (%v), want %q", got, err, want)
		}
	})
}

// TestUnknown: what the tracer does not know is an error that names it, where a
// packet meets it, even if another match of the rule would not take the packet.
func TestUnknown(t *testing.T) {
	deep := []string{"nat PREROUTING -j C1"}
	for i := 1; i < maxDepth; i++ {
		deep = append(deep, fmt.Sprintf("nat C%d -j C%d", i, i+1))
	}
	for _, tt := range []struct {
		name  string
		rules []string
		want  string
	}{
		{"a module", []string{"filter FORWARD -p udp -m physdev -j DROP"}, "-m physdev: unknown"},
		{"an option", []string{"filter FORWARD -p udp -i eth0 -j DROP"}, "-i eth0: unknown"},
		{"a protocol", []string{"filter FORWARD -p icmp -j DROP"}, "-p icmp: unknown"},
		{"a prefix", []string{"filter FORWARD -s 10.0.0.1 -j DROP"}, "-s 10.0.0.1"},
		{"a port", []string{"filter FORWARD --dport http -j DROP"}, "--dport http"},
		{"the end of a range", []string{"filter FORWARD --dport 80:x -j DROP"}, "--dport 80:x"},
		{"an address type", []string{"filter FORWARD -m addrtype --dst-type BROADCAST -j DROP"}, "--dst-type BROADCAST: unknown"},
		{"a state", []string{"filter FORWARD -m conntrack --ctstate NEW,SNAT -j DROP"}, "--ctstate NEW,SNAT: unknown"},
		{"another statistic", []string{"filter FORWARD -m statistic --mode nth --every 2 -j DROP"}, "--mode nth: unknown"},
		{"a probability", []string{"filter FORWARD -m statistic --mode random --probability 2 -j DROP"}, "probability 2"},
		{"an inverted probability", []string{"filter FORWARD -m statistic --mode random ! --probability 0.5 -j DROP"}, "--probability cannot be inverted"},
		{"an inverted target", []string{"filter FORWARD ! -j DROP"}, "-j cannot be inverted"},
		{"a mark", []string{"filter FORWARD -m mark --mark 0x1 -j DROP"}, "--mark 0x1"},
		{"a mark to set", []string{"filter FORWARD -j MARK --set-xmark x/0x1"}, "--set-xmark x/0x1"},
		{"a set of destinations", []string{"filter FORWARD -m set --match-set A dst,dst -j DROP"}, "--match-set A dst,dst: unknown"},
		{"an addition of destinations", []string{"filter FORWARD -j SET --add-set A dst"}, "--add-set A dst: unknown"},
		{"SET without a set", []string{"filter FORWARD -j SET"}, "SET without a set"},
		{"a list by destination", []string{"filter FORWARD -m recent --rcheck --name A --rdest -j DROP"}, "--rdest"},
		{"a list of networks", []string{"filter FORWARD -m recent --rcheck --name A --mask 255.255.255.0 --rsource -j DROP"}, "--mask 255.255.255.0: unknown"},
		{"a list that is neither asked nor added to", []string{"filter FORWARD -m recent --name A --rsource -j DROP"}, "does not either"},
		{"an inverted addition", []string{"filter FORWARD -m recent ! --set --name A --rsource -j DROP"}, "--set cannot be inverted"},
		{"two additions in one rule", []string{"filter FORWARD -m recent --set --name A --rsource -j SET --add-set B src"}, "adds to a set and to a list"},
		{"two additions on the way", []string{"nat PREROUTING -j SET --add-set A src", "nat PREROUTING -j SET --add-set B src"}, "added to A and to B"},
		{"DNAT without a port", []string{"nat PREROUTING -j DNAT --to-destination 10.0.0.1"}, "--to-destination 10.0.0.1"},
		{"DNAT to nowhere", []string{"nat PREROUTING -j DNAT"}, "DNAT to nowhere"},
		{"a target", []string{"nat PREROUTING -j LOG"}, "jump to nat/LOG, which is not there"},
		{"the end of a rule", []string{"nat PREROUTING -p"}, "it ends early"},
		{"the end after an inversion", []string{"nat PREROUTING -p tcp !"}, "it ends early"},
		{"a circle", []string{"nat PREROUTING -j A", "nat A -j B", "nat B -j A"}, "17 chains deep"},
		{"too many chains", append(deep, "nat C16"), "17 chains deep"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fates, err := tracer(t, tt.rules...).Trace(packet())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q and the error %v, want one with %q", inWords(fates), err, tt.want)
			}
		})
	}
}

// TestUnknownElsewhere: what no packet of a test meets does no harm.
func TestUnknownElsewhere(t *testing.T) {
	tr := tracer(t, "nat PREROUTING -p udp -j A", "nat A -m physdev -j DROP", "filter INPUT -i eth0 -j DROP")
	fates, err := tr.Trace(packet())
	if got, want := inWords(fates), vip+" ACCEPT"; got != want || err != nil {
		t.Errorf("got %q (%v), want %q", got, err, want)
	}
}

// TestPacketIsKept: a Tracer has no memory of its own.
func TestPacketIsKept(t *testing.T) {
	tr, pkt := tracer(t, "nat PREROUTING -j SET --add-set A src --exist --timeout 60", "nat PREROUTING "+toOne), packet(known("B"))
	for range 2 {
		fates, err := tr.Trace(pkt)
		if got, want := inWords(fates), one+" ACCEPT learned A"; got != want || err != nil {
			t.Errorf("got %q (%v), want %q", got, err, want)
		}
	}
	if len(pkt.Known) != 1 {
		t.Errorf("the packet's source is known to %q, want to B alone", pkt.Known)
	}
}
