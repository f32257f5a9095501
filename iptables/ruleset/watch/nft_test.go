// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
)

// fakeSource is a queue of datagrams.
type fakeSource struct {
	gen    uint32
	queue  [][]byte
	lost   bool
	broken error
	mute   error
	wait   chan struct{}
	closed bool
}

func (f *fakeSource) Wait() error { <-f.wait; return nil }

func (f *fakeSource) Receive(use func([]byte)) error {
	queue := f.queue
	f.queue = nil
	for _, b := range queue {
		use(b)
	}
	if f.lost {
		f.lost = false
		return errLost
	}
	return f.broken
}

func (f *fakeSource) Generation() (uint32, error) { return f.gen, f.mute }

func (f *fakeSource) Stop() { close(f.wait) }

func (f *fakeSource) Close() error { f.closed = true; return nil }

// commit queues what a commit with these messages sends, from a sender.
func (f *fakeSource) commit(from uint32, messages ...[]byte) {
	f.gen++
	batch, end := concat(messages...), genMsg(f.gen)
	for rest := batch; len(rest) > 0; rest = rest[sizeOf(rest):] {
		setSender(rest, from)
	}
	setSender(end, from)
	f.queue = append(f.queue, batch, end)
}

func fakeNFT(f *fakeSource) *NFT {
	w, err := newNFT(testConfig(kerneltest.Setup{Variant: ruleset.NFT}), f)
	if err != nil {
		panic(err)
	}
	return w
}

// listedNFT returns a watcher that knows everything.
func listedNFT(t *testing.T) (*NFT, *fakeSource) {
	t.Helper()
	f := &fakeSource{gen: 41, wait: make(chan struct{})}
	w := fakeNFT(f)
	if got := w.Take(); !got.All {
		t.Fatalf("the first Take() = %v, want All", got)
	}
	w.Listed(time.Second)
	if got := w.Take(); got.All {
		t.Fatalf("after Listed() Take() = %v, want nothing", got)
	}
	return w, f
}

// rule is a message about a rule in a chain, "nat/KUBE-A", or about one that leads
// on, "nat/KUBE-A>KUBE-B".
func rule(s string) []byte {
	path, target, _ := strings.Cut(s, ">")
	table, chain, _ := strings.Cut(path, "/")
	return ruleMsg(unix.NFT_MSG_NEWRULE, table, chain, target)
}

func suspects(s ruleset.Suspects) string {
	if s.All {
		return "all"
	}
	var out []string
	for _, c := range s.Chains {
		out = append(out, c.String())
	}
	return strings.Join(out, " ")
}

