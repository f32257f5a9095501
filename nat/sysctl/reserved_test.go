// SPDX-License-Identifier: Apache-2.0

package sysctl

import "testing"

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
