// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testConfig owns the chains with the prefix KUBE-.
func testConfig(s kerneltest.Setup) Config {
	return Config{
		IPv6: s.IPv6, Tables: []ruleset.Table{ruleset.NAT, ruleset.Filter},
		Owns: func(k ruleset.ChainKey) bool { return strings.HasPrefix(k.Name, "KUBE-") },
	}
}

func natKey(name string) ruleset.ChainKey { return ruleset.ChainKey{Table: ruleset.NAT, Name: name} }

func filterKey(name string) ruleset.ChainKey {
	return ruleset.ChainKey{Table: ruleset.Filter, Name: name}
}

// kernel is a watched namespace.
type kernel struct {
	*kerneltest.Host
	t     testing.TB
	setup kerneltest.Setup
	w     ruleset.Watcher
}

// watched returns a namespace with a watcher that runs until the test ends.
func watched(t testing.TB, s kerneltest.Setup) *kernel {
	t.Helper()
	k := &kernel{Host: kerneltest.New(t, s), t: t, setup: s}
	var run func(context.Context) error
	err := k.Enter(func() error {
		if s.Variant == ruleset.NFT {
			w, err := NewNFT(testConfig(s))
			if err == nil {
				k.w, run = w, w.Run
			}
			return err
		}
		w, err := NewLegacy(testConfig(s))
		if err == nil {
			k.w, run = w, w.Run
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if got := k.w.Take(); !got.All {
		t.Fatalf("the first Take() = %v, want All", got)
	}
	return k
}

// ours restores text as the engine does it.
func (k *kernel) ours(c ruleset.Committed, text string) {
	k.t.Helper()
	k.w.Begin()
	k.restore(&c, text)
	k.w.End(c)
}

func (k *kernel) restore(c *ruleset.Committed, text string) {
	k.t.Helper()
	var cmd *exec.Cmd
	err := k.Enter(func() error {
		cmd = exec.Command(k.setup.Commands().Restore, "--noflush", "-w", "5")
		cmd.Stdin, cmd.Stderr = strings.NewReader(text), os.Stderr
		return cmd.Run()
	})
	if err != nil {
		k.t.Fatalf("restore: %v\n%s", err, text)
	}
	c.OK, c.PID = true, cmd.Process.Pid
}

// listed says that everything has been read in no time, so that nothing is put
// off for long.
func (k *kernel) listed() {
	k.w.Take()
	k.w.Listed(time.Nanosecond)
}

// quiet fails the test if anything is suspect, now or in the next minutes.
func (k *kernel) quiet(what string) {
	k.t.Helper()
	if got := k.w.Take(); got.All || len(got.Chains) > 0 {
		k.t.Errorf("%s: Take() = %+v, want nothing", what, got)
	}
	var due time.Time
	switch w := k.w.(type) {
	case *NFT:
		due = w.found.due
	case *Legacy:
		due = w.found.due
	}
	if !due.IsZero() && time.Until(due) < auditLeast/2 {
		k.t.Errorf("%s: everything is to be read at %s", what, due)
	}
}

// awake waits for a token.
func (k *kernel) awake(what string) {
	k.t.Helper()
	select {
	case <-k.w.Wake():
	case <-time.After(time.Minute):
		k.t.Fatalf("%s: no token", what)
	}
}

// fixture is what is there before others come.
const fixture = "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n-A KUBE-A -j KUBE-B\n-A PREROUTING -j KUBE-A\nCOMMIT\n" +
	"*filter\n:KUBE-F - [0:0]\n-A INPUT -j KUBE-F\nCOMMIT\n"

// TestKernelOwn: what we do ourselves is not suspect.
func TestKernelOwn(t *testing.T) {
	growth := func(nat, filter ruleset.Growth) map[ruleset.Table]ruleset.Growth {
		return map[ruleset.Table]ruleset.Growth{ruleset.NAT: nat, ruleset.Filter: filter}
	}
	steps := []struct {
		name, text string
		c          ruleset.Committed
	}{
		{"new tables and base chains", fixture, ruleset.Committed{Sections: 2, Growth: growth(ruleset.Growth{Chains: 2, Rules: 2}, ruleset.Growth{Chains: 1, Rules: 1})}},
		{"same rules again", "*nat\n:KUBE-A - [0:0]\n-A KUBE-A -j KUBE-B\nCOMMIT\n", ruleset.Committed{Sections: 1, Growth: growth(ruleset.Growth{}, ruleset.Growth{})}},
		{"nothing", "*nat\n:KUBE-B - [0:0]\nCOMMIT\n*filter\nCOMMIT\n", ruleset.Committed{Growth: growth(ruleset.Growth{}, ruleset.Growth{})}},
		{"a table twice", "*filter\n:KUBE-G - [0:0]\n-A KUBE-G -j DROP\nCOMMIT\n*nat\n-I KUBE-A -j RETURN\nCOMMIT\n*filter\n:KUBE-G - [0:0]\n-X KUBE-G\nCOMMIT\n",
			ruleset.Committed{Sections: 3, Growth: growth(ruleset.Growth{Rules: 1}, ruleset.Growth{})}},
		{"removals", "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n-D PREROUTING -j KUBE-A\n-X KUBE-A\n-X KUBE-B\nCOMMIT\n",
			ruleset.Committed{Sections: 1, Growth: growth(ruleset.Growth{Chains: -2, Rules: -3}, ruleset.Growth{})}},
		{"not counted", "*nat\n:KUBE-A - [0:0]\nCOMMIT\n", ruleset.Committed{Sections: 1}},
	}
	onKernel(t, func(t *testing.T, s kerneltest.Setup) {
		k := watched(t, s)
		k.listed()
		for range 5 {
			for _, step := range steps {
				k.ours(step.c, step.text)
				k.quiet(step.name)
			}
			k.restore(&ruleset.Committed{}, "*filter\n-D INPUT -j KUBE-F\n-X KUBE-F\nCOMMIT\n*nat\n-X KUBE-A\nCOMMIT\n")
			k.listed()
		}
	})
}

// onKernel runs a test with every variant and family that works here.
func onKernel(t *testing.T, f func(t *testing.T, s kerneltest.Setup)) {
	for _, s := range kerneltest.Setups() {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			f(t, s)
		})
	}
}

// TestKernelOthers: what others do is suspect where it concerns us.
func TestKernelOthers(t *testing.T) {
	const all, none = "all", ""
	for _, test := range []struct {
		name string
		// do are commands, with IPT for the variant's. A word with a line break is
		// restored.
		do []string
		// nft and legacy are the suspects.
		nft, legacy string
	}{
		{"rule added", []string{"IPT -t nat -A KUBE-B -j RETURN"}, "nat/KUBE-B", all},
		{"rule deleted", []string{"IPT -t nat -D KUBE-A -j KUBE-B"}, "nat/KUBE-A", all},
		{"chain flushed", []string{"IPT -t nat -F KUBE-A"}, "nat/KUBE-A", all},
		{"table flushed", []string{"IPT -t nat -F"}, "nat/KUBE-A nat/PREROUTING", all},
		{"jump deleted", []string{"IPT -t nat -D PREROUTING 1"}, "nat/PREROUTING", all},
		{"rule in a built-in chain", []string{"IPT -A FORWARD -j ACCEPT"}, "filter/FORWARD", all},
		{"rule in a foreign chain", []string{"IPT -t nat -A OTHER -j RETURN"}, none, all},
		{"foreign jump to ours", []string{"IPT -t nat -A OTHER -p tcp -m comment --comment x -j KUBE-B"}, "nat/OTHER", all},
		{"foreign goto to ours, deleted", []string{"IPT -t nat -A OTHER -g KUBE-B", "IPT -t nat -F OTHER"}, "nat/OTHER", none},
		{"chain of our name", []string{"IPT -t nat -N KUBE-C"}, "nat/KUBE-C", all},
		{"foreign chain made", []string{"IPT -t nat -N MORE"}, none, all},
		{"foreign chain deleted", []string{"IPT -t nat -X OTHER"}, none, all},
		{"chain deleted", []string{"IPT -F INPUT", "IPT -X KUBE-F"}, "filter/INPUT filter/KUBE-F", all},
		{"chain renamed", []string{"IPT -t nat -E KUBE-B OTHER-B"}, all, none},
		{"rule replaced, of the same size", []string{"IPT -t nat -R KUBE-A 1 -j RETURN"}, "nat/KUBE-A", none},
		{"table replaced", []string{"RESTORE *filter\nCOMMIT"}, all, all},
		{"policy", []string{"IPT -P FORWARD DROP"}, "filter/FORWARD", none},
		{"other table", []string{"IPT -t mangle -A PREROUTING -j ACCEPT"}, none, none},
		{"other family", []string{"OTHER -A INPUT -j ACCEPT"}, none, none},
		{"other program's table", []string{"nft add table inet kube", "nft add chain inet kube KUBE-A"}, none, none},
		{"set in our table", []string{"nft add set FAMILY nat s { type inet_service; }", "nft add element FAMILY nat s { 1, 2 }"}, none, none},
		{"table deleted", []string{"nft delete table FAMILY filter"}, all, none},
		{"ruleset flushed", []string{"nft flush ruleset"}, all, none},
	} {
		t.Run(test.name, func(t *testing.T) {
			onKernel(t, func(t *testing.T, s kerneltest.Setup) {
				if s.Variant == ruleset.Legacy && strings.HasPrefix(test.do[0], "nft ") {
					return
				}
				k := watched(t, s)
				k.ours(ruleset.Committed{Sections: 2}, fixture)
				k.restore(&ruleset.Committed{}, "*nat\n:OTHER - [0:0]\nCOMMIT\n*filter\n-P FORWARD ACCEPT\nCOMMIT\n")
				k.listed()
				for _, line := range test.do {
					k.foreign(line)
				}
				want := test.nft
				if s.Variant == ruleset.Legacy {
					want = test.legacy
				}
				switch want {
				case none:
					k.quiet("Take")
				case all:
					k.awake("all")
					if got := k.w.Take(); !got.All {
						t.Errorf("Take() = %+v, want All", got)
					}
					k.w.Listed(time.Nanosecond)
				default:
					k.awake(want)
					var got []string
					for _, c := range k.w.Take().Chains {
						got = append(got, c.String())
					}
					if diff := cmp.Diff(strings.Fields(want), got); diff != "" {
						t.Errorf("Take().Chains (-want +got):\n%s", diff)
					}
				}
				k.quiet("Take again")
			})
		})
	}
}

// foreign runs a command of somebody else.
func (k *kernel) foreign(line string) {
	k.t.Helper()
	other := kerneltest.Setup{Variant: k.setup.Variant, IPv6: !k.setup.IPv6}
	if text, ok := strings.CutPrefix(line, "RESTORE "); ok {
		err := k.Run(context.Background(), ruleset.Command{Name: k.setup.Commands().Restore, Stdin: strings.NewReader(text + "\n")})
		if err != nil {
			k.t.Fatal(err)
		}
		return
	}
	family := map[bool]string{false: "ip", true: "ip6"}[k.setup.IPv6]
	words := strings.Fields(strings.NewReplacer("IPT", k.setup.String()+" -w", "OTHER -A", other.String()+" -w -A", "FAMILY", family).Replace(line))
	k.Do(words[0], words[1:]...)
}

// TestKernelWindow: what others do between Begin and End is suspect, and what
// we do is not.
func TestKernelWindow(t *testing.T) {
	for _, test := range []struct {
		name          string
		before, after string // our restore
		nft           []ruleset.ChainKey
		legacy        bool // whether everything
	}{
		{"before", "IPT -t nat -A KUBE-B -j RETURN", "", []ruleset.ChainKey{natKey("KUBE-B")}, true},
		{"after", "", "IPT -t nat -A KUBE-B -j RETURN", []ruleset.ChainKey{natKey("KUBE-B")}, true},
		{"both", "IPT -t nat -A OUTPUT -j RETURN", "IPT -t nat -F OUTPUT", []ruleset.ChainKey{natKey("OUTPUT")}, false},
		{"flush", "IPT -t nat -F PREROUTING", "", []ruleset.ChainKey{natKey("PREROUTING")}, true},
		{"other family and table", "OTHER -A INPUT -j ACCEPT", "IPT -t mangle -A INPUT -j ACCEPT", nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			onKernel(t, func(t *testing.T, s kerneltest.Setup) {
				k := watched(t, s)
				k.ours(ruleset.Committed{Sections: 2}, fixture)
				k.listed()
				k.w.Begin()
				if test.before != "" {
					k.foreign(test.before)
				}
				c := ruleset.Committed{Sections: 1, Growth: map[ruleset.Table]ruleset.Growth{ruleset.NAT: {Chains: 1, Rules: 1}}}
				k.restore(&c, "*nat\n:KUBE-C - [0:0]\n-A KUBE-C -j RETURN\nCOMMIT\n")
				if test.after != "" {
					k.foreign(test.after)
				}
				k.w.End(c)
				if s.Variant == ruleset.NFT {
					if diff := cmp.Diff(ruleset.Suspects{Chains: test.nft}, k.w.Take(), cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("Take() (-want +got):\n%s", diff)
					}
				} else if test.legacy {
					k.awake("all")
					if !k.w.Take().All {
						t.Error("Take() is not All")
					}
					k.w.Listed(time.Nanosecond)
				}
				k.quiet("after")
			})
		})
	}
}