// TestSuspects: which messages make which chains suspect.
func TestSuspects(t *testing.T) {
	const created = unix.NLM_F_CREATE
	ip6 := rule("nat/KUBE-A")
	ip6[headerSize] = unix.NFPROTO_IPV6
	long := rule("nat/X>KUBE-A")
	long[headerSize+nfHeaderSize] = 255
	var many [][]byte
	for i := range maxChains + 1 {
		many = append(many, chainMsg(unix.NFT_MSG_DELCHAIN, 0, "nat", fmt.Sprintf("KUBE-%d", i)))
	}
	for _, test := range []struct {
		name     string
		messages [][]byte
		want     string
	}{
		{"rule of ours", [][]byte{rule("nat/KUBE-A")}, "nat/KUBE-A"},
		{"rules of ours", [][]byte{rule("nat/KUBE-B>KUBE-A"), rule("nat/KUBE-A"), rule("filter/KUBE-B>X"), rule("nat/KUBE-A")}, "filter/KUBE-B nat/KUBE-A nat/KUBE-B"},
		{"deleted rule", [][]byte{ruleMsg(unix.NFT_MSG_DELRULE, "nat", "KUBE-A", "")}, "nat/KUBE-A"},
		{"built-in chains", [][]byte{rule("nat/PREROUTING"), rule("nat/POSTROUTING>X"), rule("filter/INPUT"), rule("filter/FORWARD"), rule("filter/OUTPUT")},
			"filter/FORWARD filter/INPUT filter/OUTPUT nat/POSTROUTING nat/PREROUTING"},
		{"foreign chain", [][]byte{rule("nat/X"), rule("nat/X>Y"), chainMsg(unix.NFT_MSG_NEWCHAIN, created, "nat", "X"), chainMsg(unix.NFT_MSG_DELCHAIN, 0, "nat", "X")}, ""},
		{"foreign chain that leads to ours", [][]byte{rule("nat/X>KUBE-A")}, "nat/X"},
		{"foreign chain that did", [][]byte{ruleMsg(unix.NFT_MSG_DELRULE, "filter", "X", "KUBE-A")}, "filter/X"},
		{"foreign chain that may lead to ours", [][]byte{msg(unix.NFT_MSG_NEWRULE, unix.NFPROTO_IPV4, 0,
			attrText(unix.NFTA_RULE_TABLE, "nat"), attrText(unix.NFTA_RULE_CHAIN, "X"), attr(unix.NFTA_RULE_EXPRESSIONS, []byte{9, 9}))}, "nat/X"},
		{"chain of ours", [][]byte{chainMsg(unix.NFT_MSG_NEWCHAIN, created, "nat", "KUBE-A"), chainMsg(unix.NFT_MSG_DELCHAIN, 0, "nat", "KUBE-B")}, "nat/KUBE-A nat/KUBE-B"},
		{"chain renamed", [][]byte{chainMsg(unix.NFT_MSG_NEWCHAIN, 0, "nat", "X")}, "all"},
		{"policy", [][]byte{chainMsg(unix.NFT_MSG_NEWCHAIN, 0, "filter", "INPUT")}, "filter/INPUT"},
		{"new table", [][]byte{tableMsg(unix.NFT_MSG_NEWTABLE, "nat")}, ""},
		{"deleted table", [][]byte{rule("nat/KUBE-A"), tableMsg(unix.NFT_MSG_DELTABLE, "nat")}, "all"},
		{"other table", [][]byte{rule("mangle/KUBE-A"), tableMsg(unix.NFT_MSG_DELTABLE, "raw")}, ""},
		{"other family", [][]byte{ip6}, ""},
		{"set", [][]byte{msg(unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_IPV4, 0, attrText(1, "nat"), attrText(2, "KUBE-A"))}, ""},
		{"too many chains", many, "all"},
		{"malformed", [][]byte{long}, "all"},
		{"generation without a number", [][]byte{msg(unix.NFT_MSG_NEWGEN, 0, 0)}, "all"},
		{"half a header", [][]byte{{1, 2, 3}}, "all"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, f := listedNFT(t)
				time.Sleep(restSoon * time.Second)
				f.gen++
				f.queue = append(test.messages, genMsg(f.gen))
				if got := suspects(w.Take()); got != test.want {
					t.Errorf("Take() = %q, want %q", got, test.want)
				}
				w.Listed(time.Second)
				f.commit(1, rule("nat/KUBE-Z"))
				if got, want := suspects(w.Take()), "nat/KUBE-Z"; got != want {
					t.Errorf("then Take() = %q, want %q", got, want)
				}
			})
		})
	}
}

