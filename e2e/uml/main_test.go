// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairlead/e2e/uml/guest"
	"fairlead/e2e/uml/machine"
)

// asMain makes the test binary the command.
const asMain = "FAIRLEAD_UML_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if guest.Is() || os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// needKernel skips where no guest can be run.
func needKernel(t *testing.T) {
	t.Helper()
	if err := machine.Supported(); err != nil {
		t.Skip(err)
	}
}

// command is the command with arguments, with a directory for temporary files that
// is its own.
func command(t *testing.T, args ...string) (cmd *exec.Cmd, tmp string, stdout, stderr *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tmp = t.TempDir()
	cmd = exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asMain+"=1", "TMPDIR="+tmp)
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, tmp, stdout, stderr
}

func TestGuest(t *testing.T) {
	needKernel(t)
	shared := t.TempDir()
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // what they contain, nothing if empty
	}{
		{name: "output and exit code", args: []string{"--", "sh", "-c", "echo out; echo err >&2; exit 3"}, code: 3, stdout: "out\n", stderr: "err\n"},
		{name: "kernel", args: []string{"sh", "-c", "cat /proc/cpuinfo | grep -q 'User Mode Linux' && test -e /proc/net/ip_vs"}},
		{name: "a lot of output", args: []string{"sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"}, stdout: strings.Repeat("x", 1000000)},
		{name: "signal", args: []string{"sh", "-c", "kill -TERM $$"}, code: 143},
		{name: "process left behind", args: []string{"sh", "-c", "sleep 1000 & echo out"}, stdout: "out\n"},
		{name: "orphans are reaped", args: []string{"sh", "-c", "(true & echo $! >/tmp/pid); while test -e /proc/$(cat /tmp/pid); do :; done"}},
		{name: "no such command", args: []string{"no-such-command"}, code: 125, stderr: "uml: in the guest: find command: exec: \"no-such-command\": executable file not found in $PATH\n"},
		{name: "no such module", args: []string{"--modules", "nosuch", "true"}, code: 125, stderr: "uml: in the guest: load modules: exit status 1: modprobe: "},
		{name: "no command", code: 125, stderr: "usage: "},
		{name: "unknown flag", args: []string{"--nosuch"}, code: 125, stderr: "flag provided but not defined: -nosuch"},
		{name: "help", args: []string{"--help"}, stderr: "usage: "},
		{name: "timeout", args: []string{"--timeout", "5s", "sleep", "1000"}, code: 124, stderr: "uml: timeout of 5s while the command ran in the guest\n"},
		{name: "timeout of the boot", args: []string{"--timeout", "1ms", "true"}, code: 124, stderr: "uml: timeout of 1ms while the guest booted"},
		{name: "panic", args: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}, code: 125, stderr: "uml: the guest's kernel gave up: Kernel panic - not syncing: sysrq triggered crash\n"},
		{name: "no memory", args: []string{"--mem", "200M", "sh", "-c", "echo 1 >/proc/sys/vm/overcommit_memory; exec sort -S 1G </dev/zero"}, code: 137, stderr: "uml: the guest ran out of its 200M of memory\n"},
		{name: "not enough to boot", args: []string{"--mem", "2M", "true"}, code: 125, stderr: "uml: the guest's kernel ended (exit status 1): Too few physical memory!"},
		{name: "writes stay inside", args: []string{"sh", "-c", "echo x >" + shared + "/inside && cat " + shared + "/inside"}, stdout: "x\n"},
		{name: "shared writes do not", args: []string{"--share", shared, "sh", "-c", "echo x >" + shared + "/shared"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd, tmp, stdout, stderr := command(t, tt.args...)
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("got exit code %d, want %d", got, tt.code)
			}
			for _, o := range []struct{ name, got, want string }{
				{"standard output", stdout.String(), tt.stdout}, {"standard error", stderr.String(), tt.stderr},
			} {
				if !strings.Contains(o.got, o.want) || o.want == "" && o.got != "" {
					t.Errorf("got %s %.500q, want %.500q", o.name, o.got, o.want)
				}
			}
			wantNothingLeft(t, tmp)
		})
	}
	if files, _ := filepath.Glob(shared + "/*"); !slices.Equal(files, []string{shared + "/shared"}) {
		t.Errorf("guests have left files %v, want that which was shared", files)
	}
}

// wantNothingLeft wants no file of a guest's, and no process.
func wantNothingLeft(t *testing.T, tmp string) {
	t.Helper()
	if files, _ := filepath.Glob(tmp + "/*"); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
	if pids := processesOf(tmp); len(pids) > 0 {
		t.Errorf("processes that still run: %v", pids)
	}
}

// processesOf returns the processes of kernels with files in a directory.
func processesOf(tmp string) (pids []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		text, _ := os.ReadFile(line) // it may have gone
		if bytes.Contains(text, []byte("uml_dir="+tmp)) {
			pids = append(pids, filepath.Base(filepath.Dir(line)))
		}
	}
	return pids
}

// TestGuestInterrupted: however the command is ended, the guest ends with it.
func TestGuestInterrupted(t *testing.T) {
	needKernel(t)
	for _, tt := range []struct {
		signal syscall.Signal
		code   int
		stderr string
	}{
		{syscall.SIGINT, 130, "uml: interrupt while the command ran in the guest\n"},
		{syscall.SIGTERM, 143, "uml: terminated while the command ran in the guest\n"},
		{syscall.SIGKILL, -1, ""},
	} {
		t.Run(tt.signal.String(), func(t *testing.T) {
			cmd, tmp, _, stderr := command(t, "sh", "-c", "echo runs; exec sleep 1000")
			runs := make(chan struct{})
			cmd.Stdout = first{runs}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-runs:
			case <-time.After(time.Minute):
				t.Error("the guest does not run after a minute")
			}
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its code follows
			if got := cmd.ProcessState.ExitCode(); got != tt.code || stderr.String() != tt.stderr {
				t.Errorf("got exit code %d and %q, want %d and %q", got, stderr, tt.code, tt.stderr)
			}
			if tt.signal == syscall.SIGKILL {
				awaitEnd(t, tmp)
				again, _, _, _ := command(t, "true") // which sweeps
				again.Env = append(again.Env, "TMPDIR="+tmp)
				if err := again.Run(); err != nil {
					t.Error(err)
				}
			}
			wantNothingLeft(t, tmp)
		})
	}
}

// awaitEnd waits until the kernel has ended, which it does by itself.
func awaitEnd(t *testing.T, tmp string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(processesOf(tmp)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the guest has not ended after half a minute")
		}
	}
}

// first tells of the first write.
type first struct{ written chan struct{} }

func (f first) Write(p []byte) (int, error) {
	select {
	case <-f.written:
	default:
		close(f.written)
	}
	return len(p), nil
}
