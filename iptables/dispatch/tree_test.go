// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

func key(addr string, proto model.Protocol, port int) Key {
	k := Key{Protocol: proto, Port: uint16(port)}
	if addr != "" {
		k.Addr = netip.MustParseAddr(addr)
	}
	return k
}

// TestSlotText: how the parts of the destinations are named and matched.
func TestSlotText(t *testing.T) {
	for _, tt := range []struct {
		name   string
		key    Key
		digits int
		chain  string
		match  string
	}{
		{"half of all IPv4", key("192.0.2.1", model.TCP, 80), 1, "KUBE-SVC-192.0.0.0/4", "-d 192.0.0.0/4 "},
		{"a network", key("10.96.42.7", model.TCP, 80), 5, "KUBE-SVC-10.96.32.0/20", "-d 10.96.32.0/20 "},
		{"an address", key("10.96.42.7", model.TCP, 80), 8, "KUBE-SVC-10.96.42.7/32", "-d 10.96.42.7/32 "},
		{"the longest address", key("255.255.255.255", model.TCP, 80), 8, "KUBE-SVC-255.255.255.255/32", "-d 255.255.255.255/32 "},
		{"a protocol", key("10.96.42.7", model.UDP, 80), 9, "KUBE-SVC-10.96.42.7/udp", "-d 10.96.42.7/32 -p udp more "},
		{"ports", key("10.96.42.7", model.TCP, 80), 10, "KUBE-SVC-" + "SI6Y6YHK645OQTJ4", "-d 10.96.42.7/32 -p tcp more -m tcp --dport 0:4095 "},
		{"ports of a short address", key("10.0.0.7", model.TCP, 80), 12, "KUBE-SVC-10.0.0.7/tcp/80-95", "-d 10.0.0.7/32 -p tcp more -m tcp --dport 80:95 "},
		{"a short IPv6 network", key("fd00:10:96::1", model.TCP, 80), 12, "KUBE-SVC-fd00:10:96::/48", "-d fd00:10:96::/48 "},
		{"node ports", key("", model.SCTP, 30000), 1, "KUBE-SVC-sctp", "-p sctp more "},
		{"node ports in a range", key("", model.TCP, 30000), 2, "KUBE-SVC-tcp/28672-32767", "-p tcp more -m tcp --dport 28672:32767 "},
		{"a node port", key("", model.TCP, 30000), 5, "KUBE-SVC-tcp/30000-30000", "-p tcp more -m tcp --dport 30000 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.key.path()
			s := slot{path[:tt.digits], len(path) - 1 - portDigits}
			more := ""
			if s.protocol() != "" {
				more = "more "
			}
			if got := s.chain("KUBE-SVC-"); got != tt.chain {
				t.Errorf("chain %q, want %q", got, tt.chain)
			}
			if got := s.match(more); got != tt.match {
				t.Errorf("match %q, want %q", got, tt.match)
			}
		})
	}
}

// forest is a Tree and what it has told of its chains.
type forest struct {
	*Tree
	bits   int
	chains map[string][]ruleset.Rule
}

func newForest(bits int) *forest {
	return &forest{New(bits, "KUBE-SVC-", ""), bits, map[string][]ruleset.Rule{"": nil}}
}

// changed takes over what has changed, and returns the names of the chains.
func (f *forest) changed() []string {
	var out []string
	f.Changed(func(name string, rules []ruleset.Rule, ok bool) {
		if old, had := f.chains[name]; had == ok && slices.Equal(old, rules) {
			return
		}
		out = append(out, name)
		if f.chains[name] = rules; !ok {
			delete(f.chains, name)
		}
	})
	slices.Sort(out)
	return out
}

func (f *forest) put(k Key, owner string) { f.Put(k, owner, []ruleset.Rule{ruleOf(k, owner)}) }

// ruleOf is the rule of an owner for a key.
func ruleOf(k Key, owner string) ruleset.Rule {
	s := slot{k.path(), len(k.path()) - 1 - portDigits}
	return ruleset.Rule(s.match("") + "-j " + owner)
}

