// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	compareAddr   = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
)

// svc returns the manifest of a Service in the namespace default.
func svc(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: %s, ports: [{port: 80}]}\n", name, ip)
}

// slice returns the manifest of an EndpointSlice of the Service web.
func slice(name string, ips ...string) string {
	out := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: " + name +
		", labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints:\n"
	for _, ip := range ips {
		out += "- addresses: [" + ip + "]\n"
	}
	return out
}

// serviceCIDR returns the manifest of a ServiceCIDR.
func serviceCIDR(name string, cidrs ...string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: %s}\nspec: {cidrs: [%s]}\n", name, strings.Join(cidrs, ", "))
}

const brokenText = "kind: Service\n  apiVersion: broken\n"

func docs(texts ...string) string { return strings.Join(texts, "---\n") }

func key(name string) model.ObjectKey { return model.ObjectKey{Namespace: "default", Name: name} }

// folder is a directory that a test writes to.
type folder struct {
	t    testing.TB
	path string
}

func newFolder(t testing.TB) *folder { return &folder{t, filepath.Join(t.TempDir(), "manifests")} }

func (f *folder) made() *folder {
	f.t.Helper()
	f.check(os.MkdirAll(f.path, 0o755))
	return f
}

func (f *folder) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) file(name string) string { return filepath.Join(f.path, name) }

// write writes the file in place.
func (f *folder) write(name, text string) {
	f.t.Helper()
	f.check(os.WriteFile(f.file(name), []byte(text), 0o644))
}

// replace replaces the file at once.
func (f *folder) replace(name, text string) {
	f.t.Helper()
	f.write("."+name+".tmp", text)
	f.check(os.Rename(f.file("."+name+".tmp"), f.file(name)))
}

func (f *folder) remove(name string) {
	f.t.Helper()
	f.check(os.RemoveAll(f.file(name)))
}

// run is a source at work.
type run struct {
	*sourcetest.Recorder
	logs  *sourcetest.Log
	files *Metrics
	reg   *prometheus.Registry
	stop  func()
}

// start runs a source on the folder until the end of the test.
func start(t testing.TB, f *folder) *run {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	r := &run{Recorder: sourcetest.NewRecorder(t), logs: sourcetest.NewLog(t), files: NewMetrics(reg), reg: reg}
	s, err := New(Config{Dir: f.path, NodeName: "node-1", Metrics: source.NewMetrics(reg), FileMetrics: r.files})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), r.logs.Logger()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

func (r *run) broken() float64     { return testutil.ToFloat64(r.files.broken) }
func (r *run) duplicates() float64 { return testutil.ToFloat64(r.files.duplicates) }

// has is the condition that there are exactly these Services, each with the IP.
func has(want map[string]string) func(*sourcetest.State) bool {
	return func(s *sourcetest.State) bool {
		if len(s.Services) != len(want) {
			return false
		}
		for name, ip := range want {
			got := s.Services[key(name)]
			if got == nil || got.ClusterIPs[0] != netip.MustParseAddr(ip) {
				return false
			}
		}
		return true
	}
}

// is is the condition that the status is this, and the Services are these.
func is(listed, complete bool, want map[string]string) func(*sourcetest.State) bool {
	services := has(want)
	return func(s *sourcetest.State) bool {
		return s.Status == model.SourceStatus{Listed: listed, Complete: complete} && services(s)
	}
}

// waitFor waits until a file that comes last has been read, and so all that was
// before.
func (r *run) barrier(f *folder) {
	f.t.Helper()
	name := fmt.Sprintf("zz-barrier-%d", len(r.Steps()))
	f.replace(name+".yaml", svc(name, "10.99.0.1"))
	r.WaitFor("the barrier", func(s *sourcetest.State) bool { return s.Services[key(name)] != nil })
	f.remove(name + ".yaml")
	r.WaitFor("the barrier's end", func(s *sourcetest.State) bool { return s.Services[key(name)] == nil })
}
