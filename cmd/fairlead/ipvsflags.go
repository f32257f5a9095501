// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"fairlead/ipvs"
	"fairlead/ipvs/servers"
	"fairlead/proxier/source"
)

// ipvsOptions are the flags of IPVS mode as given. Their defaults are kube-proxy's,
// where it has the flag.
type ipvsOptions struct {
	scheduler                 string
	strictARP                 bool
	excludeCIDRs              []string
	timeouts                  servers.Timeouts
	minSyncPeriod, syncPeriod time.Duration
	gracePeriod               time.Duration
}

func (o *ipvsOptions) register(fs *pflag.FlagSet) {
	fs.StringVar(&o.scheduler, "ipvs-scheduler", ipvs.DefaultScheduler, "How IPVS chooses among endpoints: a scheduler of the kernel, and after commas its flags as ipvsadm has them, mh,mh-port for example. A Service may name another one by the annotation "+source.AnnotationScheduler+".")
	fs.BoolVar(&o.strictARP, "ipvs-strict-arp", false, "Answer ARP requests only on the interface that has the address, so that the node does not answer for addresses of Services (arp_ignore=1, arp_announce=2).")
	excludeFlag(fs, &o.excludeCIDRs)
	fs.DurationVar(&o.timeouts.TCP, "ipvs-tcp-timeout", 0, "How long IPVS keeps an idle TCP connection; 0 leaves the kernel's timeout as it is.")
	fs.DurationVar(&o.timeouts.TCPFin, "ipvs-tcpfin-timeout", 0, "How long IPVS keeps a TCP connection that has been closed; 0 leaves the kernel's timeout as it is.")
	fs.DurationVar(&o.timeouts.UDP, "ipvs-udp-timeout", 0, "How long IPVS keeps a UDP flow without packets; 0 leaves the kernel's timeout as it is.")
	fs.DurationVar(&o.minSyncPeriod, "ipvs-min-sync-period", 0, "Least time between the starts of two syncs in IPVS mode. 0 means at once when idle, and after a sync a rest as long as the sync.")
	fs.DurationVar(&o.syncPeriod, "ipvs-sync-period", 30*time.Second, "How often the kernel is checked against what others may have changed, in IPVS mode.")
	fs.DurationVar(&o.gracePeriod, "ipvs-graceful-period", 15*time.Minute, "How long an endpoint that is gone may keep its TCP and SCTP connections in IPVS mode. 0 cuts them at once.")
}

// excludeFlag defines the flag that cleanup has, too.
func excludeFlag(fs *pflag.FlagSet, cidrs *[]string) {
	fs.StringSliceVar(cidrs, "ipvs-exclude-cidrs", nil, "CIDRs of virtual servers that are not Fairlead's, and that it does not remove.")
}

func (o *ipvsOptions) check() error {
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"tcp-timeout", o.timeouts.TCP}, {"tcpfin-timeout", o.timeouts.TCPFin}, {"udp-timeout", o.timeouts.UDP},
		{"min-sync-period", o.minSyncPeriod}, {"graceful-period", o.gracePeriod},
	} {
		if d.value < 0 {
			return fmt.Errorf("--ipvs-%s %s must not be below 0", d.flag, d.value)
		}
	}
	switch {
	case o.syncPeriod <= 0:
		return fmt.Errorf("--ipvs-sync-period %s must be above 0", o.syncPeriod)
	case o.minSyncPeriod > o.syncPeriod:
		return fmt.Errorf("--ipvs-min-sync-period %s must not be above --ipvs-sync-period %s", o.minSyncPeriod, o.syncPeriod)
	}
	return nil
}

// setIPVS reads the flags of IPVS mode that have a form of their own.
func (c *config) setIPVS() error {
	text := c.ipvs.scheduler
	if text == "" {
		text = ipvs.DefaultScheduler
	}
	var err error
	if c.scheduler, err = source.ParseScheduler(text); err != nil {
		return fmt.Errorf("--ipvs-scheduler %q %w", text, err)
	}
	cidrs, err := parseCIDRs("--ipvs-exclude-cidrs", strings.Join(c.ipvs.excludeCIDRs, ","))
	c.excludeCIDRs = both(cidrs)
	return err
}
