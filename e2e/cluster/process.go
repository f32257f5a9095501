// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// tailSize is how much of a log an error shows.
const tailSize = 4 << 10

// process is a started program.
type process struct {
	name    string
	logFile string
	cmd     *exec.Cmd
	exited  chan struct{}
}

// startProcess runs argv in dir and appends what it prints to a log file named
// after its program there.
func startProcess(dir string, argv, prefix []string) (*process, error) {
	name := filepath.Base(argv[0])
	p := &process{name: name, logFile: filepath.Join(dir, name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	argv = append(prefix[:len(prefix):len(prefix)], argv...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt from the terminal is for the test to handle
	}
	if err := p.start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// start starts the command from a thread of its own that lives as long as the
// command does: the kernel sends Pdeathsig when the thread that forked ends, not
// when its process ends.
func (p *process) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // cmd.ProcessState says how it ended
			close(p.exited)
		}
	}()
	return <-started
}

// running reports whether the program has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// failure returns err, which says what p did, with its last log lines.
func (p *process) failure(err error) error {
	if !p.running() {
		err = fmt.Errorf("%s ended by itself (%s): %w", p.name, p.cmd.ProcessState, err)
	}
	tail, readErr := p.tail()
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	return fmt.Errorf("%w\nlast lines of %s:\n%s", err, p.logFile, tail)
}

// kill ends p and waits until it is gone. It is an error if p had ended by
// itself. A nil process is killed already.
func (p *process) kill() error {
	if p == nil {
		return nil
	}
	if !p.running() {
		return p.failure(fmt.Errorf("stop %s: %w", p.name, os.ErrProcessDone))
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.exited
	return nil
}

// signal sends p a signal.
func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, p.name, err)
	}
	return nil
}

// tail returns the last whole lines of p's log.
func (p *process) tail() ([]byte, error) {
	f, err := os.Open(p.logFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(max(0, size-tailSize), io.SeekStart); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	if size > tailSize {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return bytes.TrimSpace(b), err
}
