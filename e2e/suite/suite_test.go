// SPDX-License-Identifier: Apache-2.0

// Package suite says how a Service behaves, and knows nothing of how a proxy
// brings that about: objects in, then real connections from everywhere to every
// address. What has to come out was recorded from kube-proxy.
//
// A scenario is a list of Services. A cell is a question about it: who asks
// which address by which protocol. Its outcome is which endpoints answered and
// whom they saw, or that the connection was refused or dropped. See
// scenarios_test.go for the table, testdata/reference.txt for the outcomes, and
// differences_test.go for where Fairlead means to differ.
//
//	client outside ──┬── node-1 (proxy) ── three pods
//	                 ├── node-2 (proxy) ── three pods
//	                 └── outside: gets, and answers, what no node translates
package suite

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairlead/e2e/build"
	"fairlead/e2e/lab"
)

var (
	record     = flag.Bool("record", false, "record testdata/reference.txt from kube-proxy instead of testing")
	runPending = flag.Bool("pending", false, "run the pending scenarios, too")
)

// binary is the agent under test, built once from this tree by TestMain.
var binary string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fairlead-suite-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// A lock of our own: that of the legacy commands is one for all namespaces,
	// and other tests may hold it for seconds.
	if err := os.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "xtables.lock")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if binary, err = build.Agent(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// TestKernelSuite: every cell is as the reference, or differs as
// differences_test.go says.
func TestKernelSuite(t *testing.T) {
	if *record {
		recordReference(t)
		return
	}
	ref, err := readReference()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range subjects() {
		t.Run(s.name(), func(t *testing.T) {
			r := newRun(t, s)
			for _, sc := range scenarios {
				if !s.asked(sc) {
					continue
				}
				t.Run(sc.name, func(t *testing.T) {
					if find(pending, s.name(), sc, wholly) != nil && !*runPending {
						t.Log("pending")
						return
					}
					want := expected(s.name(), sc, ref.scenarios[sc.name])
					got := r.outcomes(t, sc, want)
					r.doubt(t, sc, want, got)
					compare(t, sc, want, got)
				})
			}
		})
	}
}

// expected returns the outcomes that a scenario is to have for a subject; it leaves out
// pending cells.
func expected(subject string, sc scenario, reference outcomes) outcomes {
	out := outcomes{}
	for _, c := range sc.keys() {
		if find(pending, subject, sc, c) != nil && !*runPending {
			continue
		}
		out[c] = reference[c]
		if d := find(differences, subject, sc, c); d != nil {
			out[c] = d.want
		}
	}
	return out
}

// compare reports each cell whose outcome is not the one to be expected.
func compare(t *testing.T, sc scenario, want, got outcomes) {
	t.Helper()
	for _, c := range sc.keys() {
		if w, ok := want[c]; ok && got[c] != w {
			t.Errorf("%s\n\t got: %s\n\twant: %s", c, got[c], w)
		}
	}
	if skipped := len(sc.keys()) - len(want); skipped > 0 {
		t.Logf("%d cells are pending", skipped)
	}
}

// maxDoubts is how many cells are asked again at most: more of them are no
// accident.
const maxDoubts = 20

// doubt asks again, one after the other, cells in which an answer was missing: on
// a machine that is busy it may just have been late.
func (r *run) doubt(t *testing.T, sc scenario, want, got outcomes) {
	t.Helper()
	var again []cell
	for _, c := range sc.cells() {
		if w, ok := want[c]; ok && got[c] != w && strings.Contains(got[c], dropped) {
			again = append(again, c)
		}
	}
	if sc.sticky || len(again) > maxDoubts {
		return
	}
	for _, c := range again {
		before := got[c]
		got[c], _ = ask(t.Context(), r.topo, newLoad(), sc, c, want[c])
		t.Logf("%s: asked with others: %s; alone: %s", c, before, got[c])
	}
}

// run is a lab with a proxy on each node.
type run struct {
	topo  *topology
	feed  feed
	procs []*process
	turn  int
}

// newRun starts a subject on both nodes. It skips where the machine cannot run
// it, and ends with the test.
func newRun(t *testing.T, s subject) *run {
	t.Helper()
	ctx := context.Background()
	for _, supported := range []func(context.Context) error{lab.Supported, s.supported} {
		if err := supported(ctx); errors.Is(err, lab.ErrNotSupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	topo, err := newTopology(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(s.name(), "ipvs") {
		topo.keepApart()
	}
	r := &run{topo: topo}
	t.Cleanup(func() { r.close(t) })
	if r.feed, err = s.feed(ctx, topo); err != nil {
		t.Fatal(err)
	}
	if err := r.feed.set(ctx, nodes(topo)); err != nil {
		t.Fatal(err)
	}
	for _, n := range topo.lab.Nodes {
		p, err := start(n.Label, s.command(ctx, n, r.feed))
		if err != nil {
			t.Fatal(err)
		}
		r.procs = append(r.procs, p)
	}
	return r
}

// outcomes gives the proxies a scenario's objects, waits until they have them,
// and asks all cells.
func (r *run) outcomes(t *testing.T, sc scenario, want outcomes) outcomes {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := marks{turn: r.turn, health: sc.asks(toHealthCheck)}
	r.turn++
	started := time.Now()
	if err := r.feed.set(ctx, m.objects(r.topo, sc)); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(ctx, m); err != nil {
		t.Fatalf("wait for the proxies to have the scenario: %v", err)
	}
	if err := r.topo.forget(); err != nil {
		t.Fatal(err)
	}
	ready := time.Now()
	out, err := askAll(ctx, r.topo, sc, want)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cells; in effect after %s, asked in %s", len(out), ready.Sub(started).Round(time.Millisecond),
		time.Since(ready).Round(time.Millisecond))
	return out
}

// wait waits for the marks, but not for a proxy that has ended.
func (r *run) wait(ctx context.Context, m marks) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, p := range r.procs {
		go func() {
			select {
			case <-p.done:
				cancel(fmt.Errorf("the proxy on %s has ended (%s)", p.label, p.cmd.ProcessState))
			case <-ctx.Done():
			}
		}()
	}
	return m.wait(ctx, r.topo)
}

func (r *run) close(t *testing.T) {
	for _, p := range r.procs {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the proxy on %s:\n%s", p.label, p.log.String())
		}
	}
	if r.feed != nil {
		if err := r.feed.close(); err != nil {
			t.Error(err)
		}
	}
	if err := r.topo.lab.Close(); err != nil {
		t.Error(err)
	}
}
