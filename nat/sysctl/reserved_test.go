// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"syscall"
	"testing"
)

// TestReservedPorts: what others have reserved stays, and what is not wanted any more
// goes.
func TestReservedPorts(t *testing.T) {
	const setting = "net.ipv4.ip_local_reserved_ports"
	h := newHost(t, files{setting: "8080,30001"})
	r := NewReservedPorts(h.Settings)
	for _, tt := range []struct {
		ports []uint16
		want  string
	}{
		{[]uint16{30000, 30002, 30080}, "8080,30000-30002,30080"},
		{[]uint16{30001, 30080}, "8080,30001,30080"},
		{[]uint16{65535}, "8080,30001,65535"},
		{nil, "8080,30001"},
	} {
		if problems := r.Set(t.Context(), tt.ports); len(problems) > 0 {
			t.Fatal(problems)
		}
		if got := h.has[setting]; got != tt.want {
			t.Errorf("with %v: %q, want %q", tt.ports, got, tt.want)
		}
	}
	wantProblems(t, NewReservedPorts(newHost(t, files{}).Settings).Set(t.Context(), []uint16{30080}), setting)
	wantProblems(t, NewReservedPorts(newHost(t, files{setting: "many"}).Settings).Set(t.Context(), []uint16{30080}), setting)
}

// TestReservedBefore: who cannot write settings misses nothing where the ports have been
// reserved before, or the kernel chooses none of them.
func TestReservedBefore(t *testing.T) {
	const reserved, chosen = "net.ipv4.ip_local_reserved_ports", "net.ipv4.ip_local_port_range"
	for _, tt := range []struct {
		name             string
		reserved, choice string
		init             bool
		want             string // what is reserved before it cannot be written any more
		problem          bool
	}{
		{"apart", "8080", "32768\t60999", true, "8080", false},
		{"apart, without the first step", "8080", "32768\t60999", false, "8080", false},
		{"among them", "8080", "1024\t65000", true, "8080,30000-32767", false},
		{"among them, without the first step", "8080", "1024\t65000", false, "8080", true},
		{"among them, reserved by others", "30080", "1024\t65000", false, "30080", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, files{reserved: tt.reserved, chosen: tt.choice})
			if tt.init {
				if problems := h.ReserveNodePorts(t.Context()); len(problems) > 0 {
					t.Fatal(problems)
				}
			}
			if got := h.has[reserved]; got != tt.want {
				t.Errorf("reserved are %q, want %q", got, tt.want)
			}
			h.refuse[reserved] = syscall.EROFS
			problems := NewReservedPorts(h.Settings).Set(t.Context(), []uint16{30080})
			if tt.problem {
				wantProblems(t, problems, reserved)
			} else if len(problems) > 0 {
				t.Error(problems)
			}
		})
	}
}
