// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"fairlead/e2e/lab"
)

// TestKernelHTTP: the agent serves health, metrics and its mode where
// kube-proxy does, and profiles only when asked to.
func TestKernelHTTP(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	dir := newDirectory(t)
	dir.write("web.yaml", web(l, l.Nodes[0].Pods[0])...)
	a := startAgent(ctx, t, l.Nodes[0], oneVariant(), "--manifests", dir.path)
	a.waitSynced(ctx, 0)

	t.Run("healthz and livez", func(t *testing.T) {
		for _, url := range []string{"http://127.0.0.1:10256/healthz", "http://192.0.2.11:10256/livez"} {
			status, body := fetch(ctx, t, a, url)
			var got struct {
				Healthy bool
				Status  map[string]struct{ Healthy bool }
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%s: %v in %q", url, err, body)
			}
			if status != http.StatusOK || !got.Healthy || !got.Status["IPv4"].Healthy || !got.Status["IPv6"].Healthy {
				t.Errorf("%s: got %d %s, want 200 and healthy", url, status, body)
			}
		}
	})
	t.Run("proxyMode", func(t *testing.T) {
		if status, body := fetch(ctx, t, a, "http://127.0.0.1:10249/proxyMode"); status != 200 || body != *proxyMode {
			t.Errorf("got %d %q, want 200 %s", status, body, *proxyMode)
		}
	})
	t.Run("no profiles unless asked for", func(t *testing.T) {
		if status, _ := fetch(ctx, t, a, "http://127.0.0.1:10249/debug/pprof/"); status != http.StatusNotFound {
			t.Errorf("got %d, want 404", status)
		}
		a.stop()
		a = startAgent(ctx, t, l.Nodes[0], oneVariant(), "--manifests", dir.path, "--profiling")
		a.waitSynced(ctx, 0)
		if status, _ := fetch(ctx, t, a, "http://127.0.0.1:10249/debug/pprof/"); status != http.StatusOK {
			t.Errorf("with --profiling: got %d, want 200", status)
		}
	})
}

// TestKernelMetrics: every series that kube-proxy has in iptables mode is
// there from the start, but that of node ports on 127.0.0.1
// (docs/differences.md).
func TestKernelMetrics(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	// A directory that does not exist: not listed yet, so nothing is synced.
	a := startAgent(ctx, t, l.Nodes[0], oneVariant(), "--manifests", "/nonexistent")
	a.waitLog(ctx, 0, 1, "/nonexistent")
	a.waitLog(ctx, 0, 1, "10249")
	_, body := fetch(ctx, t, a, "http://127.0.0.1:10249/metrics")
	for _, series := range expectedSeries() {
		if !strings.Contains(body, "\n"+series+" ") {
			t.Errorf("no series %s", series)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

func expectedSeries() []string {
	out := []string{
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total",
		"kubeproxy_sync_proxy_rules_service_changes_pending",
		"kubeproxy_sync_proxy_rules_service_changes_total",
		"kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
	}
	for _, path := range []string{"healthz", "livez"} {
		for _, code := range []string{"200", "503"} {
			out = append(out, `kubeproxy_proxy_`+path+`_total{code="`+code+`"}`)
		}
	}
	for _, f := range families() {
		family := `ip_family="` + f.String() + `"`
		for _, name := range []string{
			"sync_proxy_rules_duration_seconds_count",
			"sync_full_proxy_rules_duration_seconds_count",
			"sync_partial_proxy_rules_duration_seconds_count",
			"network_programming_duration_seconds_count",
			"conntrack_reconciler_sync_duration_seconds_count",
			"conntrack_reconciler_deleted_entries_total",
			"sync_proxy_rules_last_timestamp_seconds",
			"sync_proxy_rules_last_queued_timestamp_seconds",
			"sync_proxy_rules_iptables_restore_failures_total",
			"sync_proxy_rules_iptables_partial_restore_failures_total",
		} {
			out = append(out, "kubeproxy_"+name+"{"+family+"}")
		}
		for _, table := range []string{"filter", "nat"} {
			out = append(out,
				"kubeproxy_sync_proxy_rules_iptables_total{"+family+`,table="`+table+`"}`,
				"kubeproxy_sync_proxy_rules_iptables_last{"+family+`,table="`+table+`"}`)
		}
		for _, policy := range []string{"internal", "external"} {
			out = append(out, "kubeproxy_sync_proxy_rules_no_local_endpoints_total{"+family+`,traffic_policy="`+policy+`"}`)
		}
	}
	return out
}

func fetch(ctx context.Context, t *testing.T, a *agent, url string) (int, string) {
	t.Helper()
	status, body, err := a.get(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}
