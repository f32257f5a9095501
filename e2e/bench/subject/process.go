// SPDX-License-Identifier: Apache-2.0

package subject

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a subject that runs.
type Process struct {
	// Started is when it was started.
	Started time.Time

	name string
	node Node
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
}

// Start runs a subject on a node. It ends with Stop or Kill, with ctx, or with
// this process.
func (s Subject) Start(ctx context.Context, n Node, o Options) (*Process, error) {
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", s.Name, err)
	}
	defer log.Close() // the process has its own
	p := &Process{name: s.Name, node: n, cmd: s.command(ctx, n, o), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr.Setpgid = true // an interrupt from the terminal is for us alone
	// The kernel kills it when the thread that started it ends.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p.Started = time.Now()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // cmd.ProcessState says how it ended
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	return p, nil
}

// WhileRunning returns a context that ends when the process does, and why.
func (p *Process) WhileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-p.done:
			cancel(p.ended())
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// ended tells how it ended and what it said last.
func (p *Process) ended() error {
	text, err := os.ReadFile(p.node.Log)
	const shown = 2000
	text = bytes.TrimSpace(text[max(0, len(text)-shown):])
	return errors.Join(fmt.Errorf("%s ended by itself (%s), after it had said:\n%s", p.name, p.cmd.ProcessState, text), err)
}

// Stop asks it to end and waits until it has. One that does not hear is killed,
// which is no error: a restore command may hold it up for minutes.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return p.ended()
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
	return nil
}

// Kill ends it at once, if it still runs. What it has started ends with it, or
// with its node.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}
