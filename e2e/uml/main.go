// SPDX-License-Identifier: Apache-2.0

// Command uml runs a command in a second kernel, which has what the machine's own
// may lack: IPVS, dummy devices, modules. See --help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"fairlead/e2e/uml/guest"
	"fairlead/e2e/uml/machine"
)

const help = `usage: uml [flags] [--] command [argument...]
       uml go-test [flags] package... [-args argument...]

Runs a command in User-Mode Linux: a kernel that is a process, has IPVS, and
boots in two seconds. The command finds this machine's files, its own working
directory and its environment. What it writes stays in the guest's memory, except
below directories given with --share. The guest has no network but what the
command makes, one CPU, and processes of its own.

What the command prints comes out as it does. The exit status is the command's,
128 and the signal's number if a signal ended it, 124 after the timeout, 125 if
the guest failed, 130 or 143 after an interrupt or SIGTERM.

go-test builds the tests of each package outside, and the agent, whose name they
find in $FAIRLEAD_AGENT_BIN; each package has a guest, and the timeout, to itself.
It prints what go test does, and exits with 1 if a test fails.

`

// Exit codes that are not the command's.
const (
	codeTimeout = 124
	codeFailed  = 125
)

func main() {
	if guest.Is() {
		guest.Main()
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := untilSignal()
	defer stop()
	if len(args) > 0 && args[0] == "go-test" {
		return exitCode(runTests(ctx, args[1:], stdout, stderr))
	}
	return exitCode(runCommand(ctx, args, stdout, stderr))
}

// exitCode is ours for the exit code of a command, or for the lack of one.
func exitCode(code int, err error) int {
	var i interrupted
	switch {
	case err == nil || code != 0:
		return code
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errTimeout):
		return codeTimeout
	case errors.As(err, &i):
		return 128 + int(i.signal)
	}
	return codeFailed
}

// options are the flags of a guest.
type options struct {
	memory  string
	timeout time.Duration
	share   []string
	modules string
	kernel  bool
	env     []string
}

// newFlags returns the flags that every use has.
func newFlags(title string, o *options, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet("uml", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.memory, "mem", "1024M", "the guest's memory, of which it takes what it uses")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long the guest may run")
	flags.StringVar(&o.modules, "modules", strings.Join(guest.Modules(), ","), "kernel `modules` to load first, by comma")
	flags.BoolVar(&o.kernel, "kernel-log", false, "print what the kernel prints, to standard error")
	flags.Func("share", "a `directory` that the command may write to; may be repeated", func(dir string) error {
		o.share = append(o.share, dir)
		return nil
	})
	flags.Usage = func() {
		fmt.Fprint(stderr, help, title, ":\n")
		flags.PrintDefaults()
	}
	return flags
}

// runCommand runs the command of a command line.
func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (code int, err error) {
	var o options
	flags := newFlags("flags", &o, stderr)
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return codeFailed, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	code, err = o.boot(ctx, dir, flags.Args(), stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "uml:", err)
	}
	return code, err
}

// boot runs a command in a guest.
func (o options) boot(ctx context.Context, dir string, args []string, stdout, stderr io.Writer) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("%w of %s", errTimeout, o.timeout))
	defer cancel()
	c := machine.Config{
		Init:   self,
		Memory: o.memory,
		Job: guest.Job{
			Args: args, Env: o.environment(), Dir: dir,
			Modules: strings.FieldsFunc(o.modules, func(r rune) bool { return r == ',' }),
			Shared:  o.share,
		},
		Stdout: stdout,
		Stderr: stderr,
	}
	if o.kernel {
		c.Log = stderr
	}
	return machine.Run(ctx, c)
}

// environment is ours, with the directories of system commands, which are not in
// the PATH of every user.
func (o options) environment() []string {
	path := "PATH=" + os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
	return append(append(os.Environ(), path), o.env...)
}

var errTimeout = errors.New("timeout")

// interrupted is the end by a signal.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return i.signal.String() }

// untilSignal is a context that ends with a signal, which is its cause.
func untilSignal() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			cancel(interrupted{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}
