// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os/exec"
	"strings"
)

// version is what a program says of itself; empty if it says nothing.
func version(ctx context.Context, program, arg string) string {
	out, err := exec.CommandContext(ctx, program, arg).Output()
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(strings.TrimPrefix(first, "Kubernetes "))
}
