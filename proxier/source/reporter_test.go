// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"fairlead/proxier/model"
)

// logged returns a context whose logger writes to the test, and a function that
// returns the messages so far.
func logged(t *testing.T) (context.Context, func() []string) {
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	buffer := logger.GetSink().(ktesting.Underlier).GetBuffer()
	return klog.NewContext(t.Context(), logger), func() []string {
		var out []string
		for _, entry := range buffer.Data() {
			out = append(out, strings.TrimSpace(fmt.Sprintln(append([]any{entry.Message},
				append(entry.WithKVList, entry.ParameterKVList...)...)...)))
		}
		return out
	}
}

func TestMetricsHaveEveryKindFromTheStart(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	NewMetrics(reg)
	want := `
# HELP fairlead_objects_refused_total Versions of objects that were refused, as a whole or in part, because they hold values that cannot be programmed safely.
# TYPE fairlead_objects_refused_total counter
fairlead_objects_refused_total{kind="EndpointSlice"} 0
fairlead_objects_refused_total{kind="Node"} 0
fairlead_objects_refused_total{kind="Pod"} 0
fairlead_objects_refused_total{kind="Service"} 0
fairlead_objects_refused_total{kind="ServiceCIDR"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestReporterTellsOncePerVersion(t *testing.T) {
	ctx, messages := logged(t)
	metrics := NewMetrics(prometheus.NewPedanticRegistry())
	r := NewReporter(metrics)
	count := func() float64 { return testutil.ToFloat64(metrics.refused.WithLabelValues(KindService)) }
	key := model.ObjectKey{Namespace: "shop", Name: "web"}
	bad := func(value string) []Refusal {
		return []Refusal{{Kind: KindService, Key: key, Field: "spec.ports[0].port", Value: value, Reason: reasonPort}}
	}
	for _, step := range []struct {
		name    string
		version string
		refused []Refusal
		logs    int
		count   float64
		// since is empty where the version has been told of, or has nothing to
		// tell.
		since string
	}{
		{"a good version", "1", nil, 0, 0, ""},
		{"a bad version", "2", bad("0"), 1, 1, "2"},
		{"the same version read again", "2", bad("0"), 1, 1, ""},
		{"a new version, bad in the same way", "3", bad("0"), 1, 2, "2"},
		{"one more", "4", bad("0"), 1, 3, "2"},
		{"a new version, bad in another way", "5", bad("-1"), 2, 4, "5"},
		{"a good version again", "6", nil, 2, 4, ""},
		{"bad as it was", "7", bad("-1"), 3, 5, "7"},
	} {
		fresh, since := r.Report(ctx, Outcome{Kind: KindService, Key: key, Version: step.version, Used: true, Refused: step.refused})
		if since != step.since || fresh != (step.since != "") {
			t.Errorf("%s: reported %v since %q, want since %q", step.name, fresh, since, step.since)
		}
		if got := len(messages()); got != step.logs {
			t.Errorf("%s: %d log lines, want %d: %q", step.name, got, step.logs, messages())
		}
		if got := count(); got != step.count {
			t.Errorf("%s: counted %v, want %v", step.name, got, step.count)
		}
	}
	r.Forget(KindService, key)
	r.Report(ctx, Outcome{Kind: KindService, Key: key, Version: "6", Refused: bad("-1"), Where: "web.yaml:3"})
	want := `Refused an object where web.yaml:3 refusal Service "shop/web": spec.ports[0].port "-1": ` + reasonPort
	if got := messages(); got[len(got)-1] != want {
		t.Errorf("after Forget logged %q, want %q", got[len(got)-1], want)
	}
}

func TestReporterBoundsTheLinesAboutOneObject(t *testing.T) {
	ctx, messages := logged(t)
	r := NewReporter(nil)
	var refused []Refusal
	for i := range 1000 {
		refused = append(refused, Refusal{Kind: KindEndpointSlice, Field: fmt.Sprintf("endpoints[%d]", i)})
	}
	r.Report(ctx, Outcome{Kind: KindEndpointSlice, Used: true, Refused: refused})
	got := messages()
	if len(got) != maxLoggedRefusals+1 {
		t.Fatalf("%d log lines, want %d", len(got), maxLoggedRefusals+1)
	}
	if diff := cmp.Diff("Refused more of the same object refusals 995", got[maxLoggedRefusals]); diff != "" {
		t.Error(diff)
	}
}

func TestRefusalIsOneBoundedLineWhateverTheObjectHolds(t *testing.T) {
	hostile := strings.Repeat("\n\"\x00\xff ü'`$(reboot)", 100)
	r := newRefusals(KindService, hostile, hostile)
	r.add("spec.clusterIP", hostile, reasonNoAddress)
	line := r.list[0].String()
	if len(line) > 4*(2*maxRefusalName+maxRefusalValue)+100 {
		t.Errorf("line is %d bytes long", len(line))
	}
	for i, c := range []byte(line) {
		if c < ' ' || c > '~' {
			t.Fatalf("byte %d of the line is %#x", i, c)
		}
	}
}
