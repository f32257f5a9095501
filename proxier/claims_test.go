// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"net/netip"
	"strings"
	"testing"

	"fairlead/proxier/model"
)

// TestTrackerClaims: an external address that is some Service's cluster IP is
// left out, as long as it is one, whichever came first.
func TestTrackerClaims(t *testing.T) {
	victim := service("victim", "10.96.0.1", "80/TCP")
	thief := service("thief", "10.96.0.2", "80/TCP")
	thief.ExternalIPs = parseAddrs("10.96.0.1", "203.0.113.5")
	thief.LoadBalancerIPs = parseAddrs("10.96.0.1", "203.0.113.80")
	tracker, _, _ := newTracker()
	tracker.Update(model.Changes{Status: &model.SourceStatus{Listed: true, Complete: true}})
	step := func(what string, c model.Changes, want string) {
		t.Helper()
		tracker.Update(c)
		st, taken := tracker.Take(model.IPv4).Services[thief.Key]
		if got := addresses(st); !taken || got != want {
			t.Errorf("%s: got %q (marked: %v), want %q", what, got, taken, want)
		}
	}
	const all, left = "10.96.0.1 203.0.113.5 10.96.0.1 203.0.113.80", "203.0.113.5 203.0.113.80"
	step("alone", services(thief), all)
	step("the victim appears", services(victim), left+" refused 10.96.0.1 10.96.0.1")
	step("the thief changes", services(thief), left+" refused 10.96.0.1 10.96.0.1")
	step("the victim goes", services("-victim"), all)
	if addrs := thief.ExternalIPs; len(addrs) != 2 {
		t.Errorf("the Service itself was changed: %v", addrs)
	}
	tracker.Update(services("-thief"))
	if len(tracker.claims)+len(tracker.clusterIPs) > 0 {
		t.Errorf("left behind: %v, %v", tracker.claims, tracker.clusterIPs)
	}
}

func addresses(st ServiceState) string {
	if st.Service == nil {
		return ""
	}
	out := joined(st.Service.ExternalIPs, st.Service.LoadBalancerIPs)
	if len(st.Refused) > 0 {
		out += " refused " + joined(st.Refused)
	}
	return out
}

func joined(lists ...[]netip.Addr) string {
	var out []string
	for _, list := range lists {
		for _, a := range list {
			out = append(out, a.String())
		}
	}
	return strings.Join(out, " ")
}
