// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"fairlead/proxier/model"
)

// TestTrackerClaims: an external address that is some Service's cluster IP, or
// may become one, is left out, as long as that is so, whichever came first.
func TestTrackerClaims(t *testing.T) {
	victim := service("victim", "10.96.0.1", "80/TCP")
	thief := service("thief", "10.96.0.2", "80/TCP")
	thief.ExternalIPs = parseAddrs("10.96.0.1", "203.0.113.5")
	thief.LoadBalancerIPs = parseAddrs("10.97.0.9", "203.0.113.80")
	const (
		all  = "10.96.0.1 203.0.113.5 10.97.0.9 203.0.113.80"
		safe = "203.0.113.5 10.97.0.9 203.0.113.80 refused 10.96.0.1 is a cluster IP"
		none = " refused 10.96.0.1 is inside a ServiceCIDR 203.0.113.5 is inside a ServiceCIDR 10.97.0.9 is inside a ServiceCIDR 203.0.113.80 is inside a ServiceCIDR"
	)
	tracker, _, _ := newTracker()
	tracker.Update(listed())
	for _, step := range []struct {
		name   string
		change model.Changes
		want   string // "-" where the Service is not marked
	}{
		{"alone", services(thief), all},
		{"the victim appears", services(victim), safe},
		{"the thief changes", services(thief), safe},
		{"a ServiceCIDR appears", serviceCIDR("a", "10.97.0.0/16"),
			"203.0.113.5 203.0.113.80 refused 10.96.0.1 is a cluster IP 10.97.0.9 is inside a ServiceCIDR"},
		{"the victim goes", services("-victim"), "10.96.0.1 203.0.113.5 203.0.113.80 refused 10.97.0.9 is inside a ServiceCIDR"},
		{"another that holds the same", serviceCIDR("b", "10.96.0.0/15", "fd00::/112"),
			"203.0.113.5 203.0.113.80 refused 10.96.0.1 is inside a ServiceCIDR 10.97.0.9 is inside a ServiceCIDR"},
		{"one that holds none of them", serviceCIDR("c", "10.98.0.0/16", "fd01::/112"), "-"},
		{"one that holds all of them", serviceCIDR("c", "0.0.0.0/0"), none},
		{"it holds none of them any more", serviceCIDR("c"),
			"203.0.113.5 203.0.113.80 refused 10.96.0.1 is inside a ServiceCIDR 10.97.0.9 is inside a ServiceCIDR"},
		{"the first goes", noServiceCIDR("a"),
			"203.0.113.5 203.0.113.80 refused 10.96.0.1 is inside a ServiceCIDR 10.97.0.9 is inside a ServiceCIDR"},
		{"the second goes", noServiceCIDR("b"), all},
		{"one that nobody knew goes", noServiceCIDR("d"), "-"},
	} {
		tracker.Update(step.change)
		st, marked := tracker.Take(model.IPv4).Services[thief.Key]
		got := addresses(st)
		if !marked {
			got = "-"
		}
		if got != step.want {
			t.Errorf("%s: got %q, want %q", step.name, got, step.want)
		}
	}
	if addrs := thief.ExternalIPs; len(addrs) != 2 {
		t.Errorf("the Service itself was changed: %v", addrs)
	}
	tracker.Update(services("-thief"))
	tracker.Update(noServiceCIDR("c"))
	if len(tracker.claims)+len(tracker.clusterIPs)+len(tracker.serviceCIDRs) > 0 {
		t.Errorf("left behind: %v, %v, %v", tracker.claims, tracker.clusterIPs, tracker.serviceCIDRs)
	}
}

// TestTrackerRefusesByFamily: what is refused is told in the address's own
// family, and left out in both.
func TestTrackerRefusesByFamily(t *testing.T) {
	both := service("both", "10.96.0.1 fd00::1", "80/TCP")
	both.ExternalIPs = parseAddrs("10.97.0.1", "fd00::99")
	tracker, _, _ := newTracker()
	tracker.Update(with(services(both), listed()))
	tracker.Take(model.IPv4)
	tracker.Take(model.IPv6)
	tracker.Update(serviceCIDR("kubernetes", "fd00::/112"))
	if st, marked := tracker.Take(model.IPv4).Services[both.Key]; marked {
		t.Errorf("IPv4: marked, %q", addresses(st))
	}
	if got, want := addresses(tracker.Take(model.IPv6).Services[both.Key]), "10.97.0.1 refused fd00::99 is inside a ServiceCIDR"; got != want {
		t.Errorf("IPv6: got %q, want %q", got, want)
	}
	tracker.Update(services(both))
	if got, want := addresses(tracker.Take(model.IPv4).Services[both.Key]), "10.97.0.1"; got != want {
		t.Errorf("IPv4: got %q, want %q", got, want)
	}
}

