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

Runs a command in User-Mode Linux: a kernel that is a process, has IPVS, and
boots in two seconds. The command finds this machine's files, its own working
directory and its environment. What it writes stays in the guest's memory, except
below directories given with --share. The guest has no network but what the
command makes, one CPU, and processes of its own.

What the command prints comes out as it does. The exit status is the command's,
128 and the signal's number if a signal ended it, 124 after the timeout, 125 if
the guest failed, 130 or 143 after an interrupt or SIGTERM.

flags:
`

// Exit codes that are not the command's.
const (
	codeTimeout = 124
	codeFailed  = 125
)

// modules are those that tests rely on and that nothing loads by itself.
var modules = []string{"ipv6", "ip_vs"}

func main() {
	if os.Getpid() == 1 && os.Getenv(guest.JobEnv) != "" {
		guest.Main()
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line.
type options struct {
	memory  string
	timeout time.Duration
	share   []string
	modules string
	verbose bool
	command []string
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("uml", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.memory, "mem", "1024M", "the guest's memory, of which it takes what it uses")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Minute, "how long the guest may run")
	flags.StringVar(&o.modules, "modules", strings.Join(modules, ","), "kernel `modules` to load first, by comma")
	flags.BoolVar(&o.verbose, "v", false, "print what the kernel prints, to standard error")
	flags.Func("share", "a `directory` that the command may write to; may be repeated", func(dir string) error {
		o.share = append(o.share, dir)
		return nil
	})
	flags.Usage = func() {
		fmt.Fprint(stderr, help)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.command = flags.Args(); len(o.command) == 0 {
		flags.Usage()
		return o, errors.New("no command")
	}
	return o, nil
}

func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return codeFailed
	}
	ctx, stop := until(o.timeout)
	defer stop()
	code, err := boot(ctx, o, stdout, stderr)
	if err == nil {
		return code
	}
	fmt.Fprintln(stderr, "uml:", err)
	var i interrupted
	switch {
	case code != 0:
		return code
	case errors.Is(err, errTimeout):
		return codeTimeout
	case errors.As(err, &i):
		return 128 + int(i.signal)
	}
	return codeFailed
}

// boot runs the command in a guest.
func boot(ctx context.Context, o options, stdout, stderr io.Writer) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	c := machine.Config{
		Init:   self,
		Memory: o.memory,
		Job: guest.Job{
			Args: o.command, Env: environment(), Dir: dir,
			Modules: strings.FieldsFunc(o.modules, func(r rune) bool { return r == ',' }),
			Shared:  o.share,
		},
		Stdout: stdout,
		Stderr: stderr,
	}
	if o.verbose {
		c.Log = stderr
	}
	return machine.Run(ctx, c)
}

// environment is ours, with the directories of system commands, which are not in
// the PATH of every user.
func environment() []string {
	return append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

var errTimeout = errors.New("timeout")

// interrupted is the end by a signal.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return i.signal.String() }

// until is a context that ends after the timeout or with a signal, whichever is
// first; its cause says which.
func until(timeout time.Duration) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, fmt.Errorf("%w of %s", errTimeout, timeout))
	ctx, cancelCause := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			cancelCause(interrupted{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancelCause(nil)
		cancel()
	}
}
