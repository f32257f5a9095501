// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"fairlead/proxier/model"
)

// files are settings by the names that people know them by.
type files map[string]string

// host is a machine with some settings.
type host struct {
	*Settings
	t *testing.T
	// has are the settings, as they are now.
	has files
	// writes counts what is written.
	writes int
	// refuse is what writes to a setting end with.
	refuse map[string]error
}

func newHost(t *testing.T, has files) *host {
	t.Helper()
	root := t.TempDir()
	h := &host{Settings: New(root), t: t, has: maps.Clone(has), refuse: map[string]error{}}
	for setting, value := range has {
		path := filepath.Join(root, fileOf(setting))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h.write = func(path, value string) error {
		h.writes++
		setting := name(strings.TrimPrefix(path, root+"/"))
		if err := h.refuse[setting]; err != nil {
			return &fs.PathError{Op: "write", Path: path, Err: err}
		}
		h.has[setting] = value
		return os.WriteFile(path, []byte(value+"\n"), 0o644)
	}
	return h
}

// fileOf is the opposite of name.
func fileOf(setting string) string {
	if file, ok := strings.CutPrefix(setting, "/"); ok {
		return file
	}
	return sysctlFile(strings.ReplaceAll(setting, ".", "/"))
}

// settings are the settings that problems are about.
func settings(problems []*Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Setting)
	}
	return out
}

// wantProblems checks what problems are about, and that each says it all in one
// line.
func wantProblems(t *testing.T, problems []*Problem, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, settings(problems)); diff != "" {
		t.Errorf("problems: -want +got:\n%s", diff)
	}
	for _, p := range problems {
		if p.Effect == "" || p.Remedy == "" || !strings.HasPrefix(p.Error(), p.Setting+": ") || strings.Contains(p.Error(), "\n") {
			t.Errorf("got %q, want a line with setting, effect and remedy", p.Error())
		}
	}
}

// hostConntrack are settings of a machine of two CPUs, as Debian 12 has them.
func hostConntrack() files {
	return files{
		"/sys/devices/system/cpu/online":                     "0-1",
		"/sys/module/nf_conntrack/parameters/hashsize":       "65536",
		"net.netfilter.nf_conntrack_buckets":                 "65536",
		"net.netfilter.nf_conntrack_max":                     "65536",
		"net.netfilter.nf_conntrack_tcp_timeout_established": "432000",
		"net.netfilter.nf_conntrack_tcp_timeout_close_wait":  "60",
		"net.netfilter.nf_conntrack_udp_timeout":             "30",
		"net.netfilter.nf_conntrack_udp_timeout_stream":      "120",
		"net.netfilter.nf_conntrack_tcp_be_liberal":          "0",
	}
}

func TestConntrack(t *testing.T) {
	const (
		ct          = "net.netfilter.nf_conntrack_"
		hash        = "/sys/module/nf_conntrack/parameters/hashsize"
		established = ct + "tcp_timeout_established"
		closeWait   = ct + "tcp_timeout_close_wait"
	)
	for _, tt := range []struct {
		name   string
		cfg    ConntrackConfig
		host   files
		refuse map[string]error
		// want are the settings that differ afterwards.
		want     files
		problems []string
	}{
		{
			name: "defaults", cfg: DefaultConntrack(),
			want: files{ct + "max": "131072", established: "86400", closeWait: "3600"},
		},
		{
			name: "many CPUs", cfg: ConntrackConfig{MaxPerCore: 32768, Min: 131072},
			host: files{"/sys/devices/system/cpu/online": "0-7,16-23"},
			want: files{ct + "max": "524288", hash: "131072"},
		},
		{
			name: "very many CPUs", cfg: ConntrackConfig{MaxPerCore: 32768, Min: 131072},
			host: files{"/sys/devices/system/cpu/online": "0-255"},
			want: files{ct + "max": "1048576", hash: "262144"},
		},
		{
			name: "a minimum above all", cfg: ConntrackConfig{MaxPerCore: 1, Min: 2000000},
			want: files{ct + "max": "2000000", hash: "500000"},
		},
		{
			name: "lower than it is", cfg: ConntrackConfig{MaxPerCore: 10000},
			want: files{ct + "max": "20000"},
		},
		{name: "left alone", cfg: ConntrackConfig{Min: 131072}},
		{
			name: "UDP and liberal", cfg: ConntrackConfig{UDPTimeout: 45 * time.Second, UDPStreamTimeout: 3 * time.Minute, TCPBeLiberal: true},
			want: files{ct + "udp_timeout": "45", ct + "udp_timeout_stream": "180", ct + "tcp_be_liberal": "1"},
		},
		{
			name: "below a second", cfg: ConntrackConfig{UDPTimeout: time.Millisecond},
			want: files{ct + "udp_timeout": "1"},
		},
		{
			name: "not liberal is left alone", host: files{ct + "tcp_be_liberal": "1"},
		},
		{
			name: "sysfs read-only", cfg: ConntrackConfig{MaxPerCore: 262144},
			refuse: map[string]error{hash: syscall.EROFS},
			want:   files{ct + "max": "524288", ct + "buckets": "131072"},
		},
		{
			name: "all refused", cfg: ConntrackConfig{
				MaxPerCore: 262144, TCPEstablishedTimeout: time.Hour, TCPCloseWaitTimeout: time.Hour,
				UDPTimeout: time.Hour, UDPStreamTimeout: time.Hour, TCPBeLiberal: true,
			},
			refuse: map[string]error{
				ct + "max": syscall.EROFS, hash: syscall.EROFS, ct + "buckets": syscall.EROFS,
				established: syscall.EROFS, closeWait: syscall.EACCES,
				ct + "udp_timeout": syscall.EACCES, ct + "udp_timeout_stream": syscall.EACCES, ct + "tcp_be_liberal": syscall.EACCES,
			},
			problems: []string{
				ct + "max", hash, established, closeWait,
				ct + "udp_timeout", ct + "udp_timeout_stream", ct + "tcp_be_liberal",
			},
		},
		{
			name: "one refused, all else is done", cfg: DefaultConntrack(),
			refuse:   map[string]error{established: syscall.EACCES},
			want:     files{ct + "max": "131072", closeWait: "3600"},
			problems: []string{established},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			has := hostConntrack()
			maps.Copy(has, tt.host)
			h := newHost(t, has)
			maps.Copy(h.refuse, tt.refuse)
			wantProblems(t, h.Conntrack(t.Context(), tt.cfg), tt.problems...)
			want := maps.Clone(has)
			maps.Copy(want, tt.want)
			if diff := cmp.Diff(want, h.has); diff != "" {
				t.Errorf("settings: -want +got:\n%s", diff)
			}
			if h.writes = 0; len(tt.refuse) == 0 {
				wantProblems(t, h.Conntrack(t.Context(), tt.cfg))
				if h.writes > 0 {
					t.Errorf("the second time: got %d writes, want none", h.writes)
				}
			}
		})
	}
}

func TestConntrackMissing(t *testing.T) {
	h := newHost(t, nil)
	problems := h.Conntrack(t.Context(), DefaultConntrack())
	if len(problems) != 4 || h.writes > 0 {
		t.Errorf("got %v and %d writes, want a problem for each setting and nothing written", problems, h.writes)
	}
	for _, p := range problems {
		if !errors.Is(p, fs.ErrNotExist) {
			t.Errorf("got %v, want %v", p, fs.ErrNotExist)
		}
	}
	if h.BeLiberal() {
		t.Error("liberal without the setting")
	}
}

func TestBeLiberal(t *testing.T) {
	for value, want := range map[string]bool{"0": false, "1": true} {
		h := newHost(t, files{"net.netfilter.nf_conntrack_tcp_be_liberal": value})
		if got := h.BeLiberal(); got != want {
			t.Errorf("%s: got %t, want %t", value, got, want)
		}
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-1": 2, "0-3,8,10-11": 7, "": 0, "x": 0, "3-1": 0, "0-": 0} {
		if got := countCPUs(list); got != want {
			t.Errorf("%q: got %d, want %d", list, got, want)
		}
	}
	if got := newHost(t, nil).cpus(); got < 1 {
		t.Errorf("got %d CPUs where none are listed", got)
	}
}