// TestWindow: what happens between Begin and End is ours as far as it is what
// End says.
func TestWindow(t *testing.T) {
	ours, theirs := rule("nat/KUBE-A"), rule("nat/KUBE-B")
	ip6 := rule("nat/KUBE-B")
	ip6[headerSize] = unix.NFPROTO_IPV6
	ok := func(sections, pid int) ruleset.Committed {
		return ruleset.Committed{OK: true, Sections: sections, PID: pid}
	}
	const both = "nat/KUBE-A nat/KUBE-B"
	for _, test := range []struct {
		name   string
		during func(f *fakeSource)
		end    ruleset.Committed
		want   string
	}{
		{"nothing", func(*fakeSource) {}, ok(0, 0), ""},
		{"ours", func(f *fakeSource) { f.commit(1, ours) }, ok(1, 0), ""},
		{"ours, of two sections", func(f *fakeSource) { f.commit(1, ours); f.commit(1, rule("filter/KUBE-A")) }, ok(2, 0), ""},
		{"ours, and a section that makes a table", func(f *fakeSource) { f.commit(1, tableMsg(unix.NFT_MSG_NEWTABLE, "filter")); f.commit(1, ours) }, ok(2, 0), ""},
		{"theirs as well", func(f *fakeSource) { f.commit(1, ours); f.commit(2, theirs) }, ok(1, 0), both},
		{"theirs as well, and ours is known", func(f *fakeSource) { f.commit(2, theirs); f.commit(1, ours) }, ok(1, 1), "nat/KUBE-B"},
		{"theirs between our sections", func(f *fakeSource) { f.commit(1, ours); f.commit(2, theirs); f.commit(1, ours) }, ok(2, 0), "nat/KUBE-B"},
		{"theirs in another family", func(f *fakeSource) { f.commit(1, ours); f.commit(2, ip6) }, ok(1, 0), ""},
		{"theirs of no concern", func(f *fakeSource) { f.commit(2, rule("nat/X")); f.commit(1, ours) }, ok(1, 1), ""},
		{"theirs under our process ID", func(f *fakeSource) { f.commit(1, ours); f.commit(1, theirs) }, ok(1, 1), both},
		{"theirs alone", func(f *fakeSource) { f.commit(2, theirs) }, ok(0, 1), "nat/KUBE-B"},
		{"fewer than ours", func(f *fakeSource) { f.commit(1, ours) }, ok(2, 1), "nat/KUBE-A"},
		{"ours failed", func(f *fakeSource) { f.commit(1, ours) }, ruleset.Committed{Sections: 1, PID: 1}, "nat/KUBE-A"},
		{"lost, ours", func(f *fakeSource) { f.gen += 2; f.lost = true }, ok(2, 1), ""},
		{"lost, theirs as well", func(f *fakeSource) { f.gen += 3; f.lost = true }, ok(2, 1), "all"},
		{"lost, ours failed", func(f *fakeSource) { f.gen += 2; f.lost = true }, ruleset.Committed{Sections: 2}, "all"},
		{"lost, and the generation is not known", func(f *fakeSource) { f.gen += 2; f.lost, f.mute = true, errors.New("mute") }, ok(0, 1), "all"},
		{"gap in generations", func(f *fakeSource) { f.commit(1, ours); f.gen++; f.commit(1, ours) }, ok(2, 1), "all"},
		{"gap, but all ours", func(f *fakeSource) { f.gen++; f.commit(1, ours) }, ok(2, 1), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, f := listedNFT(t)
				time.Sleep(restSoon * time.Second)
				w.Begin()
				test.during(f)
				w.End(test.end)
				if got := suspects(w.Take()); got != test.want {
					t.Errorf("Take() = %q, want %q", got, test.want)
				}
			})
		})
	}
}

// TestManyCommits: the chains that nobody takes are bounded.
func TestManyCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := listedNFT(t)
		time.Sleep(restSoon * time.Second)
		for i := range maxChains + 1 {
			f.commit(1, rule(fmt.Sprintf("nat/KUBE-%d", i)))
		}
		if got := w.Take(); !got.All || len(got.Chains) > 0 {
			t.Errorf("Take() = All: %t and %d chains, want All", got.All, len(got.Chains))
		}
	})
}

// TestCommitAtEdge: a commit of others that is being announced at Begin or End
// is not ours.
func TestCommitAtEdge(t *testing.T) {
	w, f := listedNFT(t)
	f.queue = [][]byte{rule("nat/KUBE-B")}
	w.Begin()
	f.queue = [][]byte{genMsg(42)}
	f.gen = 42
	f.commit(1, rule("nat/KUBE-A"))
	f.queue = append(f.queue, rule("nat/KUBE-C"))
	w.End(ruleset.Committed{OK: true, Sections: 1, PID: 1})
	f.gen++
	f.queue = [][]byte{genMsg(f.gen)}
	want := []ruleset.ChainKey{natKey("KUBE-B"), natKey("KUBE-C")}
	if diff := cmp.Diff(want, w.Take().Chains); diff != "" {
		t.Errorf("Take().Chains (-want +got):\n%s", diff)
	}
}

