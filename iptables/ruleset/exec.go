// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is one run of a program.
type Command struct {
	// Name is looked up in PATH.
	Name   string
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	// Started, where set, is told the process once it runs.
	Started func(pid int)
}

// Exec runs commands: the whole of the engine's contact with the system. It is
// safe for concurrent use.
type Exec interface {
	// Run returns an error that wraps exec.ErrNotFound where there is no such
	// command, and a *CommandError where it ran and failed.
	Run(ctx context.Context, c Command) error
}

// CommandError says that a command ran and failed.
type CommandError struct {
	Name     string
	ExitCode int // -1 where a signal ended it
	Stderr   string
}

// Error returns the command, its exit code and what it printed, on one line.
func (e *CommandError) Error() string {
	msg := strings.Join(strings.Fields(e.Stderr), " ")
	if e.ExitCode < 0 {
		return fmt.Sprintf("%s was killed: %s", e.Name, msg)
	}
	return fmt.Sprintf("%s exited with %d: %s", e.Name, e.ExitCode, msg)
}

// exitResourceProblem is how the legacy command exits when it could not get
// the xtables lock or memory (RESOURCE_PROBLEM in iptables' xtables.h): another
// try may succeed with the same input. The nft variant takes no lock and exits
// so for whatever the kernel refuses.
const exitResourceProblem = 4

// transient tells whether the same restore may succeed the next time.
func (v Variant) transient(err error) bool {
	var ce *CommandError
	if !errors.As(err, &ce) {
		return true
	}
	return ce.ExitCode < 0 || ce.ExitCode == exitResourceProblem && v != NFT
}

// grace is how long a command may go on after its context ended. A restore
// that is under way is better finished than killed between two tables.
const grace = 500 * time.Millisecond

// patience is how long a command may show no sign of life, which is to take input
// or to print. After its input it may be silent longer, patienceForMiB for each MiB
// that it has been given: of 500,000 endpoints the legacy command is given 140 MiB,
// and works on these for a minute. A command that hangs must not keep everything else
// from being programmed for ever.
const (
	patience       = 2 * time.Minute
	patienceForMiB = 2 * time.Second
)

// maxStderr bounds what is kept of a command's complaints.
const maxStderr = 4 << 10

// SystemExec runs real commands.
type SystemExec struct{}

var _ Exec = SystemExec{}

// Run implements Exec. A command does not outlive the agent: were a restore to
// go on after a SIGKILL, it could commit behind the back of the next agent,
// which has read the rules already.
func (SystemExec) Run(ctx context.Context, c Command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// PR_SET_PDEATHSIG follows the thread that forked, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, life, cancel := withLife(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Name, c.Args...)
	cmd.Cancel = func() error { return os.ErrProcessDone } // see grace
	cmd.WaitDelay = grace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Stdin, cmd.Stdout = life.reader(c.Stdin), life.writer(c.Stdout)
	stderr := &limitedBuffer{left: maxStderr}
	cmd.Stderr = stderr
	err := cmd.Start()
	if err == nil {
		if c.Started != nil {
			c.Started(cmd.Process.Pid)
		}
		err = cmd.Wait()
	}
	if ctx.Err() != nil && cmd.Process != nil {
		// The command may be a script, whose child would go on.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if err != nil && errors.Is(context.Cause(ctx), errHangs) {
		return fmt.Errorf("run %s: gave up, it has done nothing for %s", c.Name, life.patience())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &CommandError{Name: c.Name, ExitCode: exit.ExitCode(), Stderr: stderr.String()}
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", c.Name, err)
	}
	return nil
}

// limitedBuffer keeps the first bytes that are written to it. It is no
// io.ReaderFrom, unlike the buffer in it, which would take everything.
type limitedBuffer struct {
	buf  bytes.Buffer
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.left)
	b.left -= keep
	b.buf.Write(p[:keep])
	return len(p), nil
}

func (b *limitedBuffer) String() string { return b.buf.String() }

// Commands are the programs that read and write the rules of one family.
type Commands struct{ Restore, Save string }

// tool returns the command for single chains and rules.
func (c Commands) tool() string { return strings.TrimSuffix(c.Save, "-save") }

// lockWait is how long, in seconds, a restore waits for the xtables lock.
const lockWait = "5"

// restore feeds input to the restore command. Chains that it does not name
// stay as they are, and each table commits as a whole or not at all.
func (c Commands) restore(ctx context.Context, x Exec, input io.Reader, started func(pid int)) error {
	return x.Run(ctx, Command{
		Name:  c.Restore,
		Args:  []string{"--noflush", "-w", lockWait},
		Stdin: input, Started: started,
	})
}

// save streams the rules to v: those of all tables unless args say otherwise.
func (c Commands) save(ctx context.Context, x Exec, v visitor, args ...string) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := parse(r, v)
		_, _ = io.Copy(io.Discard, r) // let the command finish
		done <- err
	}()
	err := x.Run(ctx, Command{Name: c.Save, Args: args, Stdout: w})
	w.Close()
	if perr := <-done; err == nil {
		err = perr
	}
	return err
}
