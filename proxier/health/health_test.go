// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"fairlead/proxier/health"
	"fairlead/proxier/model"
)

// start is what the clock of a synctest bubble shows at first.
const start = "2000-01-01T00:00:00Z"

// advance moves the clock of the bubble.
func advance(d time.Duration) { time.Sleep(d) }

func newState(t *testing.T, cfg health.Config) *health.State {
	t.Helper()
	s, err := health.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// TestReady: ready is who has synced every family once, whatever comes then.
func TestReady(t *testing.T) {
	s := newState(t, health.Config{Families: model.Families()})
	want := func(code int, body string) {
		t.Helper()
		if w := get(s.Handler(), "/readyz"); w.Code != code || !strings.Contains(w.Body.String(), body) {
			t.Errorf("got %d %q, want %d %q", w.Code, w.Body, code, body)
		}
		select {
		case <-s.Ready():
			if code != 200 {
				t.Error("Ready is closed too early")
			}
		default:
			if code == 200 {
				t.Error("Ready is not closed")
			}
		}
	}
	want(503, "IPv4 IPv6")
	s.Queued(model.IPv4, time.Now())
	s.Synced(model.IPv4, time.Now())
	s.Synced(model.IPv4, time.Now())
	want(503, "waiting for the first sync of [IPv6]")
	s.Synced(model.IPv6, time.Now())
	want(200, "ok")
	s.SetNodeEligible(false)
	s.Synced(model.IPv6, time.Now())
	want(200, "ok")
}

// TestStale: what cannot be read is told by all probes, changes the status of none, and is
// in a metric.
func TestStale(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var stale map[string]time.Time
	reg := prometheus.NewPedanticRegistry()
	s := newState(t, health.Config{
		Families: []model.Family{model.IPv4}, Registerer: reg, Stale: func() map[string]time.Time { return stale },
	})
	metric := func(want string) {
		t.Helper()
		const head = "# HELP fairlead_source_stale_since_timestamp_seconds Since when something cannot be read from the API server, " +
			"so that rules follow no change of it; 0 while everything can.\n# TYPE fairlead_source_stale_since_timestamp_seconds gauge\n"
		if err := testutil.GatherAndCompare(reg, strings.NewReader(head+"fairlead_source_stale_since_timestamp_seconds "+want+"\n"),
			"fairlead_source_stale_since_timestamp_seconds"); err != nil {
			t.Error(err)
		}
	}
	probe := func(path string, code int, want string) {
		t.Helper()
		if w := get(s.Handler(), path); w.Code != code || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: got %d %q, want %d %q", path, w.Code, w.Body, code, want)
		}
	}
	metric("0")
	if w := get(s.Handler(), "/healthz"); strings.Contains(w.Body.String(), "stale") {
		t.Errorf("got %q", w.Body)
	}
	stale = map[string]time.Time{"services": since, "endpointslices": since.Add(time.Second)}
	const remark = "; cannot read endpointslices, services since 2026-01-02T03:04:05Z"
	probe("/readyz", 503, "waiting for the first sync of [IPv4]"+remark)
	s.Synced(model.IPv4, time.Now())
	probe("/readyz", 200, "ok"+remark)
	for _, path := range []string{"/healthz", "/livez"} {
		probe(path, 200, `"stale":{"endpointslices":"2026-01-02T03:04:06Z","services":"2026-01-02T03:04:05Z"}`)
	}
	metric("1.767323045e+09")
}

