// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// parentVariable makes the test binary play the parent of TestDiesWithParent.
const parentVariable = "FAIRLEAD_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentVariable); dir != "" {
		beParent(dir)
	}
	os.Exit(m.Run())
}

// beParent starts a program from a thread that ends right after, prints the
// program's process id, and waits to be killed.
func beParent(dir string) {
	var p *process
	var err error
	onDyingThread(func() { p, err = startProcess(dir, []string{"sleep", "1000"}, nil) })
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.cmd.Process.Pid)
	select {}
}

// onDyingThread calls f on a thread that ends once f has returned.
func onDyingThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			onDyingThread(f) // the main thread never ends
			return
		}
		f()
	}()
	<-done
}

func TestDiesWithParent(t *testing.T) {
	parent := exec.Command("/proc/self/exe")
	parent.Env = append(os.Environ(), parentVariable+"="+t.TempDir())
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer parent.Wait()
	defer parent.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal("program is gone before its parent: ", err)
	}
	defer unix.Close(pidfd)
	if gone(t, pidfd, 100*time.Millisecond) {
		t.Fatal("program ended before its parent")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !gone(t, pidfd, 10*time.Second) {
		t.Error("program outlives its parent")
	}
}

// gone waits until the process of pidfd has ended, and reports whether it has.
func gone(t *testing.T, pidfd int, timeout time.Duration) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
		if err == nil {
			return n == 1
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}

func TestKill(t *testing.T) {
	p, err := startProcess(t.TempDir(), []string{"sh", "-c", "echo because; exit 3"}, []string{"env", "A=b"})
	if err != nil {
		t.Fatal(err)
	}
	<-p.exited
	err = p.kill()
	if err == nil {
		t.Fatal("no error for a program that ended by itself")
	}
	for _, want := range []string{"sh ended by itself (exit status 3)", "because"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %q, want %q in it", err, want)
		}
	}
}

func TestTail(t *testing.T) {
	p, err := startProcess(t.TempDir(), []string{"seq", "3000"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-p.exited
	b, err := p.tail()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	if len(b) > tailSize || lines[len(lines)-1] != "3000" || len(lines[0]) != 4 {
		t.Errorf("got %d bytes from %q to %q, want the last whole lines", len(b), lines[0], lines[len(lines)-1])
	}
}
