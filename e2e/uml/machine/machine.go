// SPDX-License-Identifier: Apache-2.0

// Package machine runs a command in a kernel of its own: User-Mode Linux, a Linux
// kernel that is a process. It sees this machine's files as they are, and what it
// writes stays in its memory.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/e2e/uml/guest"
)

// kernel is the command that is a kernel, of Debian's package user-mode-linux.
const kernel = "linux.uml"

// panicGrace is how long a kernel that panics may print what it has to say.
const panicGrace = 500 * time.Millisecond

// Config says which machine to run, and what in it.
type Config struct {
	// Init is a program that calls guest.Main when it is the first process.
	Init string
	// Memory is as the kernel takes it: 1024M.
	Memory string
	Job    guest.Job
	// Stdout and Stderr get what the command prints, as it does.
	Stdout, Stderr io.Writer
	// Log gets what the kernel prints. It may be nil.
	Log io.Writer
}

// Supported tells why no machine can be run here.
func Supported() error {
	if _, err := exec.LookPath(kernel); err != nil {
		return fmt.Errorf("find the kernel: %w; install Debian's package user-mode-linux", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("run a kernel: must be root") // or files of root's are out of its reach
	}
	return nil
}

// Run runs a machine until its command has ended, and returns the command's exit
// code. When ctx is done, the machine is stopped at once. Whatever happens,
// nothing of the machine stays.
func Run(ctx context.Context, c Config) (code int, err error) {
	if err := Supported(); err != nil {
		return 0, err
	}
	dir, others, remove, err := tempDir()
	if err != nil {
		return 0, err
	}
	defer remove()
	job := filepath.Join(dir, "job.json")
	if err := c.Job.Write(job); err != nil {
		return 0, err
	}
	m := &machine{config: c, nth: others}
	return m.run(ctx, exec.Command(kernel, c.kernelArgs(dir, job)...))
}

// kernelArgs is the kernel's command line.
func (c Config) kernelArgs(dir, job string) []string {
	return []string{
		"mem=" + c.Memory,
		"rootfstype=hostfs", "rootflags=/", "ro",
		"init=" + c.Init, guest.JobEnv + "=" + job,
		"uml_dir=" + dir, "umid=guest",
		// The terminals of package guest, and pipes of ours.
		"con=null", "con0=fd:0,fd:1", "con1=null,fd:3", "con2=null,fd:4", "con3=null,fd:5",
		"quiet", "oops=panic",
	}
}

// machine is a kernel that runs.
type machine struct {
	config Config
	// nth tells guests that run at the same time apart.
	nth int
	log tail
	// running is whether the command has been started, and last what the guest
	// said last.
	running bool
	last    guest.Status
}

// run runs the kernel until it ends or ctx is done, and returns the command's
// exit code.
func (m *machine) run(ctx context.Context, cmd *exec.Cmd) (code int, err error) {
	life, end := context.WithCancel(ctx)
	defer end()
	// As the first process of its namespace a kernel cannot abort itself.
	m.log = tail{also: m.config.Log, onPanic: func() { time.AfterFunc(panicGrace, end) }}
	cmd.Env = append(os.Environ(), "TMPDIR="+memoryDir())
	// It is the first process of its own PID namespace, so that the processes by
	// which it runs those of the guest end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // a terminal's interrupt is for the caller, who ends ctx
	}
	var readers sync.WaitGroup
	var theirs []*os.File
	pipe := func(read func(io.Reader)) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, w)
		readers.Go(func() {
			defer r.Close()
			read(r)
		})
		return w, nil
	}
	err = m.connect(cmd, pipe)
	if err == nil {
		err = m.startAndWait(life, cmd, theirs)
	} else {
		closeAll(theirs)
	}
	readers.Wait()
	if err != nil {
		return 0, err
	}
	return m.result(ctx, cmd)
}

// connect gives the kernel pipes for its log and for the guest's terminals.
func (m *machine) connect(cmd *exec.Cmd, pipe func(func(io.Reader)) (*os.File, error)) error {
	for _, read := range []func(io.Reader){
		func(r io.Reader) { _, _ = io.Copy(&m.log, r) },
		func(r io.Reader) { _, _ = io.Copy(m.config.Stdout, r) },
		func(r io.Reader) { _, _ = io.Copy(m.config.Stderr, r) },
		m.listen,
	} {
		w, err := pipe(read)
		if err != nil {
			return err
		}
		if cmd.Stdout == nil {
			cmd.Stdout, cmd.Stderr = w, w
		} else {
			cmd.ExtraFiles = append(cmd.ExtraFiles, w)
		}
	}
	return nil
}

// listen notes what the guest says of itself.
func (m *machine) listen(r io.Reader) {
	lines := json.NewDecoder(r)
	for {
		var s guest.Status
		if err := lines.Decode(&s); err != nil {
			_, _ = io.Copy(io.Discard, r)
			return
		}
		m.running = m.running || s.Running
		m.last = s
	}
}

// startAndWait starts a kernel and waits until it has ended, which it must when
// ctx is done. How it ended is in cmd.ProcessState. The pipes are closed here.
func (m *machine) startAndWait(ctx context.Context, cmd *exec.Cmd, pipes []*os.File) error {
	// The kernel ends with the thread that started it (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := onOneCPU(m.nth, cmd.Start)
	closeAll(pipes)
	if err != nil {
		return fmt.Errorf("start the kernel: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	_ = cmd.Wait()
	return nil
}

// onOneCPU starts a process that stays on the nth of the CPUs that this thread may use. A
// guest has one CPU, but runs on it as two processes that wait for each other at every
// system call and page fault: to wake one on another CPU takes 5 times as long where
// that is virtual and idle.
func onOneCPU(nth int, start func() error) error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return err
	}
	nth %= allowed.Count()
	for cpu := 0; one.Count() == 0; cpu++ {
		if !allowed.IsSet(cpu) {
			continue
		}
		if nth == 0 {
			one.Set(cpu)
		}
		nth--
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(start(), unix.SchedSetaffinity(0, &allowed))
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// result is the command's exit code, or one line that says why there is none.
func (m *machine) result(ctx context.Context, cmd *exec.Cmd) (code int, err error) {
	switch {
	case m.last.Exited && m.last.Code == 128+int(syscall.SIGKILL) && m.log.contains(outOfMemory):
		return m.last.Code, fmt.Errorf("the guest ran out of its %s of memory", m.config.Memory)
	case m.last.Exited:
		return m.last.Code, nil
	case m.log.contains(panicked):
		return 0, fmt.Errorf("the guest's kernel gave up%s", m.log.quote())
	case m.last.Error != "":
		return 0, fmt.Errorf("in the guest: %s", m.last.Error)
	case ctx.Err() != nil && m.running:
		return 0, fmt.Errorf("%w while the command ran in the guest", context.Cause(ctx))
	case ctx.Err() != nil:
		return 0, fmt.Errorf("%w while the guest booted%s", context.Cause(ctx), m.log.quote())
	}
	return 0, fmt.Errorf("the guest's kernel ended (%s)%s", cmd.ProcessState, m.log.quote())
}