func TestForwarding(t *testing.T) {
	const four, six = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
	for _, tt := range []struct {
		name     string
		host     files
		families []model.Family
		want     []string
	}{
		{"both", files{four: "1", six: "1"}, model.Families(), nil},
		{"neither", files{four: "0", six: "0"}, model.Families(), []string{four, six}},
		{"IPv4 only, and only that is used", files{four: "1", six: "0"}, []model.Family{model.IPv4}, nil},
		{"unknown", nil, []model.Family{model.IPv6}, []string{six}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, tt.host)
			problems := h.Forwarding(tt.families...)
			wantProblems(t, problems, tt.want...)
			for _, p := range problems {
				if !strings.Contains(p.Remedy, "sysctl -w "+p.Setting+"=1") {
					t.Errorf("got remedy %q, want the command", p.Remedy)
				}
			}
			if h.writes > 0 {
				t.Error("something was written")
			}
		})
	}
}

func TestBridgeNetfilter(t *testing.T) {
	const four, six = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"
	for _, tt := range []struct {
		name   string
		host   files
		family model.Family
		refuse error
		passes bool
		writes int
		want   []string
	}{
		{"set", files{four: "0", six: "0"}, model.IPv4, nil, true, 1, nil},
		{"set for IPv6", files{four: "0", six: "0"}, model.IPv6, nil, true, 1, nil},
		{"already set", files{four: "1", six: "0"}, model.IPv4, nil, true, 0, nil},
		{"already set, could not be", files{four: "1", six: "0"}, model.IPv4, syscall.EROFS, true, 0, nil},
		{"refused", files{four: "0", six: "1"}, model.IPv4, syscall.EROFS, false, 1, []string{four}},
		{"refused for IPv6", files{four: "1", six: "0"}, model.IPv6, syscall.EROFS, false, 1, []string{six}},
		{"no such module", nil, model.IPv4, nil, false, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, tt.host)
			h.refuse[four], h.refuse[six] = tt.refuse, tt.refuse
			passes, problems := h.BridgeNetfilter(t.Context(), tt.family)
			if passes != tt.passes || h.writes != tt.writes {
				t.Errorf("got %t and %d writes, want %t and %d", passes, h.writes, tt.passes, tt.writes)
			}
			wantProblems(t, problems, tt.want...)
		})
	}
}

func TestRouteLocalnet(t *testing.T) {
	const setting = "net.ipv4.conf.all.route_localnet"
	h := newHost(t, files{setting: "0"})
	for i, step := range []struct {
		do     func() []*Problem
		want   string
		writes int
	}{
		{func() []*Problem { return h.SetRouteLocalnet(t.Context()) }, "1", 1},
		{func() []*Problem { return h.SetRouteLocalnet(t.Context()) }, "1", 1},
		{func() []*Problem { return h.ResetRouteLocalnet(t.Context()) }, "0", 2},
		{func() []*Problem { return h.ResetRouteLocalnet(t.Context()) }, "0", 2},
	} {
		wantProblems(t, step.do())
		if h.has[setting] != step.want || h.writes != step.writes {
			t.Errorf("step %d: got %s after %d writes, want %s after %d", i, h.has[setting], h.writes, step.want, step.writes)
		}
	}
	h.refuse[setting] = syscall.EROFS
	problems := h.SetRouteLocalnet(t.Context())
	wantProblems(t, problems, setting)
	if len(problems) == 1 && !errors.Is(problems[0], syscall.EROFS) {
		t.Errorf("got %v, want %v", problems[0], syscall.EROFS)
	}
}

func TestLog(t *testing.T) {
	var buf strings.Builder
	ctx := klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&buf))))
	h := newHost(t, files{"net.ipv4.conf.all.route_localnet": "0"})
	Warn(ctx, h.SetRouteLocalnet(ctx))
	h.refuse["net.ipv4.conf.all.route_localnet"] = syscall.EROFS
	Warn(ctx, h.ResetRouteLocalnet(ctx))
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %q, want two lines", lines)
	}
	for i, parts := range [][]string{
		{"Set kernel setting", `setting="net.ipv4.conf.all.route_localnet"`, `from="0"`, `to="1"`},
		{"Warning", `setting="net.ipv4.conf.all.route_localnet"`, "neighbours", "set it to 0", "read-only file system"},
	} {
		for _, part := range parts {
			if !strings.Contains(lines[i], part) {
				t.Errorf("got line %q, want %q in it", lines[i], part)
			}
		}
	}
}
