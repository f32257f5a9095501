// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// shownLines is how much of the agent's log is shown after a failure.
const shownLines = 30

// agent is the running Fairlead.
type agent struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended and err is set
	err  error
}

// startAgent starts Fairlead in the node.
func (d *demo) startAgent(ctx context.Context) error {
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close() // the agent has its own
	cmd := d.node().Command(ctx, d.binary, "--manifests", d.manifests,
		"--cluster-cidr", "10.244.0.0/24,fd00:10:244::/64", "--hostname-override", "node-1", "--state-file", "", "-v=2")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for the demo alone
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	d.agent = &agent{cmd: cmd, done: make(chan struct{})}
	go func(a *agent) {
		a.err = a.cmd.Wait()
		close(a.done)
	}(d.agent)
	return nil
}

// whileRunning returns a context that ends with the agent.
func (a *agent) whileRunning(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	go func() {
		select {
		case <-a.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// explain returns the end of the agent, if it has ended, in place of an error
// that only follows from it.
func (a *agent) explain(err error) error {
	if ended := a.ended(); ended != nil {
		return ended
	}
	return err
}

// ended returns an error if the agent no longer runs.
func (a *agent) ended() error {
	select {
	case <-a.done:
		if a.err == nil {
			return errors.New("fairlead ended by itself")
		}
		return fmt.Errorf("fairlead ended by itself: %w", a.err)
	default:
		return nil
	}
}

// stop asks the agent to end and waits until it has.
func (a *agent) stop(ctx context.Context) error {
	if err := a.ended(); err != nil {
		return err
	}
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("send SIGTERM: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	select {
	case <-a.done:
		if a.err != nil {
			return fmt.Errorf("fairlead after SIGTERM: %w", a.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for fairlead after SIGTERM: %w", ctx.Err())
	}
}

// kill makes sure that the agent has ended.
func (a *agent) kill() {
	_ = a.cmd.Process.Kill() // it may have ended before
	<-a.done
}

// showLog shows the end of the agent's log.
func (d *demo) showLog() {
	data, err := os.ReadFile(d.log)
	if err != nil || len(data) == 0 {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-shownLines):]
	fmt.Fprintf(os.Stderr, "the last lines of fairlead's log:\n  %s\n", strings.Join(lines, "\n  "))
}
