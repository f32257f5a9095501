// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	prommodel "github.com/prometheus/common/model"

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
	t.Run("pages for debugging", func(t *testing.T) {
		for path, want := range map[string]string{
			"/flagz": "\nproxy-mode=" + *proxyMode + "\n", "/statusz": "\nBinary version: ", "/metrics/slis": `kubernetes_healthchecks_total{name="ping",`,
		} {
			fetch(ctx, t, a, "http://127.0.0.1:10249/healthz")
			if status, body := fetch(ctx, t, a, "http://127.0.0.1:10249"+path); status != 200 || !strings.Contains(body, want) {
				t.Errorf("%s: got %d %q, want %q in it", path, status, body, want)
			}
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

// TestKernelMetrics: before anything has been synced, every series is there that
// kube-proxy has in the mode, and every one of ours; testdata/metrics-<mode>.txt lists
// them, and -update writes it. Those of the Go runtime and the process are not in it.
func TestKernelMetrics(t *testing.T) {
	modes := []string{*proxyMode}
	if *proxyMode == "iptables" { // the kernel for IPVS mode lacks what this one needs
		modes = append(modes, "nftables")
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			if err := lab.VariantSupported(testContext(t), oneVariant()); err != nil {
				t.Skip(err)
			}
			checkMetrics(t, newLab(t), mode)
		})
	}
}

func checkMetrics(t *testing.T, l *lab.Lab, mode string) {
	ctx := testContext(t)
	// A directory that does not exist: not listed yet, so nothing is synced.
	a := startAgent(ctx, t, l.Nodes[0], oneVariant(), "--proxy-mode", mode, "--manifests", "/nonexistent")
	a.waitLog(ctx, 0, 1, "/nonexistent")
	a.waitLog(ctx, 0, 1, "10249")
	_, body := fetch(ctx, t, a, "http://127.0.0.1:10249/metrics")
	got := series(t, body)
	golden := filepath.Join("testdata", "metrics-"+mode+".txt")
	if *updateGolden {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("series that differ (-%s +scrape):\n%s", golden, diff)
	}
	for _, name := range kubeProxySeries(mode) {
		if !strings.Contains("\n"+got, "\n"+name+" ") {
			t.Errorf("no series %s", name)
		}
	}
}

// series lists the type and the labels of each series of a scrape, all of which must
// be 0, but for gauges that tell of something else than counts.
func series(t *testing.T, body string) string {
	t.Helper()
	parser := expfmt.NewTextParser(prommodel.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name, family := range families {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			where := name
			if len(labels) > 0 {
				where += "{" + strings.Join(labels, ",") + "}"
			}
			if n := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()); n != 0 {
				t.Errorf("%s is %v before anything happened", where, n)
			}
			out = append(out, where+" "+strings.ToLower(family.GetType().String())+"\n")
		}
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// kubeProxySeries are those of kube-proxy v1.36 in a mode.
func kubeProxySeries(mode string) []string {
	out := []string{
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total",
		"kubeproxy_sync_proxy_rules_service_changes_pending",
		"kubeproxy_sync_proxy_rules_service_changes_total",
	}
	for _, path := range []string{"healthz", "livez"} {
		for _, code := range []string{"200", "503"} {
			out = append(out, `kubeproxy_proxy_`+path+`_total{code="`+code+`"}`)
		}
	}
	names := []string{
		"sync_proxy_rules_duration_seconds", "network_programming_duration_seconds",
		"conntrack_reconciler_sync_duration_seconds", "conntrack_reconciler_deleted_entries_total",
		"sync_proxy_rules_last_timestamp_seconds", "sync_proxy_rules_last_queued_timestamp_seconds",
	}
	if mode == "nftables" {
		names = append(names, "sync_full_proxy_rules_duration_seconds", "sync_partial_proxy_rules_duration_seconds",
			"sync_proxy_rules_nftables_sync_failures_total", "sync_proxy_rules_nftables_cleanup_failures_total")
	} else {
		names = append(names, "sync_proxy_rules_iptables_restore_failures_total")
	}
	if mode == "iptables" {
		out = append(out, "kubeproxy_iptables_ct_state_invalid_dropped_packets_total")
		out = append(out, "kubeproxy_iptables_localhost_nodeports_accepted_packets_total")
		names = append(names, "sync_full_proxy_rules_duration_seconds", "sync_partial_proxy_rules_duration_seconds",
			"sync_proxy_rules_iptables_partial_restore_failures_total")
	}
	for _, f := range families() {
		family := `ip_family="` + f.String() + `"`
		for _, name := range names {
			out = append(out, "kubeproxy_"+name+"{"+family+"}")
		}
		for _, table := range []string{"filter", "nat"} {
			if mode == "iptables" {
				out = append(out,
					"kubeproxy_sync_proxy_rules_iptables_total{"+family+`,table="`+table+`"}`,
					"kubeproxy_sync_proxy_rules_iptables_last{"+family+`,table="`+table+`"}`)
			}
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
