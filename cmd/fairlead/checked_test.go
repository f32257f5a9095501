// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"fairlead/config"
	"fairlead/ipvs"
	"fairlead/nat/egress"
	"fairlead/nat/sysctl"
	"fairlead/proxier"
)

// TestDefaults: defaults make sense, and are those of the parts.
func TestDefaults(t *testing.T) {
	s := config.Default()
	cfg, err := check(s)
	if err != nil {
		t.Fatal(err)
	}
	if s.PodMasquerade.Config != egress.DefaultPath || cfg.scheduler.Name != ipvs.DefaultScheduler ||
		sysctl.ConntrackConfig(s.Conntrack) != sysctl.DefaultConntrack() {
		t.Errorf("got %q, %q and %+v", s.PodMasquerade.Config, cfg.scheduler.Name, s.Conntrack)
	}
}

// TestCheckSaysWhere: what makes no sense in a file is told of by file, line and field.
func TestCheckSaysWhere(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	const own = "apiVersion: fairlead.io/v1alpha1\nkind: FairleadConfiguration\n"
	for text, want := range map[string]string{
		head + "mode: userspace":                                  `:3: mode "userspace" is unknown; use iptables`,
		head + "clusterCIDR: 10.0.0.0":                            `:3: clusterCIDR "10.0.0.0" is not a CIDR`,
		head + "nftables: {masqueradeBit: 32}":                    ":3: nftables.masqueradeBit 32 is not a bit of a mark",
		head + "ipvs:\n  minSyncPeriod: 1m":                       ":4: ipvs.minSyncPeriod 1m0s must not be above --ipvs-sync-period 30s",
		head + "oomScoreAdj: 1001":                                ":3: oomScoreAdj 1001 is out of range",
		head + "conntrack: {tcpEstablishedTimeout: -1s}":          ":3: conntrack.tcpEstablishedTimeout -1s must not be below 0",
		head + "healthzBindAddress: x":                            `:3: healthzBindAddress "x" is not an address and port`,
		head + "logging: {format: xml}":                           `:3: logging.format "xml" is unknown; use text or json`,
		head + "clientConnection: {contentType: text/plain}":      `:3: clientConnection.contentType "text/plain" is unknown`,
		own + "hostPorts: {mode: maybe}":                          `:3: hostPorts.mode "maybe" is unknown; use auto, on or off`,
		own + "serviceMetrics: {services: [a/b/c]}":               `:3: serviceMetrics.services "a/b/c" is neither a namespace nor a Service; write it like`,
		own + "serviceMetrics: {limit: -1}":                       ":3: serviceMetrics.limit -1 must not be below 0",
		own + "startupTaint: 'a b'":                               `:3: startupTaint "a b" is not a taint; write it like`,
		own + "startupTaint: a:Never":                             `:3: startupTaint "a:Never" is not a taint`,
		own + "manifests: /m\nstartupTaint: a":                    ":4: startupTaint needs an API server",
		own + "podMasquerade: {nonMasqueradeCIDRs: [10.0.0.1/8]}": ":3: podMasquerade.nonMasqueradeCIDRs: ",
	} {
		file := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, _, err := commandLine(t, "--config", file).Load()
		if err == nil {
			_, err = check(s)
		}
		if err == nil || !strings.HasPrefix(err.Error(), file+want) {
			t.Errorf("got %v, want %s%s…", err, file, want)
		}
	}
}

func commandLine(t *testing.T, args ...string) *config.CommandLine {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	line := config.Register(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return line
}

// TestReloader: a file that makes no sense is refused and told of once, one that says the
// same is nothing, and one that says something else ends the agent to start it anew.
func TestReloader(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("mode: iptables\n")
	line := commandLine(t, "--config", file)
	s, _, err := line.Load()
	if err != nil {
		t.Fatal(err)
	}
	running, err := check(s)
	if err != nil {
		t.Fatal(err)
	}
	r := newReloader(line, running, prometheus.NewRegistry())
	r.rehearse = func(_ context.Context, cfg, was *agentConfig) error {
		if was != running {
			t.Error("the running configuration is another one")
		}
		if cfg.modes[0] == nftablesName {
			return errors.New("this node cannot")
		}
		return nil
	}
	for _, c := range []struct {
		text    string
		changed bool
		refused float64
	}{
		{"# the same\nmode: iptables\n", false, 0},
		{"mode: magic\n", false, 1},
		{"mode: [\n", false, 1},
		{"mode: nftables\n", false, 1},
		{"mode: iptables\n", false, 0},
		{"mode: ipvs\n", true, 0},
	} {
		put(c.text)
		changed, err := r.changed(t.Context())
		r.tell(t.Context(), err)
		if got := testutil.ToFloat64(r.refused); changed != c.changed || got != c.refused {
			t.Errorf("%q: got %t and %v, want %t and %v", c.text, changed, got, c.changed, c.refused)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if changed, err := r.changed(t.Context()); changed || err == nil {
		t.Errorf("without the file: got %t, %v", changed, err)
	}
	put("mode: ipvs\n")
	if err := r.run(t.Context()); !errors.Is(err, errRestart) {
		t.Errorf("got %v, want %v", err, errRestart)
	}
}

// TestCanListen: an address that somebody else has is told of before the restart, one that
// is the agent's own is not.
func TestCanListen(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := canListen(t.Context(), addr, "0.0.0.0:10256", ""); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taken: got %v", err)
	}
	if err := canListen(t.Context(), addr, strings.Replace(addr, "127.0.0.1", "0.0.0.0", 1)); err != nil {
		t.Errorf("the agent's own: got %v", err)
	}
	if err := errors.Join(l.Close(), canListen(t.Context(), addr, ""), canListen(t.Context(), "", addr)); err != nil {
		t.Errorf("free, or none: got %v", err)
	}
}

// TestJSONLog: lines have the keys that Kubernetes' components have, and klog's verbosity
// counts.
func TestJSONLog(t *testing.T) {
	var out bytes.Buffer
	klog.SetSlogLogger(slog.New(jsonHandler(&out)))
	t.Cleanup(klog.ClearLogger)
	t.Cleanup(func() { _ = setVerbosity("0") })
	if err := setVerbosity("2"); err != nil {
		t.Fatal(err)
	}
	log := klog.FromContext(t.Context())
	log.Info("one", "key", "value")
	log.V(2).Info("two")
	log.V(3).Info("not told")
	log.Error(errors.New("broken"), "three")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %q", lines)
	}
	for i, want := range []map[string]any{{"msg": "one", "v": 0., "key": "value"}, {"msg": "two", "v": 2.}, {"msg": "three", "err": "broken"}} {
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatal(err)
		}
		if ts, _ := got["ts"].(float64); ts < 1.7e12 {
			t.Errorf("ts is %v, want milliseconds", got["ts"])
		}
		if caller, _ := got["caller"].(string); !strings.HasPrefix(caller, "checked_test.go:") {
			t.Errorf("caller is %v", got["caller"])
		}
		delete(got, "ts")
		delete(got, "caller")
		if len(got) != len(want) {
			t.Errorf("got %v, want %v", got, want)
		}
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("%s is %v, want %v", k, got[k], want[k])
			}
		}
	}
}

func TestMayBeLoopback(t *testing.T) {
	for cidr, want := range map[string]bool{"127.0.0.0/8": true, "0.0.0.0/0": true, "10.0.0.0/8": false} {
		if got := mayBeLoopback(proxier.NodePortAddresses{CIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}); got != want {
			t.Errorf("%s: got %t", cidr, got)
		}
	}
	if !mayBeLoopback(proxier.NodePortAddresses{}) || mayBeLoopback(proxier.NodePortAddresses{Primary: true}) {
		t.Error("all addresses, or the primary one")
	}
}
