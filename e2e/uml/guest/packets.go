// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// backlog is how many packets may wait for the CPU; 1000 is the kernel's default.
const backlog = 1 << 16

// connections is how many connections each namespace may track. The kernel chooses
// 8192 for the guest's memory, and a minute of clients that hold none for long, but make
// a hundred in a second, fills that: then it drops what is new.
const connections = 1 << 18

// trackConnections lets namespaces track many connections, if the kernel tracks them.
func trackConnections() error {
	err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_max", []byte(strconv.Itoa(connections)), 0)
	if errors.Is(err, os.ErrNotExist) { // the module is not among the job's
		return nil
	}
	return err
}

// favourPackets lets packets come before processes. There is one CPU, and
// everything that sends and receives is on it. Of what a burst leaves to
// ksoftirqd (kernel/softirq.c), that gets to no more than one of many processes
// does, and meanwhile the queue overflows: tests would see drops that no rule has
// made.
func favourPackets() error {
	const setting = "/proc/sys/net/core/netdev_max_backlog"
	if err := os.WriteFile(setting, []byte(strconv.Itoa(backlog)), 0); err != nil {
		return err
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "ksoftirqd/0" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return err
		}
		attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
		if err := unix.SchedSetAttr(pid, attr, 0); err != nil {
			return fmt.Errorf("raise the priority of ksoftirqd: %w", err)
		}
		return nil
	}
	return fmt.Errorf("find ksoftirqd: %w", os.ErrNotExist)
}
