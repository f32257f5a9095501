// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openFiles is how many files a process may have open.
const openFiles = 1 << 16

// Modules are those that nothing loads by itself: what the kernels of distributions
// have from the start, or an administrator loads for a node.
func Modules() []string { return []string{"ipv6", "br_netfilter", "ip_vs"} }

// Is reports whether this is the first process of a guest, which has to call Main.
func Is() bool { return os.Getpid() == 1 && os.Getenv(JobEnv) != "" }

// Main is the first process of the guest. It does not return: the machine is
// switched off at its end, as the kernel panics without a first process.
func Main() {
	defer func() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }()
	status, err := terminal(ttyStatus)
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		return
	}
	say := func(s Status) {
		// A machine that does not hear it sees the kernel end.
		_ = json.NewEncoder(status).Encode(s)
		drain(status)
	}
	code, err := run(func() { say(Status{Running: true}) })
	if err != nil {
		say(Status{Error: err.Error()})
		return
	}
	say(Status{Exited: true, Code: code})
}

// run prepares the machine and runs the command.
func run(running func()) (code int, err error) {
	job, err := readJob(os.Getenv(JobEnv))
	if err != nil {
		return 0, err
	}
	os.Clearenv()
	for _, entry := range job.Env {
		name, value, _ := strings.Cut(entry, "=")
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	if err := prepare(job); err != nil {
		return 0, err
	}
	stdout, err := terminal(ttyOut)
	if err != nil {
		return 0, err
	}
	stderr, err := terminal(ttyErr)
	if err != nil {
		return 0, err
	}
	running()
	code, err = execute(job, stdout, stderr)
	drain(stdout)
	drain(stderr)
	return code, err
}

// prepare makes of a kernel that has just booted one that runs tests.
func prepare(job Job) error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if err := makeRoot(release); err != nil {
		return err
	}
	if err := mountKernel(); err != nil {
		return err
	}
	if err := mountShared(job.Shared); err != nil {
		return err
	}
	if err := linkModules(release); err != nil {
		return err
	}
	if len(job.Modules) > 0 {
		out, err := exec.Command("modprobe", append([]string{"-a"}, job.Modules...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("load modules: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: openFiles, Max: openFiles}); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	if err := unix.Sethostname([]byte("uml")); err != nil {
		return fmt.Errorf("set the host's name: %w", err)
	}
	if err := favourPackets(); err != nil {
		return err
	}
	if err := trackConnections(); err != nil {
		return err
	}
	return loopbackUp()
}

func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// execute runs the command, and waits until it has ended and nothing of what it
// printed is left. It reads from pipes, so that to the command its output is not
// a terminal.
func execute(job Job, stdout, stderr io.Writer) (code int, err error) {
	path, err := exec.LookPath(job.Args[0])
	if err != nil {
		return 0, fmt.Errorf("find command: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var copies sync.WaitGroup
	var pipes []*os.File
	files := []uintptr{null.Fd()}
	for _, to := range []io.Writer{stdout, stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		pipes = append(pipes, w)
		files = append(files, w.Fd())
		copies.Go(func() { _, _ = io.Copy(to, r) })
	}
	pid, err := syscall.ForkExec(path, job.Args, &syscall.ProcAttr{Dir: job.Dir, Env: job.Env, Files: files})
	for _, w := range pipes {
		w.Close()
	}
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", job.Args[0], err)
	}
	code = reap(pid)
	_ = unix.Kill(-1, unix.SIGKILL) // what the command has left running
	copies.Wait()
	return code, nil
}

// reap waits for a process, and meanwhile for all whose parent has ended, which
// are the first process's to wait for. It returns the exit code as a shell has it.
func reap(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err != nil || got != pid:
		case ws.Signaled():
			return 128 + int(ws.Signal())
		default:
			return ws.ExitStatus()
		}
	}
}

// terminal opens one of the guest's terminals, so that it passes bytes as they are.
func terminal(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("set terminal %s: %w", name, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("set terminal %s: %w", name, err)
	}
	return f, nil
}

// drain waits until a terminal has passed on all that was written to it.
func drain(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }
