// SPDX-License-Identifier: Apache-2.0

// Package kerneltest lets tests write rules into the real kernel: in a network
// namespace that has no name, and ends with the test.
package kerneltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"

	"fairlead/iptables/ruleset"
)

// Host is a network namespace without rules. It implements ruleset.Exec: its
// commands run in the namespace.
type Host struct {
	t    testing.TB
	ns   netns.NsHandle
	lock string
	// restores counts the restore commands so far, those that failed included.
	restores atomic.Int64
}

var _ ruleset.Exec = (*Host)(nil)

// Setup is an iptables variant and an address family.
type Setup struct {
	Variant ruleset.Variant
	IPv6    bool
}

// Setups returns all combinations.
func Setups() []Setup {
	return []Setup{{ruleset.NFT, false}, {ruleset.NFT, true}, {ruleset.Legacy, false}, {ruleset.Legacy, true}}
}

// String returns the name of the iptables command, "ip6tables-nft" for example.
func (s Setup) String() string {
	if s.IPv6 {
		return "ip6tables-" + string(s.Variant)
	}
	return "iptables-" + string(s.Variant)
}

// Commands returns the setup's commands.
func (s Setup) Commands() ruleset.Commands {
	return ruleset.Commands{Restore: s.String() + "-restore", Save: s.String() + "-save"}
}

// New makes a namespace. It skips the test where the machine cannot make one,
// or cannot masquerade in it with the setup's commands.
func New(t testing.TB, s Setup) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	ns, err := newNamespace()
	if err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	h := &Host{t: t, ns: ns, lock: filepath.Join(t.TempDir(), "xtables.lock")}
	for _, name := range []string{"nsenter", s.Commands().Restore, s.Commands().Save} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs the command %s: %v", name, err)
		}
	}
	const probe = "*nat\n:PROBE - [0:0]\n-A PROBE -m comment --comment probe -m statistic --mode random --probability 0.5 -j MASQUERADE --random-fully\nCOMMIT\n" +
		"*nat\n:PROBE - [0:0]\n-X PROBE\nCOMMIT\n"
	if err := h.Restore(s, probe); err != nil {
		t.Skipf("%s does not work here: %v", s, err)
	}
	h.restores.Store(0)
	return h
}

// newNamespace makes a namespace in a thread of its own, which ends with it:
// it is never used for anything else.
func newNamespace() (netns.NsHandle, error) {
	type result struct {
		ns  netns.NsHandle
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock it
		ns, err := netns.New()
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}

// Run implements ruleset.Exec.
func (h *Host) Run(ctx context.Context, c ruleset.Command) error {
	if _, err := exec.LookPath(c.Name); err != nil {
		return fmt.Errorf("run %s: %w", c.Name, errors.Join(err, exec.ErrNotFound))
	}
	if strings.HasSuffix(c.Name, "-restore") {
		h.restores.Add(1)
	}
	// A lock of its own: the commands' lock is one for all namespaces.
	c.Args = append([]string{
		fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(h.ns)), "--", "env", "XTABLES_LOCKFILE=" + h.lock, c.Name,
	}, c.Args...)
	c.Name = "nsenter"
	return ruleset.SystemExec{}.Run(ctx, c)
}

// Restores returns how many restore commands have run.
func (h *Host) Restores() int { return int(h.restores.Load()) }

// Restore feeds text to the setup's restore command, as somebody else would.
func (h *Host) Restore(s Setup, text string) error {
	return h.Run(context.Background(), ruleset.Command{
		Name: s.Commands().Restore, Args: []string{"--noflush", "-w", "5"}, Stdin: strings.NewReader(text),
	})
}

// Do runs a command in the namespace, and fails the test if it fails.
func (h *Host) Do(name string, args ...string) {
	h.t.Helper()
	if err := h.Run(context.Background(), ruleset.Command{Name: name, Args: args}); err != nil {
		h.t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
}

// Enter runs fn with its thread inside the namespace. Goroutines that fn starts
// are not.
func (h *Host) Enter(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock it: the thread ends here
		err := netns.Set(h.ns)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// Save returns what the setup's save command prints, without comment lines,
// counters, and tables that hold nothing.
func (h *Host) Save(s Setup) ruleset.Dump {
	h.t.Helper()
	var out bytes.Buffer
	if err := h.Run(context.Background(), ruleset.Command{Name: s.Commands().Save, Stdout: &out}); err != nil {
		h.t.Fatal(err)
	}
	d, err := ruleset.Parse(&out)
	if err != nil {
		h.t.Fatal(err)
	}
	var full ruleset.Dump
	for _, table := range d {
		for _, c := range table.Chains {
			if len(c.Rules) > 0 || c.Policy != "ACCEPT" {
				full = append(full, table)
				break
			}
		}
	}
	return full
}
