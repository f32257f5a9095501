// SPDX-License-Identifier: Apache-2.0

// Package floor measures the least that a program can take which writes rules
// by iptables-restore: it records what the program feeds to that command, and
// feeds it the same again.
package floor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// Restore is one run of a restore command.
type Restore struct {
	// Tool is the command's name, such as ip6tables-nft-restore.
	Tool string
	// File has what it was fed.
	File string
}

// Recorder is a directory for PATH with restore commands that keep what they
// are fed, and then do their work. The copies are named by the time and the
// command, and are there before the command has done anything.
type Recorder struct {
	// Bin comes first in the PATH of who is recorded.
	Bin string
	in  string
	n   int
}

// script keeps standard input, unless the run is but a test. The copy gets its
// name when it is complete.
const script = `#!/bin/sh
case " $* " in *" --test "*|*" -t "*) exec %[1]s "$@" ;; esac
copy=%[2]s/$(date +%%s%%N).%[3]s
cat >"$copy.$$.part" && mv "$copy.$$.part" "$copy" && exec %[1]s "$@" <"$copy"
`

// NewRecorder makes a recorder in an empty directory, for the variant's
// commands under their own and their plain names.
func NewRecorder(dir string, v lab.Variant) (*Recorder, error) {
	r := &Recorder{Bin: filepath.Join(dir, "bin"), in: filepath.Join(dir, "in")}
	for _, d := range []string{r.Bin, r.in} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("make recorder: %w", err)
		}
	}
	for _, f := range model.Families() {
		name := v.Tool(f, "-restore")
		tool, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("make recorder: %w", err)
		}
		text := fmt.Appendf(nil, script, tool, r.in, name)
		for _, as := range []string{name, strings.Replace(name, "-"+string(v), "", 1)} {
			if err := os.WriteFile(filepath.Join(r.Bin, as), text, 0o700); err != nil {
				return nil, fmt.Errorf("make recorder: %w", err)
			}
		}
	}
	return r, nil
}

// Count is how many runs there were since the last Take.
func (r *Recorder) Count() (int, error) {
	names, err := filepath.Glob(filepath.Join(r.in, "*-restore"))
	return len(names), err
}

// Take returns the runs since the last Take, in their order.
func (r *Recorder) Take() ([]Restore, error) {
	names, err := filepath.Glob(filepath.Join(r.in, "*-restore"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names) // times have the same number of digits until 2286
	kept := filepath.Join(filepath.Dir(r.in), fmt.Sprintf("taken-%d", r.n))
	r.n++
	if err := os.Mkdir(kept, 0o700); err != nil {
		return nil, fmt.Errorf("keep what was recorded: %w", err)
	}
	var out []Restore
	for _, name := range names {
		base := filepath.Base(name)
		file := filepath.Join(kept, base)
		if err := os.Rename(name, file); err != nil {
			return nil, fmt.Errorf("keep what was recorded: %w", err)
		}
		_, tool, _ := strings.Cut(base, ".")
		out = append(out, Restore{Tool: tool, File: file})
	}
	return out, nil
}

// Empty removes all rules and chains from a namespace's tables. Sets and the like
// stay.
func Empty(ctx context.Context, ns *lab.NS, v lab.Variant) error {
	for _, f := range model.Families() {
		tool := v.Tool(f, "-restore")
		cmd := ns.Command(ctx, tool, "-w", "5")
		cmd.Stdin = strings.NewReader("*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\nCOMMIT\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("empty tables with %s: %w: %s", tool, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// Replay feeds the restores, one after the other, to the bare commands in a
// namespace, and returns how long that took.
func Replay(ctx context.Context, ns *lab.NS, restores []Restore) (time.Duration, error) {
	var took time.Duration
	err := ns.Do(func() error {
		start := time.Now()
		for _, r := range restores {
			if err := r.run(ctx); err != nil {
				return err
			}
		}
		took = time.Since(start)
		return nil
	})
	return took, err
}

// run runs the command in the calling thread's namespace.
func (r Restore) run(ctx context.Context) error {
	in, err := os.Open(r.File)
	if err != nil {
		return fmt.Errorf("open what was recorded: %w", err)
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, r.Tool, "--noflush", "-w", "5")
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("feed %s what was recorded: %w: %s", r.Tool, err, strings.TrimSpace(string(out)))
	}
	return nil
}
