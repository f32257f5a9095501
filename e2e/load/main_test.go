// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestRun: what can be told without an API server.
func TestRun(t *testing.T) {
	for _, c := range []struct {
		name, args string
		lines      int
		wantErr    string
	}{
		{"dry run", "--services 10 --endpoints 2 --changes 5 --dry-run", 5, ""},
		{"help", "--help", 20, "help requested"},
		{"argument", "10000", 0, `"10000" is not understood`},
		{"workers", "--workers 0", 0, "--workers 0 must be at least 1"},
		{"rate", "--rate -1", 0, "must not be below 0"},
		{"range", "--service-cidr 10.96.0.0", 0, `service-cidr "10.96.0.0" is not a CIDR`},
		{"too many", "--services 100000", 0, "no room for 100000 cluster IPs"},
		{"mix", "--mix grow=1", 0, `"grow=1" is none of`},
		{"kubeconfig", "--kubeconfig /nonexistent", 0, "read kubeconfig"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			err := run(t.Context(), strings.Fields(c.args), &out)
			if c.wantErr == "" && err != nil || c.wantErr != "" && (err == nil || !strings.Contains(err.Error(), c.wantErr)) {
				t.Errorf("got error %v, want %q", err, c.wantErr)
			}
			if got := strings.Count(out.String(), "\n"); got < c.lines || c.lines == 0 && got > 0 {
				t.Errorf("got %d lines of output, want %d:\n%s", got, c.lines, &out)
			}
			if errors.Is(err, pflag.ErrHelp) && !strings.Contains(out.String(), "--seed") {
				t.Errorf("the help does not have the flags:\n%s", &out)
			}
		})
	}
}
