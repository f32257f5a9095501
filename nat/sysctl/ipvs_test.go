// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/proxier/model"
)

// hostIPVS are settings of a machine that has loaded the module.
func hostIPVS(release string) files {
	return files{
		"kernel.osrelease":                      release,
		"net.ipv4.vs.conntrack":                 "0",
		"net.ipv4.vs.conn_reuse_mode":           "1",
		"net.ipv4.vs.expire_nodest_conn":        "0",
		"net.ipv4.vs.expire_quiescent_template": "0",
		"net.ipv4.ip_forward":                   "0",
		"net.ipv4.conf.all.arp_ignore":          "0",
		"net.ipv4.conf.all.arp_announce":        "0",
	}
}

func TestIPVS(t *testing.T) {
	const vs = "net.ipv4.vs."
	always := files{vs + "conntrack": "1", vs + "expire_nodest_conn": "1", vs + "expire_quiescent_template": "1"}
	and := func(more files) files {
		out := maps.Clone(always)
		maps.Copy(out, more)
		return out
	}
	for _, tt := range []struct {
		name    string
		release string
		cfg     IPVSConfig
		has     files
		refuse  map[string]error
		// want are the settings that differ afterwards.
		want     files
		problems []string
	}{
		{name: "IPv6", release: "6.1.0-18-amd64", cfg: IPVSConfig{Families: []model.Family{model.IPv6}}, want: always},
		{name: "IPv4", release: "6.1.0", cfg: IPVSConfig{Families: model.Families()}, want: and(files{"net.ipv4.ip_forward": "1"})},
		{name: "all is well", release: "6.1.0", has: always, want: files{}},
		{
			name: "strict ARP", release: "6.1.0", cfg: IPVSConfig{StrictARP: true},
			want: and(files{"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.all.arp_announce": "2"}),
		},
		{name: "Linux 3.10", release: "3.10.0-1160.el7.x86_64", want: always},
		{name: "Linux 4.0", release: "4.0.9", want: always},
		{name: "Linux 4.1", release: "4.1.52", want: and(files{vs + "conn_reuse_mode": "0"})},
		{name: "Linux 4.18", release: "4.18.0-553.el8_10.x86_64", want: and(files{vs + "conn_reuse_mode": "0"})},
		{name: "Linux 5.8", release: "5.8.0-rc1+", want: and(files{vs + "conn_reuse_mode": "0"})},
		{name: "Linux 5.9", release: "5.9.0", want: always},
		{name: "Linux 10.4", release: "10.4.1", want: always},
		{name: "no version", release: "unknown", want: always},
		{
			name: "a container that may not write", release: "5.4.0", cfg: IPVSConfig{StrictARP: true, Families: model.Families()},
			refuse: map[string]error{
				vs + "conntrack": syscall.EROFS, vs + "conn_reuse_mode": syscall.EROFS, vs + "expire_nodest_conn": syscall.EROFS,
				vs + "expire_quiescent_template": syscall.EROFS, "net.ipv4.ip_forward": syscall.EROFS,
				"net.ipv4.conf.all.arp_ignore": syscall.EROFS, "net.ipv4.conf.all.arp_announce": syscall.EROFS,
			},
			want: files{},
			problems: []string{
				vs + "conntrack", vs + "conn_reuse_mode", vs + "expire_nodest_conn", vs + "expire_quiescent_template",
				"net.ipv4.ip_forward", "net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := hostIPVS(tt.release)
			maps.Copy(before, tt.has)
			h := newHost(t, before)
			h.refuse = tt.refuse
			wantProblems(t, h.IPVS(t.Context(), tt.cfg), tt.problems...)
			got := files{}
			for setting, value := range h.has {
				if value != before[setting] {
					got[setting] = value
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("settings that have changed (-want +got):\n%s", diff)
			}
		})
	}
}

// TestIPVSNotLoaded: without the module, every setting of IPVS is a problem.
func TestIPVSNotLoaded(t *testing.T) {
	h := newHost(t, files{"kernel.osrelease": "6.1.0"})
	problems := h.IPVS(t.Context(), IPVSConfig{})
	wantProblems(t, problems, "net.ipv4.vs.conntrack", "net.ipv4.vs.expire_nodest_conn", "net.ipv4.vs.expire_quiescent_template")
	if !errors.Is(problems[0], fs.ErrNotExist) {
		t.Errorf("the reason is %v", problems[0].Err)
	}
}

// TestKernelIPVS: the kernel has the settings, and they take effect in a namespace.
func TestKernelIPVS(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/ipv4/vs"); err != nil {
		t.Skip("the kernel has no IPVS")
	}
	h := kerneltest.New(t, kerneltest.Setup{Variant: ruleset.Legacy})
	settings := []string{
		"net/ipv4/vs/conntrack", "net/ipv4/vs/expire_nodest_conn", "net/ipv4/vs/expire_quiescent_template", "net/ipv4/ip_forward",
		"net/ipv4/conf/all/arp_ignore",
	}
	err := h.Enter(func() error {
		for _, setting := range settings {
			if got := read(t, setting); got != "0" {
				t.Errorf("%s: at first %s", setting, got)
			}
		}
		wantProblems(t, New("").IPVS(t.Context(), IPVSConfig{StrictARP: true, Families: model.Families()}))
		for _, setting := range settings {
			if got := read(t, setting); got != "1" {
				t.Errorf("%s: got %s, want 1", setting, got)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
