// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Sweep removes the labs whose process is dead. A lab's name carries the
// process id of its maker; a living one, even if the number was given to
// another process meanwhile, keeps its lab.
func Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(nsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var errs []error
	for _, e := range entries {
		pid, ok := makerOf(e.Name())
		if !ok || alive(pid) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, removeNS(e.Name()))
	}
	return errors.Join(errs...)
}

// makerOf tells which process made the namespace of that name, if it is a
// lab's at all.
func makerOf(name string) (pid int, ok bool) {
	parts := strings.SplitN(name, "-", 4)
	if len(parts) != 4 || parts[0] != "fl" || len(parts[2]) != 6 {
		return 0, false
	}
	pid, err := strconv.Atoi(parts[1])
	return pid, err == nil && pid > 1
}

func alive(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// killAll kills the processes whose network namespace is the one at path, but
// never the caller.
func killAll(path string) error {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("stat namespace %s: %w", path, err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, dir := range procs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		var got unix.Stat_t
		if unix.Stat(dir+"/ns/net", &got) != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}
