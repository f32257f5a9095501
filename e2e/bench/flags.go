// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"fairlead/e2e/bench/report"
	"fairlead/e2e/lab"
	"fairlead/e2e/load/workload"
)

const usage = `Bench measures Fairlead and kube-proxy side by side, on nodes made of network
namespaces, against a real API server. It needs root, and an hour for all. The IPVS
modes it measures in User-Mode Linux, a second kernel.

  make bench                                                  all, into docs/performance.md
  make bench BENCH="--sizes 1000x10 --variants nft"           a part, printed alone
  make bench BENCH="--variants ipvs"                          the IPVS modes alone
  make bench BENCH="--subjects fairlead --samples 10 --curve=" quicker still
  bin/bench --from docs/performance.json --docs docs          tables and plot anew

Flags:
`

// options are the flags.
type options struct {
	fairlead, kubeProxy string
	subjects, variants  []string
	sizes, curve, loads []report.Size
	ipvsSizes           []report.Size
	ipvsCurve           []report.Size
	here, noTables      bool
	settings            report.Settings
	cutoff, limit       time.Duration
	mix                 workload.Mix
	json, docs, work    string
	from                string
}

// parse reads and checks the flags.
func parse(args []string, out io.Writer) (*options, error) {
	o := &options{settings: report.Settings{Mix: workload.DefaultMix().String(), Seed: 1}}
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&o.fairlead, "fairlead", "bin/fairlead", "The agent.")
	fs.StringVar(&o.kubeProxy, "kube-proxy", ".cache/bin/kube-proxy", "kube-proxy.")
	fs.StringSliceVar(&o.subjects, "subjects", []string{"fairlead", "fairlead-compact", "kube-proxy"}, "What to measure. What this build has not is left out.")
	fs.StringSliceVar(&o.variants, "variants", []string{"nft", "legacy", report.NFTables, report.IPVS}, "Variants of iptables, and nftables and ipvs for these modes.")
	sizes := fs.StringSlice("sizes", []string{"1000x10", "10000x10"}, "Services x endpoints at which all is measured.")
	curve := fs.StringSlice("curve", []string{"100x10", "3000x10"}, "Sizes at which first sync and one change are measured, for the plot.")
	loads := fs.StringSlice("loads", []string{"5000x100"}, "Sizes at which only Fairlead's first sync and memory are measured.")
	ipvsSizes := fs.StringSlice("ipvs-sizes", []string{"1000x10"}, "Sizes at which all is measured of the IPVS modes.")
	ipvsCurve := fs.StringSlice("ipvs-curve", []string{"100x10", "5000x10"}, "Sizes at which first sync and one change are measured of Fairlead's IPVS mode.")
	fs.IntVar(&o.settings.Samples, "samples", 30, "Changes of each kind that are measured one by one; a third of it on the curve and of IPVS.")
	fs.IntVar(&o.settings.Connects, "connects", 2000, "Connects to each target.")
	fs.IntVar(&o.settings.Changes, "changes", 1000, "Changes whose CPU time is measured.")
	fs.Float64Var(&o.settings.Rate, "rate", 20, "How many of them in a second.")
	fs.StringVar(&o.settings.Mix, "mix", o.settings.Mix, "Kinds of these changes, and how often each is.")
	fs.Uint64Var(&o.settings.Seed, "seed", o.settings.Seed, "Other changes for every number.")
	fs.DurationVar(&o.cutoff, "cutoff", time.Minute, "How long a first sync may take; five times that with --loads, ten times of IPVS.")
	fs.DurationVar(&o.limit, "limit", 90*time.Minute, "How long all may take. What was measured until then is printed.")
	fs.StringVar(&o.json, "json", "bin/bench.json", "Where the figures go.")
	fs.StringVar(&o.docs, "docs", "", "Directory whose performance.md, .json and .svg are brought up to date.")
	fs.StringVar(&o.work, "work", "", "Directory for logs, which stays; empty is a temporary one.")
	fs.StringVar(&o.from, "from", "", "File with figures of an earlier run to print, and with --docs to write, instead of measuring.")
	fs.BoolVar(&o.here, "here", false, "Measure the IPVS modes in this kernel, which has to have IPVS and the legacy variant of iptables.")
	fs.BoolVar(&o.noTables, "no-tables", false, "Print no tables; the figures are written all the same.")
	fs.Usage = func() { fmt.Fprint(out, usage, fs.FlagUsages()) }
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("argument %q is not understood; all is in flags, see --help", fs.Arg(0))
	}
	for _, s := range []struct {
		flag string
		from []string
		to   *[]report.Size
	}{{"sizes", *sizes, &o.sizes}, {"curve", *curve, &o.curve}, {"loads", *loads, &o.loads}, {"ipvs-sizes", *ipvsSizes, &o.ipvsSizes}, {"ipvs-curve", *ipvsCurve, &o.ipvsCurve}} {
		var err error
		if *s.to, err = parseSizes(s.flag, s.from); err != nil {
			return nil, err
		}
	}
	return o, o.check()
}

func (o *options) check() error {
	o.settings.CutoffS = o.cutoff.Seconds()
	var err error
	if o.mix, err = workload.ParseMix(o.settings.Mix); err != nil {
		return err
	}
	for _, v := range o.variants {
		if v != report.IPVS && v != report.NFTables && !slices.Contains(lab.Variants(), lab.Variant(v)) {
			return fmt.Errorf("--variants %q is none of %v, and neither %s nor %s", v, lab.Variants(), report.NFTables, report.IPVS)
		}
	}
	if o.settings.Samples < 1 || o.settings.Connects < 1 || o.settings.Changes < 1 || o.settings.Rate <= 0 || o.cutoff <= 0 || o.limit <= 0 {
		return fmt.Errorf("--samples, --connects, --changes, --rate, --cutoff and --limit must be above 0")
	}
	return nil
}

// parseSizes reads sizes like 1000x10.
func parseSizes(flag string, list []string) ([]report.Size, error) {
	var out []report.Size
	for _, s := range list {
		services, endpoints, _ := strings.Cut(s, "x")
		m, err1 := strconv.Atoi(services)
		n, err2 := strconv.Atoi(endpoints)
		if err1 != nil || err2 != nil || m < 2 || n < 1 {
			return nil, fmt.Errorf("--%s %q is not a size; write it like 1000x10", flag, s)
		}
		out = append(out, report.Size{Services: m, Endpoints: n})
	}
	return out, nil
}
