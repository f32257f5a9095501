// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"fairlead/proxier/model"
)

// scraped is what a scrape has of a series: what it is, and its value; of a
// histogram the number of observations, their sum and the bounds.
type scraped struct {
	kind   string
	value  float64
	sum    float64
	bounds []float64
}

// scrape returns the series in reg by `name{label="value",…}`.
func scrape(t *testing.T, reg prometheus.Gatherer) map[string]scraped {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	out := map[string]scraped{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			s := scraped{kind: strings.ToLower(family.GetType().String())}
			s.value = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if h := m.GetHistogram(); h != nil {
				s.value, s.sum = float64(h.GetSampleCount()), h.GetSampleSum()
				for _, b := range h.GetBucket() {
					s.bounds = append(s.bounds, b.GetUpperBound())
				}
			}
			out[family.GetName()+"{"+strings.Join(labels, ",")+"}"] = s
		}
	}
	return out
}

// value returns the value of the series with no label but ip_family, or with
// none if family is empty.
func value(t *testing.T, reg prometheus.Gatherer, name, family string) float64 {
	t.Helper()
	labels := "{}"
	if family != "" {
		labels = fmt.Sprintf("{ip_family=%q}", family)
	}
	s, ok := scrape(t, reg)[name+labels]
	if !ok {
		t.Fatalf("there is no %s%s", name, labels)
	}
	return s.value
}

