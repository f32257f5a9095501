// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"

	"fairlead/e2e/build"
	"fairlead/e2e/lab"
)

var (
	rulesFile     = inDeploy("monitoring", "fairlead.rules.yaml")
	dashboardFile = inDeploy("monitoring", "dashboard.json")
)

// TestKernelMetricsExist: every metric that rules, dashboard and docs ask for is one that
// the agent exports, before anything has happened. The expressions are parsed by
// Prometheus' own parser.
func TestKernelMetricsExist(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	exported := scrape(ctx, t)
	for _, name := range []string{"up", "scrape_duration_seconds"} { // Prometheus' own
		exported[name] = true
	}
	check := func(where string, names []string) {
		t.Helper()
		if len(names) == 0 {
			t.Errorf("%s names no metric", where)
		}
		for _, name := range names {
			if !exported[name] {
				t.Errorf("%s names %s, which the agent does not export", where, name)
			}
		}
	}
	promnames := tool(t, "promnames")
	out, err := run(promnames, "rules", rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	check(rulesFile, strings.Fields(string(out)))

	cmd := exec.Command(promnames, "expr")
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(strings.Join(dashboard(t).exprs(), "\x00")), &stderr
	if out, err = cmd.Output(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	check(dashboardFile, strings.Fields(string(out)))

	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(docs) == 0 {
		t.Fatalf("%d docs, %v", len(docs), err)
	}
	metric := regexp.MustCompile(`\b(kubeproxy|fairlead)_[a-z0-9_]+[a-z0-9]\b`)
	for _, file := range append(docs, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if names := metric.FindAllString(string(text), -1); len(names) > 0 {
			check(file, names)
		}
	}
}

// scrape runs an agent and returns the names of what it exports, those of a histogram's
// parts among them.
func scrape(ctx context.Context, t *testing.T) map[string]bool {
	t.Helper()
	dir := t.TempDir()
	agent, err := build.Agent(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Pods: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	node := l.Nodes[0]
	cmd := node.Command(ctx, agent, "--manifests", t.TempDir(), "--hostname-override", node.Label, "--iptables-variant=nft", "--service-metrics=*", "--state-file=", "--cni-conf-dir="+dir)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return node.Dial(ctx, network, addr)
	}}}
	for {
		families, err := get(ctx, client)
		if err == nil && slices.ContainsFunc(families["fairlead_owned"].GetMetric(), ownsServices) { // it has synced
			return names(families)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no metrics after a sync: %v", err)
		}
	}
}

func ownsServices(m *dto.Metric) bool {
	return m.GetGauge().GetValue() == 1 && slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == "services" })
}

func get(ctx context.Context, client *http.Client) (map[string]*dto.MetricFamily, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(resp.Body)
}

func names(families map[string]*dto.MetricFamily) map[string]bool {
	out := map[string]bool{}
	for name, f := range families {
		out[name] = true
		if f.GetType() == dto.MetricType_HISTOGRAM {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				out[name+part] = true
			}
		}
	}
	return out
}

// dashboardJSON is what Grafana needs of a dashboard, as far as it is looked at.
type dashboardJSON struct {
	Title, UID    string
	SchemaVersion int
	Templating    struct {
		List []struct{ Name, Type, Query string }
	}
	Panels []struct {
		ID          int
		Type, Title string
		GridPos     struct{ H, W, X, Y int }
		Targets     []struct{ RefID, Expr string }
	}
}

func dashboard(t *testing.T) *dashboardJSON {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	d := &dashboardJSON{}
	if err := json.Unmarshal(text, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// exprs returns the dashboard's expressions, with values for its variables.
func (d *dashboardJSON) exprs() []string {
	values := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")
	var out []string
	for _, v := range d.Templating.List {
		if metric, ok := strings.CutPrefix(v.Query, "label_values("); ok {
			metric, _, _ = strings.Cut(metric, ",")
			out = append(out, metric)
		}
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out = append(out, values.Replace(target.Expr))
		}
	}
	return out
}

// TestDashboard: the dashboard has what Grafana asks of one, and its panels are where
// one can see them.
func TestDashboard(t *testing.T) {
	d := dashboard(t)
	if d.Title == "" || d.UID == "" || d.SchemaVersion == 0 {
		t.Errorf("title %q, uid %q, schema %d", d.Title, d.UID, d.SchemaVersion)
	}
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.W == 0 || p.GridPos.H == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: its number is another's, or it has no title or no place", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panels %q and %q overlap", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// TestRunbook: each alert has a section in the runbook, which its annotation names, and
// the runbook has no other.
func TestRunbook(t *testing.T) {
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	runbook, err := os.ReadFile(filepath.Join(root, "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllSubmatch(runbook, -1) {
		sections[string(m[1])] = true
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if want := "docs/runbook.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
				t.Errorf("%s: its runbook is %q, want %q", r.Alert, r.Annotations["runbook"], want)
			}
			if !sections[r.Alert] {
				t.Errorf("%s has no section in docs/runbook.md", r.Alert)
			}
			delete(sections, r.Alert)
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" {
				t.Errorf("%s: severity %q, summary %q", r.Alert, r.Labels["severity"], r.Annotations["summary"])
			}
		}
	}
	for name := range sections {
		t.Errorf("docs/runbook.md has a section %s, and there is no such alert", name)
	}
}