// walk follows a destination from the root, and returns the rules of owners that
// match it, in their order, and how many rules it was compared with, and in how
// many chains in a row it was.
func (f *forest) walk(t *testing.T, k Key, chain string) (found []ruleset.Rule, compared, depth int) {
	t.Helper()
	for _, r := range f.chains[chain] {
		compared++
		if !matches(t, string(r), k) {
			continue
		}
		target := r.Target()
		if _, inner := f.chains[target]; !inner {
			found = append(found, r)
			continue
		}
		more, n, d := f.walk(t, k, target)
		found, compared, depth = append(found, more...), compared+n, max(depth, d+1)
	}
	return found, compared, depth
}

// matches tells whether a rule matches a destination, as the kernel would.
func matches(t *testing.T, rule string, k Key) bool {
	t.Helper()
	words := strings.Fields(rule)
	for i := 0; i < len(words); i += 2 {
		switch arg := words[i+1]; words[i] {
		case "-d":
			if !netip.MustParsePrefix(arg).Contains(k.Addr) {
				return false
			}
		case "-p":
			if arg != k.Protocol.Lower() {
				return false
			}
		case "--dport":
			var lo, hi int
			if n, _ := fmt.Sscanf(arg, "%d:%d", &lo, &hi); n == 1 {
				hi = lo
			}
			if int(k.Port) < lo || int(k.Port) > hi {
				return false
			}
		case "-m", "-j":
		default:
			t.Fatalf("what is %q in %q?", words[i], rule)
		}
	}
	return true
}

// keys makes keys of the kinds that are found: one address after the other,
// addresses all over, and one with many ports.
func keys(rng *rand.Rand, bits int) func() Key {
	return func() Key {
		k := Key{Protocol: protocols[rng.IntN(3)], Port: uint16(rng.IntN(1 << 16))}
		n := rng.IntN(600)
		raw := make([]byte, bits/8)
		if bits > 0 {
			raw[0] = 10
			switch rng.IntN(3) {
			case 0:
				raw[len(raw)-1], raw[len(raw)-2], k.Port = byte(n), byte(n>>8), 80
			case 1:
				for i := range raw {
					raw[i] = byte(rng.IntN(256))
				}
			}
			k.Addr, _ = netip.AddrFromSlice(raw)
		}
		return k
	}
}

// TestWalk: after each of a long series of changes a packet finds the rules that
// a linear search finds; the chains are the same as those of a tree that was
// made at once; and no chain is long, nor are there too many in a row.
func TestWalk(t *testing.T) {
	for _, bits := range []int{32, 128, 0} {
		t.Run(fmt.Sprintf("%d bits", bits), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(bits), 1))
			next, f := keys(rng, bits), newForest(bits)
			type id struct {
				Key
				owner string
			}
			have := map[id]bool{}
			for step := range 3000 {
				grow := 3
				if step/500%2 == 1 {
					grow = 1 // and shrink in between
				}
				if all := slices.Collect(maps.Keys(have)); len(all) > 0 && rng.IntN(4) >= grow {
					gone := all[rng.IntN(len(all))]
					f.Remove(gone.Key, gone.owner)
					delete(have, gone)
				} else {
					k := id{next(), fmt.Sprint("OWNER-", rng.IntN(3))}
					have[k] = true
					f.put(k.Key, k.owner)
				}
				f.changed()
				if f.Len() != len(have) {
					t.Fatalf("step %d: %d keys, want %d", step, f.Len(), len(have))
				}
				if step%100 != 0 {
					continue
				}
				fresh := newForest(bits)
				for k := range have {
					fresh.put(k.Key, k.owner)
				}
				fresh.changed()
				if diff := cmp.Diff(fresh.chains, f.chains); diff != "" {
					t.Fatalf("step %d: chains (-made at once +step by step):\n%s", step, diff)
				}
				for i := range 200 {
					k := next()
					if all := slices.Collect(maps.Keys(have)); i%2 == 0 && len(all) > 0 {
						k = all[rng.IntN(len(all))].Key
					}
					var want []ruleset.Rule
					for _, o := range []string{"OWNER-0", "OWNER-1", "OWNER-2"} {
						if have[id{k, o}] {
							want = append(want, ruleOf(k, o))
						}
					}
					got, compared, depth := f.walk(t, k, "")
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("step %d: rules for %v (-linear +tree):\n%s", step, k, diff)
					}
					if depth > maxDepth || compared > (maxDepth+1)*leafMax {
						t.Errorf("step %d: %v is compared with %d rules in %d chains", step, k, compared, depth)
					}
				}
			}
		})
	}
}