// TestMetricsExistFromTheStart has every series at 0, under the names and with
// the labels that dashboards for kube-proxy ask for.
func TestMetricsExistFromTheStart(t *testing.T) {
	const family = "ip_family"
	for _, families := range [][]model.Family{{model.IPv4}, {model.IPv6}, model.Families()} {
		t.Run(fmt.Sprint(families), func(t *testing.T) {
			want := map[string]string{
				"kubeproxy_sync_proxy_rules_endpoint_changes_pending{}": "gauge",
				"kubeproxy_sync_proxy_rules_endpoint_changes_total{}":   "counter",
				"kubeproxy_sync_proxy_rules_service_changes_pending{}":  "gauge",
				"kubeproxy_sync_proxy_rules_service_changes_total{}":    "counter",
			}
			for _, f := range families {
				for name, kind := range map[string]string{
					"kubeproxy_sync_proxy_rules_duration_seconds":              "histogram",
					"kubeproxy_network_programming_duration_seconds":           "histogram",
					"kubeproxy_sync_proxy_rules_last_timestamp_seconds":        "gauge",
					"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": "gauge",
					"fairlead_sync_failures_total":                             "counter",
					"fairlead_check_failures_total":                            "counter",
					"fairlead_external_addresses_refused_total":                "counter",
					"fairlead_drift_repaired_total":                            "counter",
					"fairlead_kernel_refused":                                  "gauge",
					"fairlead_sync_consecutive_failures":                       "gauge",
					"fairlead_sync_backoff_seconds":                            "gauge",
				} {
					want[fmt.Sprintf("%s{%s=%q}", name, family, f)] = kind
				}
				for _, policy := range []string{"internal", "external"} {
					want[fmt.Sprintf("kubeproxy_sync_proxy_rules_no_local_endpoints_total{%s=%q,traffic_policy=%q}", family, f, policy)] = "gauge"
				}
			}
			reg := prometheus.NewPedanticRegistry()
			NewMetrics(reg, families)
			got := map[string]string{}
			for name, s := range scrape(t, reg) {
				if got[name] = s.kind; s.value != 0 || s.sum != 0 {
					t.Errorf("%s: got %v, want 0", name, s.value)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("got series that differ (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMetricsBuckets are spelled out here: recorded histograms can be compared
// only while they stay.
func TestMetricsBuckets(t *testing.T) {
	duration := []float64{.001, .002, .004, .008, .016, .032, .064, .128, .256, .512, 1.024, 2.048, 4.096, 8.192, 16.384}
	programming := []float64{0.25, 0.5}
	for s := 1.0; s < 60; s++ {
		programming = append(programming, s)
	}
	programming = append(programming, 60, 65, 70, 75, 80, 85, 90, 95, 100, 105, 110, 115, 120, 150, 180, 210, 240, 270, 300)
	reg := prometheus.NewPedanticRegistry()
	NewMetrics(reg, []model.Family{model.IPv4})
	got := scrape(t, reg)
	for name, want := range map[string][]float64{
		`kubeproxy_sync_proxy_rules_duration_seconds{ip_family="IPv4"}`:    duration,
		`kubeproxy_network_programming_duration_seconds{ip_family="IPv4"}`: programming,
	} {
		if diff := cmp.Diff(want, got[name].bounds); diff != "" {
			t.Errorf("%s: got buckets that differ (-want +got):\n%s", name, diff)
		}
	}
}

// TestMetricsLint allows nothing but what kube-proxy's names demand.
func TestMetricsLint(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	NewMetrics(reg, model.Families())
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]string{
		"kubeproxy_sync_proxy_rules_no_local_endpoints_total": `non-counter metrics should not have "_total" suffix`,
	}
	for _, p := range problems {
		if allowed[p.Metric] != p.Text {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestMetricsOfALoop reads the metrics after each step of a loop.
func TestMetricsOfALoop(t *testing.T) {
	plan := []outcome{took(0), {takes: time.Second, err: errRefused, report: Report{Repaired: []string{"a", "b"}, Refused: []string{"x"}}},
		{takes: 2 * time.Second, report: Report{Repaired: []string{"a", "b", "c"}, Refused: []string{"x", "y"}}}, took(0)}
	inBubble(t, 0, seldom, plan, func(t *testing.T, r *rig) {
		before := scrape(t, r.reg)
		epoch := float64(r.t0.UnixNano()) / 1e9
		check := func(want map[string]float64) {
			t.Helper()
			got := map[string]float64{}
			for name, s := range scrape(t, r.reg) {
				if name = strings.Replace(name, `{ip_family="IPv4"}`, "", 1); strings.Contains(name, "{ip") || s.value == before[name].value {
					continue
				}
				if got[name] = s.value; strings.Contains(name, "timestamp") {
					got[name] -= epoch
				}
			}
			maps.DeleteFunc(got, func(name string, v float64) bool { _, ok := want[name]; return !ok && v == 0 })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("at %v: got metrics that differ (-want +got):\n%s", r.now(), diff)
			}
		}
		const (
			duration = "kubeproxy_sync_proxy_rules_duration_seconds"
			last     = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
			queued   = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"
			changes  = "kubeproxy_sync_proxy_rules_service_changes_total{}"
			repaired = "fairlead_drift_repaired_total"
			failures = "fairlead_sync_failures_total"
			row      = "fairlead_sync_consecutive_failures"
			pause    = "fairlead_sync_backoff_seconds"
			refused  = "fairlead_kernel_refused"
		)
		r.at(time.Second, listed())
		check(map[string]float64{duration: 1, last: 1, queued: 1})
		r.at(10*time.Second, add("a", 1))
		check(map[string]float64{duration: 1, last: 1, queued: 10, changes: 1})
		r.at(11 * time.Second) // failed
		check(map[string]float64{duration: 2, last: 1, queued: 10, changes: 1, repaired: 2, failures: 1, row: 1, pause: 1})
		r.at(20 * time.Second) // succeeded
		end := r.calls()[2].end.Seconds()
		got := scrape(t, r.reg)[last+`{ip_family="IPv4"}`].value - epoch
		if diff := got - end; diff < -1e-3 || diff > 1e-3 {
			t.Errorf("got the last sync at %v, want its end %v", got, end)
		}
		check(map[string]float64{duration: 3, last: got, queued: 10, changes: 1, repaired: 5, failures: 1, refused: 2})
		r.at(30*time.Second, add("b", 1)) // nothing refused any more
		check(map[string]float64{duration: 4, last: 30, queued: 30, changes: 2, repaired: 5, failures: 1})
	})
}

// TestMetricsNoLocalEndpoints counts the ports whose traffic is dropped here for
// want of a local endpoint, once the mode has them.
func TestMetricsNoLocalEndpoints(t *testing.T) {
	plan := []outcome{took(0), took(0), took(0), took(0), failed(0)}
	inBubble(t, 0, seldom, plan, func(t *testing.T, r *rig) {
		check := func(what string, internal, external float64, changes ...model.Changes) {
			t.Helper()
			r.at(r.now()+time.Minute, changes...)
			got := scrape(t, r.reg)
			for policy, want := range map[string]float64{"internal": internal, "external": external} {
				name := fmt.Sprintf("kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=%q,traffic_policy=%q}", "IPv4", policy)
				if got[name].value != want {
					t.Errorf("%s: got %v of policy %s, want %v", what, got[name].value, policy, want)
				}
			}
		}
		svc := func(name string, changes ...func(*model.Service)) *model.Service {
			s := service(name, "10.96.0.1", "80/TCP")
			for _, change := range changes {
				change(s)
			}
			return s
		}
		away := func(name string) *model.EndpointSlice { return slice(name+"-1", name, "8080/TCP", "10.1.0.1@there") }
		check("nothing", 0, 0, listed())
		check("endpoints elsewhere", 2, 2,
			with(services(svc("plain"), svc("in", internalLocal), svc("out", externalLocal, nodePort),
				svc("both", internalLocal, externalLocal, nodePort), svc("unreachable", externalLocal)),
				slicesOf(away("plain"), away("in"), away("out"), away("both"), away("unreachable"))))
		check("none at all, which is refused", 1, 1, slicesOf("-both-1"))
		check("one here", 0, 1, slicesOf(slice("in-1", "in", "8080/TCP", "10.1.0.1@here")))
		check("gone, and the sync fails", 0, 1, services("-out"))
		check("it is repeated", 0, 0)
	})
}

// TestMetricsProgrammingDuration measures from the trigger to the end of the
// first sync that succeeds, once for each trigger and in its family.
func TestMetricsProgrammingDuration(t *testing.T) {
	inBubble(t, 0, seldom, []outcome{took(0), failed(0), took(500 * ms)}, func(t *testing.T, r *rig) {
		web := func(ip string, trigger time.Duration) model.Changes {
			return slicesOf(triggered(slice("web-"+ip, "web", "8080/TCP", ip), r.t0.Add(trigger)))
		}
		durations := func(family string) (out []float64) {
			s := scrape(t, r.reg)[fmt.Sprintf("kubeproxy_network_programming_duration_seconds{ip_family=%q}", family)]
			return []float64{s.value, s.sum}
		}
		r.at(time.Second, with(listed(), services(service("web", "10.96.0.1 fd00::1", "80/TCP"))))
		r.at(10*time.Second, web("10.1.0.1", 9*time.Second))
		if got := durations("IPv4"); got[0] != 0 {
			t.Errorf("got %v observations after a sync that failed, want none", got[0])
		}
		r.at(10*time.Second+50*ms, web("10.1.0.2", 10*time.Second), web("fd01::1", 10*time.Second))
		r.at(20 * time.Second)
		end := r.calls()[2].end.Seconds()
		if got, want := durations("IPv4"), []float64{2, 2*end - 19}; !slices.EqualFunc(got, want, near) {
			t.Errorf("got observations and sum %v, want %v", got, want)
		}
		if got := durations("IPv6"); got[0] != 0 {
			t.Errorf("got %v observations of IPv6, which does not run, want none", got[0])
		}
		r.at(30*time.Second, web("10.1.0.3", 40*time.Second)) // a clock that is ahead
		if got, want := durations("IPv4"), []float64{3, 2*end - 19}; !slices.EqualFunc(got, want, near) {
			t.Errorf("got observations and sum %v with a trigger in the future, want %v", got, want)
		}
	})
}

func near(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 }
