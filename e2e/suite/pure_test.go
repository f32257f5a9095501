// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
)

// TestReferenceRoundTrip: whichever cells have the same outcome, what is read
// is what was written.
func TestReferenceRoundTrip(t *testing.T) {
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	for range 20 {
		want := reference{"v1.2.3", map[string]outcomes{}}
		for _, s := range scenarios {
			out := outcomes{}
			for _, c := range s.keys() {
				out[c] = fmt.Sprintf("outcome %d", random.IntN(3))
			}
			want.scenarios[s.name] = out
		}
		got, err := parseReference(want.String())
		if err != nil {
			t.Fatal(err)
		}
		if got.version != want.version {
			t.Fatalf("got version %s, want %s", got.version, want.version)
		}
		for _, s := range scenarios {
			for _, c := range s.keys() {
				if g, w := got.scenarios[s.name][c], want.scenarios[s.name][c]; g != w {
					t.Fatalf("%s: %s: got %q, want %q", s.name, c, g, w)
				}
			}
		}
	}
}

func TestScenarioNamesAndCellsAreUnique(t *testing.T) {
	names := map[string]bool{}
	for _, s := range scenarios {
		if names[s.name] {
			t.Errorf("two scenarios are called %s", s.name)
		}
		names[s.name] = true
		cells := map[cell]bool{}
		for _, c := range s.keys() {
			if cells[c] {
				t.Errorf("%s: %s is asked twice", s.name, c)
			}
			cells[c] = true
		}
	}
}

// TestRequests: in no run of the suite is it likely that a cell misses one of
// its endpoints.
func TestRequests(t *testing.T) {
	missed := 0.0
	for _, s := range scenarios {
		n := 1.0
		for _, svc := range s.services {
			n = max(n, float64(len(svc.endpoints)))
		}
		if n > 1 {
			missed += float64(len(s.cells())) * n * math.Pow(1-1/n, float64(s.requests()))
		}
	}
	if missed > 1e-4 {
		t.Errorf("one of %.0f runs misses an endpoint, want at least 10000", 1/missed)
	}
}

// TestLanes: each cell is asked once, and those of one client of a sticky
// scenario one after the other.
func TestLanes(t *testing.T) {
	for _, s := range scenarios {
		lanes, asked := s.lanes(), map[cell]bool{}
		for _, lane := range lanes {
			for _, c := range lane {
				asked[c] = true
				if c.from != lane[0].from || c.flow != lane[0].flow {
					t.Errorf("%s: %s waits for %s, which is another client", s.name, c, lane[0])
				}
			}
		}
		if len(asked) != len(s.cells()) {
			t.Errorf("%s: lanes have %d cells, want %d", s.name, len(asked), len(s.cells()))
		}
		if want := 4 * len(askers); s.sticky && len(lanes) != want {
			t.Errorf("%s: got %d lanes, want %d", s.name, len(lanes), want)
		}
	}
}

func TestOutcome(t *testing.T) {
	client, pod, bridge := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), netip.MustParseAddr("10.0.0.3")
	topo := &topology{names: map[netip.Addr]string{bridge: "bridge"}}
	saw := func(server string, source netip.AddrPort) lab.Result {
		return lab.Result{Outcome: lab.Answered, Server: server, Source: source, Local: client}
	}
	own, masqueraded, unknown := saw("a", client), saw("b", netip.AddrPortFrom(bridge, 3)), saw("b", pod)
	fromBridge, vip := netip.AddrPortFrom(bridge, 4), netip.MustParseAddrPort("10.0.0.9:1")
	refusal, timeout := lab.Result{Outcome: lab.Refused}, lab.Result{Outcome: lab.TimedOut}
	failed := lab.Result{Outcome: lab.Failed, Err: fmt.Errorf("dial 10.0.0.1:4711: %w", unix.EINVAL)}
	odd := lab.Result{Outcome: lab.Failed, Err: errors.New("odd")}
	for _, tc := range []struct {
		name    string
		results []lab.Result
		sticky  bool
		want    string
	}{
		{name: "one", results: []lab.Result{own, own}, want: "a saw own"},
		{name: "two", results: []lab.Result{masqueraded, own, masqueraded}, want: "a saw own, b saw bridge"},
		{name: "one seen differently", results: []lab.Result{masqueraded, unknown}, want: "b saw 10.0.0.2, b saw bridge"},
		{name: "refused", results: []lab.Result{refusal, refusal}, want: "refused"},
		{name: "dropped", results: []lab.Result{timeout}, want: "dropped"},
		{name: "everything", results: []lab.Result{timeout, refusal, own, failed, failed, odd},
			want: "a saw own, dropped, failed: invalid argument, failed: odd, refused"},
		{name: "stays", results: []lab.Result{masqueraded, masqueraded}, sticky: true, want: "one endpoint saw bridge"},
		{name: "strays", results: []lab.Result{masqueraded, own}, sticky: true, want: "a saw own, b saw bridge"},
		{name: "by the address that is asked", results: []lab.Result{{Outcome: lab.Answered, Server: "a", Source: fromBridge, Local: vip}}, want: "a saw own"},
		{name: "escapes", results: []lab.Result{saw(outside, client)}, sticky: true, want: "outside saw own"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tally := tally{from: "bridge", to: vip.Addr(), answers: map[answer]int{}}
			for _, r := range tc.results {
				tally.add(topo, r)
			}
			if diff := cmp.Diff(tc.want, tally.outcome(tc.sticky)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestSuffices: a cell is asked until it can have shown all that it has.
func TestSuffices(t *testing.T) {
	sc := scenario{services: []service{web(at("a", "b"))}}
	saw := func(server string, n int) map[answer]int { return map[answer]int{{server, "own"}: n} }
	both := func(a, b int) map[answer]int { return map[answer]int{{"a", "own"}: a, {"b", "own"}: b} }
	for _, tc := range []struct {
		name  string
		tally tally
		want  bool
	}{
		{name: "nothing"},
		{name: "one endpoint", tally: tally{answers: saw("a", 100)}},
		{name: "both, seldom", tally: tally{answers: both(leastRequests-2, 1)}},
		{name: "both", tally: tally{answers: both(leastRequests-1, 1)}, want: true},
		{name: "both, and a drop", tally: tally{answers: both(leastRequests, 1), timeouts: 1}},
		{name: "both, and a refusal", tally: tally{answers: both(leastRequests, 1), refusals: 1}},
		{name: "both, and a failure", tally: tally{answers: both(leastRequests, 1), failures: []string{"odd"}}},
		{name: "few refusals", tally: tally{refusals: enoughRefusals - 1}},
		{name: "refusals", tally: tally{refusals: enoughRefusals}, want: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.tally.suffices(sc); got != tc.want {
				t.Errorf("got %t, want %t", got, tc.want)
			}
		})
	}
}