func TestProbes(t *testing.T) {
	for _, tt := range []struct {
		name           string
		do             func(s *health.State)
		healthz, livez int
	}{
		{
			name:    "starting up",
			do:      func(*health.State) { advance(time.Hour) },
			healthz: 200, livez: 200,
		},
		{
			name: "queued, and almost late",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				advance(time.Minute - time.Nanosecond)
			},
			healthz: 200, livez: 200,
		},
		{
			name: "queued, never synced, and late",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				advance(time.Minute)
			},
			healthz: 503, livez: 503,
		},
		{
			name: "synced in time, nothing queued since",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				s.Synced(model.IPv4, time.Now())
				advance(time.Hour)
			},
			healthz: 200, livez: 200,
		},
		{
			name: "synced late",
			do: func(s *health.State) {
				s.Queued(model.IPv6, time.Now())
				advance(time.Hour)
				s.Synced(model.IPv6, time.Now())
			},
			healthz: 200, livez: 200,
		},
		{
			name: "one family late, the other not",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				s.Queued(model.IPv6, time.Now())
				advance(time.Second)
				s.Synced(model.IPv4, time.Now())
				advance(time.Minute)
			},
			healthz: 503, livez: 503,
		},
		{
			name: "queued again while the first was late does not reset its age",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				advance(59 * time.Second)
				s.Queued(model.IPv4, time.Now())
				advance(time.Second)
			},
			healthz: 503, livez: 503,
		},
		{
			name: "queued during a sync, its age counts from then",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				began := time.Now()
				advance(40 * time.Second)
				s.Queued(model.IPv4, time.Now())
				advance(10 * time.Second)
				s.Synced(model.IPv4, began)
				advance(50*time.Second - time.Nanosecond)
			},
			healthz: 200, livez: 200,
		},
		{
			name: "queued during a sync, and late",
			do: func(s *health.State) {
				s.Queued(model.IPv4, time.Now())
				began := time.Now()
				advance(40 * time.Second)
				s.Queued(model.IPv4, time.Now())
				s.Synced(model.IPv4, began)
				advance(time.Minute)
			},
			healthz: 503, livez: 503,
		},
		{
			name:    "node not eligible",
			do:      func(s *health.State) { s.SetNodeEligible(false) },
			healthz: 503, livez: 200,
		},
		{
			name: "node eligible again",
			do: func(s *health.State) {
				s.SetNodeEligible(false)
				s.SetNodeEligible(true)
			},
			healthz: 200, livez: 200,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newState(t, health.Config{})
				tt.do(s)
				h := s.Handler()
				if got := get(h, "/healthz").Code; got != tt.healthz {
					t.Errorf("/healthz: got %d, want %d", got, tt.healthz)
				}
				if got := get(h, "/livez").Code; got != tt.livez {
					t.Errorf("/livez: got %d, want %d", got, tt.livez)
				}
			})
		})
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t, health.Config{Timeout: 10 * time.Second})
		s.Queued(model.IPv4, time.Now())
		advance(10*time.Second - 1)
		if got := get(s.Handler(), "/livez").Code; got != 200 {
			t.Errorf("before the timeout: got %d, want 200", got)
		}
		advance(1)
		if got := get(s.Handler(), "/livez").Code; got != 503 {
			t.Errorf("after the timeout: got %d, want 503", got)
		}
	})
	if _, err := health.New(health.Config{Timeout: -1}); err == nil {
		t.Error("New accepts a negative timeout")
	}
}

func TestBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t, health.Config{})
		h := s.Handler()
		check := func(path, want string) {
			t.Helper()
			w := get(h, path)
			if diff := cmp.Diff(strings.ReplaceAll(want, "START", start), w.Body.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
			wantHeader := http.Header{
				"Content-Type":           {"application/json"},
				"X-Content-Type-Options": {"nosniff"},
			}
			if diff := cmp.Diff(wantHeader, w.Header()); diff != "" {
				t.Errorf("header of %s (-want +got):\n%s", path, diff)
			}
		}
		check("/healthz", `{"lastUpdated":"START","currentTime":"START","nodeEligible":true,"healthy":true}`)
		check("/livez", `{"lastUpdated":"START","currentTime":"START","healthy":true}`)

		s.Synced(model.IPv4, time.Now())
		advance(5 * time.Second)
		s.Synced(model.IPv6, time.Now())
		s.Queued(model.IPv6, time.Now())
		advance(5 * time.Second)
		s.SetNodeEligible(false)
		// Not 200, so lastUpdated is the true one.
		check("/healthz", `{"lastUpdated":"2000-01-01T00:00:05Z","currentTime":"2000-01-01T00:00:10Z","nodeEligible":false,"healthy":true,`+
			`"status":{"IPv4":{"lastUpdated":"START","healthy":true},"IPv6":{"lastUpdated":"2000-01-01T00:00:05Z","healthy":true}}}`)
		advance(time.Minute)
		check("/livez", `{"lastUpdated":"2000-01-01T00:00:05Z","currentTime":"2000-01-01T00:01:10Z","healthy":false,`+
			`"status":{"IPv4":{"lastUpdated":"START","healthy":true},"IPv6":{"lastUpdated":"2000-01-01T00:00:05Z","healthy":false}}}`)
	})
}

func TestUnknownPath(t *testing.T) {
	if got := get(newState(t, health.Config{}).Handler(), "/metrics").Code; got != 404 {
		t.Errorf("got %d, want 404", got)
	}
}

func TestCounters(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	s := newState(t, health.Config{Registerer: reg})
	expect := func(want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "kubeproxy_proxy_healthz_total", "kubeproxy_proxy_livez_total"); err != nil {
			t.Error(err)
		}
	}
	const text = `
# HELP kubeproxy_proxy_healthz_total Answers to /healthz by HTTP status code.
# TYPE kubeproxy_proxy_healthz_total counter
kubeproxy_proxy_healthz_total{code="200"} =A
kubeproxy_proxy_healthz_total{code="503"} =B
# HELP kubeproxy_proxy_livez_total Answers to /livez by HTTP status code.
# TYPE kubeproxy_proxy_livez_total counter
kubeproxy_proxy_livez_total{code="200"} =C
kubeproxy_proxy_livez_total{code="503"} 0
`
	expect(strings.NewReplacer("=A", "0", "=B", "0", "=C", "0").Replace(text))
	h := s.Handler()
	get(h, "/healthz")
	s.SetNodeEligible(false)
	get(h, "/healthz")
	get(h, "/healthz")
	get(h, "/livez")
	expect(strings.NewReplacer("=A", "1", "=B", "2", "=C", "1").Replace(text))

	if _, err := health.New(health.Config{Registerer: reg}); err == nil {
		t.Error("New registers the same counters twice")
	}
}
