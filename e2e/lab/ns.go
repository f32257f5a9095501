// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead/proxier/model"
)

// nsDir is where iproute2 keeps named network namespaces.
const nsDir = "/var/run/netns"

// NS is one network namespace of a lab: a node, a pod, a client.
type NS struct {
	// Label is its role in the lab: "node-1", "node-1-pod-2", "client".
	Label string
	// Name is its name as `ip netns` knows it.
	Name string

	handle netns.NsHandle
	addrs  map[model.Family]netip.Addr

	mu    sync.Mutex // guards what follows
	echos []*Echo
}

// create makes a namespace that was planned, with its loopback up. Addresses are
// usable at once in it: nothing waits for duplicate address detection.
func (l *Lab) create(ctx context.Context, ns *NS) error {
	ns.Name = l.prefix + ns.Label
	l.all = append(l.all, ns) // before, as a command that fails may have made it
	if err := runIP(ctx, "netns", "add", ns.Name); err != nil {
		return err
	}
	handle, err := netns.GetFromPath(ns.Path())
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", ns.Name, err)
	}
	ns.handle = handle
	if err := ns.setSysctls(hostSysctls); err != nil {
		return err
	}
	return ns.setUp("lo")
}

// Path is the file the namespace is bound to, as nsenter --net wants it.
func (ns *NS) Path() string { return filepath.Join(nsDir, ns.Name) }

// Addr is the namespace's own address of a family: a pod's address, a node's
// address on the outside network.
func (ns *NS) Addr(f model.Family) netip.Addr { return ns.addrs[f] }

// Do runs fn with its thread inside the namespace: sockets that fn opens
// belong to it. Goroutines that fn starts do not.
func (ns *NS) Do(fn func() error) error { return doIn(ns.handle, fn) }

// doIn runs fn in a goroutine of its own that is locked to its thread. A
// thread that cannot be brought back ends with the goroutine.
func doIn(target netns.NsHandle, fn func() error) error {
	err := errors.New("run in namespace: function did not return")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, e := netns.Get()
		if e != nil {
			err = fmt.Errorf("open own namespace: %w", e)
			runtime.UnlockOSThread()
			return
		}
		defer home.Close()
		if e := netns.Set(target); e != nil {
			err = fmt.Errorf("enter namespace: %w", e)
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if e := netns.Set(home); e != nil {
				err = errors.Join(err, fmt.Errorf("leave namespace: %w", e))
				return
			}
			runtime.UnlockOSThread()
		}()
		err = fn()
	}()
	<-done
	return err
}

// Command prepares a process that runs in the namespace, under its own process
// id, and is killed with this process.
func (ns *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	args = append([]string{"--net=" + ns.Path(), "--", name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Run runs a process in the namespace and returns what it printed to standard
// output. Its error carries what it printed to standard error.
func (ns *NS) Run(ctx context.Context, name string, args ...string) (string, error) {
	return output(ns.Command(ctx, name, args...), ns.Label+": "+name)
}

func output(cmd *exec.Cmd, what string) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("run %s: %w: %s", what, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

func runIP(ctx context.Context, args ...string) error {
	_, err := output(exec.CommandContext(ctx, "ip", args...), "ip "+strings.Join(args, " "))
	return err
}

func (ns *NS) close() error {
	ns.mu.Lock()
	echos := ns.echos
	ns.echos = nil
	ns.mu.Unlock()
	var errs []error
	for _, e := range echos {
		errs = append(errs, e.Close())
	}
	if ns.handle.IsOpen() {
		errs = append(errs, ns.handle.Close())
	}
	return errors.Join(append(errs, removeNS(ns.Name))...)
}

// removeNS kills the processes in a namespace and removes its name; the kernel
// frees the links in it once the last socket is gone.
func removeNS(name string) error {
	path := filepath.Join(nsDir, name)
	if err := killAll(path); err != nil {
		return err
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}