// TestLoopTellsOfRefusals: the metric and the Warner hear of what is refused
// when that changes, and not each time that the Service is looked at.
func TestLoopTellsOfRefusals(t *testing.T) {
	thief := service("thief", "10.96.0.2", "80/TCP")
	thief.ExternalIPs = parseAddrs("10.97.0.1", "10.97.0.2")
	endpoints := func(n int) model.Changes {
		return slicesOf(slice("thief-1", "thief", "80/TCP", fmt.Sprintf("10.1.0.%d@here", n)))
	}
	inBubble(t, 0, time.Hour, nil, func(t *testing.T, r *rig) {
		warner := &fakeWarner{}
		r.loop.Warner = warner
		r.at(ms, with(services(thief), listed()))
		for _, step := range []struct {
			name   string
			change model.Changes
			told   string
			count  float64
		}{
			{"a ServiceCIDR appears", serviceCIDR("a", "10.97.0.0/31"),
				"shop/thief spec.externalIPs{10.97.0.1} FairleadRefused: External address 10.97.0.1 is inside a ServiceCIDR and is left out", 1},
			{"endpoints change", endpoints(1), "", 1},
			{"endpoints change again", endpoints(2), "", 1},
			{"another address is refused, too", serviceCIDR("a", "10.97.0.0/16"),
				"shop/thief spec.externalIPs{10.97.0.2} FairleadRefused: External address 10.97.0.2 is inside a ServiceCIDR and is left out", 2},
			{"none is any more", noServiceCIDR("a"), "", 2},
			{"it is as it was", serviceCIDR("a", "10.97.0.0/31"),
				"shop/thief spec.externalIPs{10.97.0.1} FairleadRefused: External address 10.97.0.1 is inside a ServiceCIDR and is left out", 3},
			{"the Service goes", services("-thief"), "", 3},
		} {
			r.at(r.now()+time.Second, step.change)
			if got := warner.take(); got != step.told {
				t.Errorf("%s: told %q, want %q", step.name, got, step.told)
			}
			if got := testutil.ToFloat64(r.loop.Metrics.refusedExternal.WithLabelValues("IPv4")); got != step.count {
				t.Errorf("%s: counted %v, want %v", step.name, got, step.count)
			}
		}
		if len(r.loop.refusedAddrs) > 0 {
			t.Errorf("left behind: %v", r.loop.refusedAddrs)
		}
	})
}

// TestLoopTellsABoundedNumber: a Service may have hundreds of addresses.
func TestLoopTellsABoundedNumber(t *testing.T) {
	thief := service("thief", "10.96.0.2", "80/TCP")
	for i := range byte(200) {
		thief.LoadBalancerIPs = append(thief.LoadBalancerIPs, netip.AddrFrom4([4]byte{10, 97, 0, i}))
	}
	inBubble(t, 0, time.Hour, nil, func(t *testing.T, r *rig) {
		warner := &fakeWarner{}
		r.loop.Warner = warner
		r.at(ms, with(services(thief), listed()))
		r.at(time.Second, serviceCIDR("a", "10.97.0.0/16"))
		got := strings.Split(warner.take(), "; ")
		if len(got) != maxWarnings || !strings.HasPrefix(got[0], "shop/thief status.loadBalancer.ingress{10.97.0.0} ") {
			t.Errorf("told %q", got)
		}
		if got := testutil.ToFloat64(r.loop.Metrics.refusedExternal.WithLabelValues("IPv4")); got != 200 {
			t.Errorf("counted %v, want 200", got)
		}
	})
}

// TestInWordsIsBounded: neither is the log line about it long.
func TestInWordsIsBounded(t *testing.T) {
	refused := make([]RefusedAddr, 200)
	for i := range refused {
		refused[i] = RefusedAddr{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), Reason: reasonClusterIP}
	}
	got := inWords(refused)
	if len(got) > 400 || !strings.HasPrefix(got, "10.96.0.0 is a cluster IP, ") || !strings.HasSuffix(got, ", and 190 more") {
		t.Errorf("got %q", got)
	}
}

// fakeWarner keeps what it is told.
type fakeWarner struct {
	mu   sync.Mutex
	told []string
}

func (w *fakeWarner) Warn(service model.ObjectKey, warning model.Warning) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf("%v %s %s: %s", service, warning.Field, warning.Reason, warning.Message))
}

func (w *fakeWarner) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.told = nil }()
	return strings.Join(w.told, "; ")
}

func serviceCIDR(name string, cidrs ...string) model.Changes {
	c := &model.ServiceCIDR{Key: model.ObjectKey{Name: name}}
	for _, cidr := range cidrs {
		c.CIDRs = append(c.CIDRs, netip.MustParsePrefix(cidr))
	}
	return model.Changes{ServiceCIDRs: map[model.ObjectKey]*model.ServiceCIDR{c.Key: c}}
}

func noServiceCIDR(name string) model.Changes {
	return model.Changes{ServiceCIDRs: map[model.ObjectKey]*model.ServiceCIDR{{Name: name}: nil}}
}

// addresses writes the external addresses of a Service, and what is refused.
func addresses(st ServiceState) string {
	if st.Service == nil {
		return ""
	}
	text := joined(externalAddrs(st.Service))
	for i, r := range st.Refused {
		if i == 0 {
			text += " refused"
		}
		text += " " + r.String()
	}
	return text
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
