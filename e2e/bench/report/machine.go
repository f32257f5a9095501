// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ThisMachine describes the machine. What cannot be found out is left empty.
func ThisMachine(ctx context.Context) Machine {
	m := Machine{CPUs: runtime.NumCPU()}
	m.CPU = field("/proc/cpuinfo", "model name")
	kib, _ := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"))
	m.MemoryMiB = kib >> 10
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	out, _ := exec.CommandContext(ctx, "iptables-nft", "--version").Output()
	if words := strings.Fields(string(out)); len(words) > 1 {
		m.Iptables = strings.TrimPrefix(words[1], "v")
	}
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	m.Load, _ = strconv.ParseFloat(first, 64)
	return m
}

// field is the value of the first line "name : value" of a file.
func field(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
