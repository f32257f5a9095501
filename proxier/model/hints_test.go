// SPDX-License-Identifier: Apache-2.0

package model

import "testing"

func TestHints(t *testing.T) {
	for _, tc := range []struct {
		name         string
		zones, nodes []string
		want         string
	}{
		{name: "none", want: "zones= nodes="},
		{name: "zones", zones: []string{"a", "b"}, want: "zones=a,b nodes="},
		{name: "nodes", nodes: []string{"a"}, want: "zones= nodes=a"},
		{name: "both", zones: []string{"a"}, nodes: []string{"b", "c"}, want: "zones=a nodes=b,c"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := NewHints(tc.zones, tc.nodes)
			if got.String() != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if !got.Equal(NewHints(tc.zones, tc.nodes)) {
				t.Error("does not equal the same")
			}
			if other := NewHints(append(tc.zones, "x"), tc.nodes); got.Equal(other) {
				t.Errorf("equals %q", other)
			}
			if empty := len(tc.zones)+len(tc.nodes) == 0; empty != (got == Hints{}) {
				t.Errorf("%q is the zero value: %t", got, !empty)
			}
		})
	}
}
