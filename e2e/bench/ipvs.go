// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fairlead/e2e/bench/measure"
	"fairlead/e2e/bench/report"
	"fairlead/e2e/lab"
	"fairlead/e2e/uml/guest"
	"fairlead/e2e/uml/machine"
)

// ipvsVariant is the variant of iptables beside IPVS: User-Mode Linux has no other.
const ipvsVariant = lab.Legacy

// ipvsPatience is how long changes of one kind are measured one by one. kube-proxy
// may take half a minute for one.
const ipvsPatience = time.Minute

// ipvsAt measures IPVS modes at one size. Where a system call takes ten times as long
// as elsewhere, less has to do.
func (b *bench) ipvsAt(ctx context.Context, rig *measure.Rig, p point) error {
	if err := lab.VariantSupported(ctx, ipvsVariant); err != nil {
		return err
	}
	cfg := measure.Config{Settings: b.settings, Mix: b.mix, Extent: p.extent, Patience: ipvsPatience}
	cfg.CutoffS *= 10
	cfg.Samples = (cfg.Samples + 2) / 3
	cfg.Connects = (cfg.Connects + 3) / 4
	cfg.Changes = (cfg.Changes + 9) / 10
	cfg.Rate = min(cfg.Rate, 5)
	for _, s := range b.ipvs {
		if p.extent < measure.All && s.Name != report.Product {
			continue
		}
		cfg.APIFloor = s.Name == report.Product
		if err := b.run(ctx, rig, s, report.IPVS, ipvsVariant, cfg); err != nil {
			return err
		}
	}
	return nil
}

// guestMemory is enough for an API server with 5,000 Services, and what is measured.
const guestMemory = "4096M"

// inGuest has this program, in a second kernel, measure the IPVS modes, and takes over
// what it finds, also where it does not come to an end.
func (b *bench) inGuest(ctx context.Context) error {
	if err := machine.Supported(); err != nil {
		b.say("the IPVS modes are left out: %v", err)
		return nil
	}
	b.say("starting User-Mode Linux")
	file := filepath.Join(b.dir, "ipvs.json")
	args, err := b.guestArgs(ctx, file)
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	var stderr strings.Builder
	code, err := machine.Run(ctx, machine.Config{
		Init: args[0], Memory: guestMemory, Stdout: b.out, Stderr: &stderr,
		Job: guest.Job{Args: args, Env: environment(), Dir: dir, Modules: guest.Modules(), Shared: []string{b.dir}},
	})
	if err == nil && code != 0 {
		err = errors.New(strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		err = fmt.Errorf("measure in User-Mode Linux: %w", err)
	}
	if _, serr := os.Stat(file); serr != nil {
		return errors.Join(err, serr)
	}
	found, rerr := report.Read(file)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	b.results.Runs = append(b.results.Runs, found.Runs...)
	b.results.IPVSMachine = &found.Machine
	return err
}

// guestArgs is the command line of this program in the guest.
func (b *bench) guestArgs(ctx context.Context, file string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	limit := b.limit
	if end, ok := ctx.Deadline(); ok { // it is to say what it has found before
		limit = max(time.Until(end)-time.Minute, time.Minute)
	}
	subjects := make([]string, len(b.ipvs))
	for i, s := range b.ipvs {
		subjects[i] = s.Name
	}
	s := b.settings
	args := []string{
		self, "--here", "--variants", report.IPVS, "--subjects", strings.Join(subjects, ","),
		"--ipvs-sizes", sizeList(b.ipvsSizes), "--ipvs-curve", sizeList(b.ipvsCurve),
		"--samples", fmt.Sprint(s.Samples), "--connects", fmt.Sprint(s.Connects), "--changes", fmt.Sprint(s.Changes),
		"--rate", fmt.Sprint(s.Rate), "--mix", s.Mix, "--seed", fmt.Sprint(s.Seed), "--cutoff", b.cutoff.String(),
		"--limit", limit.String(), "--json", file, "--work", b.dir, "--no-tables",
	}
	for flag, program := range map[string]string{"--fairlead": b.fairlead, "--kube-proxy": b.kubeProxy} {
		name, err := filepath.Abs(program)
		if err != nil {
			return nil, err
		}
		args = append(args, flag, name)
	}
	return args, nil
}

func sizeList(sizes []report.Size) string {
	list := make([]string, len(sizes))
	for i, s := range sizes {
		list[i] = s.String()
	}
	return strings.Join(list, ",")
}

// environment is ours, with the directories of system commands, which are not in
// every user's PATH.
func environment() []string {
	return append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}