// TestLost: after a loss everything is read, once, and not too soon.
func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := listedNFT(t)
		start := time.Now()
		f.lost = true
		f.gen += 7
		f.commit(1, rule("nat/KUBE-A"))
		f.gen++ // while it was asked for
		if got, want := suspects(w.Take()), "nat/KUBE-A"; got != want {
			t.Errorf("at once Take() = %q, want %q", got, want)
		}
		<-w.Wake()
		if got := time.Since(start); got != restSoon*time.Second {
			t.Errorf("everything is to be read after %s, want %s", got, restSoon*time.Second)
		}
		for range 2 { // the first reading fails
			if got := suspects(w.Take()); got != "all" {
				t.Errorf("Take() = %q, want all", got)
			}
		}
		f.commit(2, rule("nat/KUBE-B")) // while reading
		w.Listed(time.Second)
		if got, want := suspects(w.Take()), "nat/KUBE-B"; got != want {
			t.Errorf("after Listed() Take() = %q, want %q", got, want)
		}
		time.Sleep(time.Hour)
		if diff := cmp.Diff(ruleset.Suspects{}, w.Take(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("an hour later Take() (-want +got):\n%s", diff)
		}
	})
}

// TestLostWhileListing: what a listing may have missed is read again.
func TestLostWhileListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := listedNFT(t)
		w.Take()
		f.commit(1, tableMsg(unix.NFT_MSG_DELTABLE, "nat"))
		if err := w.receive(); err != nil {
			t.Fatal(err)
		}
		w.Listed(2 * time.Second)
		if got := suspects(w.Take()); got != "" {
			t.Errorf("at once Take() = %q, want nothing", got)
		}
		time.Sleep(restSoon * 2 * time.Second)
		if got := suspects(w.Take()); got != "all" {
			t.Errorf("Take() = %q, want all", got)
		}
	})
}

// TestRun: Run takes in what comes, and frees what it used.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f := listedNFT(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.Run(ctx) }()
		f.commit(1, rule("nat/KUBE-A"))
		f.wait <- struct{}{}
		<-w.Wake()
		if got, want := suspects(w.Take()), "nat/KUBE-A"; got != want {
			t.Errorf("Take() = %q, want %q", got, want)
		}
		cancel()
		if err := <-ended; err != nil || !f.closed {
			t.Errorf("Run() = %v, closed = %t", err, f.closed)
		}
		w.Listed(time.Second)
		if got := suspects(w.Take()); got != "all" {
			t.Errorf("after Run() Take() = %q, want all", got)
		}
	})
}

// TestBroken: when nothing can be received any more, Run does not try for ever,
// and nothing is taken for unchanged.
func TestBroken(t *testing.T) {
	w, f := listedNFT(t)
	f.broken = errors.New("broken")
	go func() { f.wait <- struct{}{} }()
	if err := w.Run(t.Context()); !errors.Is(err, f.broken) {
		t.Errorf("Run() = %v, want %v", err, f.broken)
	}
	if got := suspects(w.Take()); got != "all" || !f.closed {
		t.Errorf("Take() = %q, closed = %t, want all", got, f.closed)
	}
}

// BenchmarkReceive is the cost of one rule in a commit of ours, whose messages
// are of no use to us.
func BenchmarkReceive(b *testing.B) {
	f := &fakeSource{}
	w := fakeNFT(f)
	m := rule("nat/KUBE-SEP-ABCDEFGHIJKLMNOP>KUBE-MARK-MASQ")
	w.Begin()
	b.ReportAllocs()
	for b.Loop() {
		w.datagram(m)
	}
}
