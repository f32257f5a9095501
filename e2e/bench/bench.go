// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fairlead/e2e/bench/measure"
	"fairlead/e2e/bench/report"
	"fairlead/e2e/bench/subject"
	"fairlead/e2e/lab"
)

// bench is one run of the command.
type bench struct {
	*options
	out      io.Writer
	dir      string
	measured []subject.Subject
	// ipvs are those of them that have an IPVS mode, in that.
	ipvs []subject.Subject
	// nftables are those that have a nftables mode, in that.
	nftables []subject.Subject
	results  report.Results
}

// newBench looks for all that is needed, before anything takes long.
func newBench(ctx context.Context, o *options, out io.Writer) (*bench, error) {
	b := &bench{options: o, out: out, dir: o.work}
	for _, v := range b.iptables() {
		if err := lab.VariantSupported(ctx, lab.Variant(v)); err != nil {
			return nil, err
		}
	}
	if err := b.choose(ctx); err != nil {
		return nil, err
	}
	b.results = report.Results{
		Started: time.Now().UTC().Truncate(time.Second), Settings: o.settings,
		Machine: report.ThisMachine(ctx), Version: version(ctx, o.fairlead, "version"), KubeProxy: version(ctx, o.kubeProxy, "--version"),
	}
	if b.results.Machine.Load > 0.5 {
		b.say("the load average is %.1f: this machine does something else, too, and that is in the figures", b.results.Machine.Load)
	}
	var err error
	if b.dir == "" {
		b.dir, err = os.MkdirTemp("", "fairlead-bench-")
	} else if b.dir, err = filepath.Abs(b.dir); err == nil {
		err = os.MkdirAll(b.dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("make directory for logs: %w", err)
	}
	return b, nil
}

// choose finds the subjects and leaves out those that these builds have not.
func (b *bench) choose(ctx context.Context) error {
	fairlead, err1 := filepath.Abs(b.fairlead)
	kubeProxy, err2 := filepath.Abs(b.kubeProxy)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	all := subject.All(fairlead, kubeProxy)
	for _, name := range b.subjects {
		at := slices.IndexFunc(all, func(s subject.Subject) bool { return s.Name == name })
		if at < 0 {
			return fmt.Errorf("--subjects %q is not known", name)
		}
		if err := all[at].Missing(ctx); err != nil {
			b.say("%s is left out: %v", name, err)
			continue
		}
		b.measured = append(b.measured, all[at])
	}
	if len(b.measured) == 0 {
		return errors.New("no subject is left to measure; make build and make -C e2e/tools kube-proxy build them")
	}
	b.ipvs = b.those(report.IPVS, subject.IPVS(fairlead, kubeProxy))
	b.nftables = b.those(report.NFTables, subject.NFTables(fairlead, kubeProxy))
	return nil
}

// those are the subjects that are to be measured in a mode.
func (b *bench) those(mode string, all []subject.Subject) []subject.Subject {
	if !slices.Contains(b.variants, mode) {
		return nil
	}
	return slices.DeleteFunc(all, func(s subject.Subject) bool {
		return !slices.ContainsFunc(b.measured, func(m subject.Subject) bool { return m.Name == s.Name })
	})
}

// iptables are the variants that are of iptables.
func (o *options) iptables() []string {
	return slices.DeleteFunc(slices.Clone(o.variants), func(v string) bool { return v == report.IPVS || v == report.NFTables })
}

func (b *bench) close() {
	if b.work == "" {
		_ = os.RemoveAll(b.dir) // the system removes what is left
	}
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

// point is a size, and how much is measured there.
type point struct {
	report.Size
	extent measure.Extent
}

// points are all sizes in an order in which one API server, for each number of
// endpoints, only ever gets more Services.
func points(loads, curve, all []report.Size) []point {
	most := map[report.Size]measure.Extent{}
	for _, l := range []struct {
		sizes  []report.Size
		extent measure.Extent
	}{{loads, measure.Loads}, {curve, measure.Curve}, {all, measure.All}} {
		for _, s := range l.sizes {
			most[s] = max(most[s], l.extent)
		}
	}
	var out []point
	for s, e := range most {
		out = append(out, point{s, e})
	}
	slices.SortFunc(out, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.Endpoints, b.Endpoints), cmp.Compare(a.Services, b.Services))
	})
	return out
}

// measure measures everything.
func (b *bench) measure(ctx context.Context) error {
	start := time.Now()
	defer func() { b.results.TookS = time.Since(start).Seconds() }()
	if len(b.iptables())+len(b.nftables) > 0 {
		if err := b.part(ctx, points(b.loads, b.curve, b.sizes), b.at); err != nil {
			return err
		}
	}
	if len(b.ipvs) == 0 {
		return nil
	}
	if !b.here {
		return b.inGuest(ctx)
	}
	return b.part(ctx, points(nil, b.ipvsCurve, b.ipvsSizes), b.ipvsAt)
}

// part measures at all points of a part, each by at.
func (b *bench) part(ctx context.Context, points []point, at func(context.Context, *measure.Rig, point) error) (err error) {
	var rig *measure.Rig
	closeRig := func() {
		if rig != nil {
			err = errors.Join(err, rig.Close())
			rig = nil
		}
	}
	defer closeRig()
	endpoints := 0
	for _, p := range points {
		if p.Endpoints != endpoints {
			closeRig()
			endpoints = p.Endpoints
			if rig, err = measure.NewRig(ctx, b.dir, endpoints); err != nil {
				return err
			}
		}
		b.say("%s: writing Services", p.Size)
		if err := rig.Load(ctx, p.Services, nil); err != nil {
			return err
		}
		if err := at(ctx, rig, p); err != nil {
			return err
		}
	}
	return err
}

// at measures all subjects at one size.
func (b *bench) at(ctx context.Context, rig *measure.Rig, p point) error {
	cfg := measure.Config{Settings: b.settings, Mix: b.mix, Extent: p.extent}
	switch p.extent {
	case measure.Loads:
		cfg.CutoffS *= 5
	case measure.Curve:
		cfg.Samples = (cfg.Samples + 2) / 3
	}
	for _, v := range b.iptables() {
		for _, s := range b.measured {
			if p.extent == measure.Loads && s.Name != report.Product {
				continue
			}
			if err := b.run(ctx, rig, s, v, lab.Variant(v), cfg); err != nil {
				return err
			}
		}
	}
	for _, s := range b.nftables {
		if p.extent < measure.All && s.Name != report.Product {
			continue
		}
		if err := b.run(ctx, rig, s, report.NFTables, lab.NFT, cfg); err != nil {
			return err
		}
	}
	return nil
}

// run measures a subject. name is the variant's in the report.
func (b *bench) run(ctx context.Context, rig *measure.Rig, s subject.Subject, name string, v lab.Variant, cfg measure.Config) error {
	cfg.Log = func(format string, args ...any) {
		b.say("%s %s: %s", name, s.Name, fmt.Sprintf(format, args...))
	}
	run, err := rig.Run(ctx, s, v, cfg)
	if err != nil {
		return err
	}
	run.Variant = name
	b.results.Runs = append(b.results.Runs, *run)
	return nil
}

// publish writes and prints what there is.
func (b *bench) publish(complete bool) error {
	if len(b.results.Runs) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(b.json), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := b.results.Write(b.json); err != nil {
		return err
	}
	docs := b.docs
	if !complete {
		docs = "" // half a run is no documentation
	}
	if b.noTables {
		return nil
	}
	return publish(&b.results, docs, b.out)
}
