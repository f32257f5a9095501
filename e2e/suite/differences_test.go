// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"os"
	"strings"
	"testing"

	"fairlead/proxier/model"
)

// exception is a set of cells that do not have the recorded outcome. A field
// that is empty matches everything.
type exception struct {
	// mode is the beginning of a subject's name.
	mode     string
	scenario string
	target   target
	// from is the beginning of who asks.
	from   string
	spot   spot
	family model.Family
	// want is what Fairlead does instead; empty for what is pending.
	want string
	// row is the first column of the row of docs/differences.md that says why.
	row string
}

// differences are where Fairlead is not to do as kube-proxy does.
var differences = []exception{
	{mode: "ipvs", target: toOtherClusterIP, want: "refused", row: "A port that no Service has, in IPVS mode"},
	{mode: "ipvs", target: toOtherLoadBalancer, want: "refused", row: "A port that no Service has, in IPVS mode"},
	{mode: "nftables", target: toOtherClusterIP, want: "refused", row: "A port that no Service has, in nftables mode"},
	{
		mode: "nftables", scenario: "other-proxy", target: toClusterIP,
		want: "refused", row: "An address that no Service has, in nftables mode",
	},
	{
		scenario: "source-ranges-of-ipv4-alone", target: toLoadBalancer, family: model.IPv6,
		want: "dropped", row: "Source ranges of one family",
	},
	{
		scenario: "external-ip-of-load-balancer", target: toLoadBalancer, from: "node",
		want: "dropped", row: "Source ranges and an external IP",
	},
	{
		scenario: "external-ip-taken", target: toOtherClusterIP,
		want: outside + " saw own", row: "External IPs",
	},
}

// pending are what Fairlead, or a mode of it, cannot do yet. The list is to be
// empty.
var pending []exception

// wholly matches the exceptions that are for all cells of a scenario.
var wholly = cell{}

// find returns the exception that a cell is under for a subject, nil if there is
// none.
func find(list []exception, subject string, s scenario, c cell) *exception {
	for i, e := range list {
		if strings.HasPrefix(subject, e.mode) && (e.scenario == "" || e.scenario == s.name) &&
			(e.target == "" || e.target == c.place.target) &&
			strings.HasPrefix(c.from, e.from) &&
			(e.spot == "" || e.spot == c.place.spot) &&
			(e.family == 0 || e.family == c.flow.family) {
			return &list[i]
		}
	}
	return nil
}

// TestDifferences: every difference is one, and documented, and every exception
// is of something.
func TestDifferences(t *testing.T) {
	if *record {
		return // the reference is about to be written
	}
	ref, err := readReference()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	used := map[*exception]bool{}
	for _, s := range scenarios {
		for _, c := range s.keys() {
			for _, subject := range subjects() {
				used[find(pending, subject.name(), s, c)] = true
				d := find(differences, subject.name(), s, c)
				if used[d] = true; d != nil && d.want == ref.scenarios[s.name][c] {
					t.Errorf("%s, %s: %s: kube-proxy does that, too: %s", subject.name(), s.name, c, d.want)
				}
			}
		}
	}
	for _, list := range [][]exception{differences, pending} {
		for i := range list {
			if !used[&list[i]] {
				t.Errorf("no cell for %+v", list[i])
			}
		}
	}
	for _, d := range differences {
		// What no Service of ours has: a port, or an address in a ServiceCIDR.
		noService := d.target == toOtherClusterIP || d.target == toOtherLoadBalancer || d.scenario == "other-proxy"
		if d.mode != "" && !(noService && d.want == "refused") {
			t.Errorf("%s mode alone is excused: %+v", d.mode, d)
		}
		if d.row == "" || !strings.Contains(string(doc), "\n| "+d.row+" |") {
			t.Errorf("docs/differences.md has no row %q", d.row)
		}
	}
}