// TestChangesAreLocal: what a change of one key touches.
func TestChangesAreLocal(t *testing.T) {
	f := newForest(32)
	vip := func(i int) Key { return key(fmt.Sprintf("10.96.%d.%d", i/256, i%256), model.TCP, 80) }
	for i := range leafMax {
		f.put(vip(i), "A")
		if got := f.changed(); !slices.Equal(got, []string{""}) {
			t.Fatalf("key %d touches %q, want the root alone", i, got)
		}
	}
	f.put(vip(leafMax), "A") // 10.96.0.0 to 10.96.0.32
	want := []string{"", "KUBE-SVC-10.96.0.0/28", "KUBE-SVC-10.96.0.16/28", "KUBE-SVC-10.96.0.32/28"}
	if diff := cmp.Diff(want, f.changed()); diff != "" {
		t.Errorf("a split touches (-want +got):\n%s", diff)
	}
	for i := range 10_000 {
		f.put(vip(i), "A")
	}
	f.changed()
	for _, tt := range []struct {
		name string
		do   func()
		want []string
	}{
		{"nothing new", func() { f.put(vip(5000), "A") }, nil},
		{"rules that change", func() { f.Put(vip(5000), "A", nil) }, []string{"KUBE-SVC-10.96.19.128/28"}},
		{"one more", func() { f.put(key("10.96.19.137", model.UDP, 53), "A") }, []string{"KUBE-SVC-10.96.19.128/28"}},
		{"one less", func() { f.Remove(vip(5001), "A") }, []string{"KUBE-SVC-10.96.19.128/28"}},
		{"one that is not there", func() { f.Remove(key("10.96.19.137", model.TCP, 53), "A") }, nil},
		{"one somewhere else", func() { f.put(key("10.97.0.1", model.TCP, 80), "A") }, []string{
			"", "KUBE-SVC-10.96.0.0/16", "KUBE-SVC-10.97.0.0/16",
		}},
		{"and back", func() { f.Remove(key("10.97.0.1", model.TCP, 80), "A") }, []string{
			"", "KUBE-SVC-10.96.0.0/16", "KUBE-SVC-10.97.0.0/16",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.do()
			if diff := cmp.Diff(tt.want, f.changed()); diff != "" {
				t.Errorf("chains touched (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOneAddress: 10,000 ports of one address are spread by their numbers.
func TestOneAddress(t *testing.T) {
	f := newForest(32)
	for i := range 10_000 {
		f.put(key("10.96.0.10", model.TCP, 20_000+i), "A")
	}
	f.changed()
	for _, port := range []int{20_000, 25_000, 29_999} {
		k := key("10.96.0.10", model.TCP, port)
		found, compared, depth := f.walk(t, k, "")
		if len(found) != 1 || compared > 2*leafMax || depth > maxDepth {
			t.Errorf("port %d: %d rules found, compared with %d in %d chains", port, len(found), compared, depth)
		}
	}
}

// TestDepth: keys that are made to have much in common do not make the tree
// deeper than the kernel takes.
func TestDepth(t *testing.T) {
	f := newForest(128)
	n := 0
	for digit := range 32 { // at each level more than fit, which part from the rest
		for i := range leafMax + 1 {
			raw := [16]byte{}
			raw[digit/2] = 1 << (4 * (1 - digit%2))
			f.put(Key{netip.AddrFrom16(raw), model.TCP, uint16(i)}, "A")
			n++
		}
	}
	f.changed()
	for digit := range 32 {
		raw := [16]byte{}
		raw[digit/2] = 1 << (4 * (1 - digit%2))
		found, _, depth := f.walk(t, Key{netip.AddrFrom16(raw), model.TCP, 7}, "")
		if len(found) != 1 || depth > maxDepth {
			t.Errorf("digit %d: %d rules found, in %d chains", digit, len(found), depth)
		}
	}
}

// BenchmarkPut adds and removes one key of many.
func BenchmarkPut(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			f := newForest(32)
			for i := range n {
				f.put(key(fmt.Sprintf("10.96.%d.%d", i/256, i%256), model.TCP, 80), "A")
			}
			f.changed()
			k := key("10.96.0.7", model.UDP, 53)
			b.ReportAllocs()
			for b.Loop() {
				f.put(k, "A")
				f.changed()
				f.Remove(k, "A")
				f.changed()
			}
		})
	}
}