// TestKernelAtOnce: commits of ours and of others at the same time are told
// apart, also where one makes the other start anew.
func TestKernelAtOnce(t *testing.T) {
	s := kerneltest.Setup{Variant: ruleset.NFT}
	k := watched(t, s)
	k.ours(ruleset.Committed{Sections: 2}, fixture)
	k.listed()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = k.Restore(s, "*nat\n:KUBE-B - [0:0]\n-A KUBE-B -j RETURN\nCOMMIT\n")
			}
		}
	}()
	var seen int
	for range 50 {
		k.ours(ruleset.Committed{Sections: 2}, "*nat\n:KUBE-C - [0:0]\n-A KUBE-C -j RETURN\nCOMMIT\n*filter\n:KUBE-F - [0:0]\n-A KUBE-F -j RETURN\nCOMMIT\n")
		got := k.w.Take()
		if got.All || len(got.Chains) > 1 || len(got.Chains) == 1 && got.Chains[0] != natKey("KUBE-B") {
			t.Errorf("Take() = %v, want nothing but KUBE-B", got)
		}
		seen += len(got.Chains)
	}
	close(stop)
	<-stopped
	if seen < 10 {
		t.Errorf("others were seen %d times in 50 restores", seen)
	}
}

// TestKernelLost: where messages are lost the generation tells whether they
// were all ours.
func TestKernelLost(t *testing.T) {
	var large strings.Builder
	large.WriteString("*nat\n:KUBE-C - [0:0]\n")
	for range 500 {
		large.WriteString("-A KUBE-C -m comment --comment \"" + strings.Repeat("x", 200) + "\" -j RETURN\n")
	}
	large.WriteString("COMMIT\n")
	for _, test := range []struct {
		name    string
		ours    bool
		foreign string // in between
		all     bool
	}{
		{"ours", true, "", false},
		{"others'", false, "", true},
		{"ours, and others between", true, "IPT -t nat -A KUBE-B -j RETURN", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := kerneltest.Setup{Variant: ruleset.NFT}
			k := &kernel{Host: kerneltest.New(t, s), t: t, setup: s}
			var w *NFT
			err := k.Enter(func() error {
				source, err := openSocket(4 << 10)
				if err == nil {
					w, err = newNFT(testConfig(s), source)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer w.close()
			k.w = w
			k.ours(ruleset.Committed{Sections: 2}, fixture)
			k.listed()
			k.quiet("before")
			c := ruleset.Committed{Sections: 1}
			if test.ours {
				w.Begin()
			}
			k.restore(&c, large.String())
			if test.foreign != "" {
				k.foreign(test.foreign)
			}
			if test.ours {
				if err := w.receive(); err != nil {
					t.Fatal(err)
				}
				if !w.window.lost {
					t.Fatal("nothing was lost")
				}
				w.End(c)
			}
			if got := k.w.Take(); got.All != test.all || len(got.Chains) > 0 {
				t.Errorf("Take() = %v, want All = %v", got, test.all)
			}
			k.listed()
			k.foreign("IPT -t nat -A KUBE-B -j RETURN")
			want := ruleset.Suspects{Chains: []ruleset.ChainKey{natKey("KUBE-B")}}
			if diff := cmp.Diff(want, k.w.Take()); diff != "" {
				t.Errorf("afterwards Take() (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelNoTables: a table is not made because it is watched.
func TestKernelNoTables(t *testing.T) {
	s := kerneltest.Setup{Variant: ruleset.NFT} // leaves the legacy tables alone
	h := kerneltest.New(t, s)
	err := h.Enter(func() error {
		x, err := openXTables(Config{Tables: []ruleset.Table{ruleset.NAT, ruleset.Filter}})
		if err != nil {
			return err
		}
		defer x.Close()
		infos, err := x.Infos()
		if len(infos) > 0 {
			t.Errorf("Infos() = %v, want none", infos)
		}
		names, _ := x.list()
		if len(names) > 0 {
			t.Errorf("tables are there: %v", names)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
