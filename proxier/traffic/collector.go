// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/proxier"
	"fairlead/proxier/model"
)

const (
	// leastPause is the time between two readings, and share the part of the time, 1/share,
	// that reading may take.
	leastPause = time.Second
	share      = 50
	// patience bounds a reading that somebody who asks for the metrics waits for.
	patience = 30 * time.Second
)

// Config says what a Collector tells.
type Config struct {
	// Directions are those, "in" and "out", of which sources tell packets and bytes.
	Directions []string
	// Registerer is where the Collector registers itself.
	Registerer prometheus.Registerer
	Logger     klog.Logger
}

// Collector makes metrics of what sources tell. It begins at 0, whatever the kernel has
// counted before Begin.
type Collector struct {
	cfg                         Config
	connections, packets, bytes *prometheus.Desc
	failures                    *prometheus.CounterVec // ip_family

	mu       sync.Mutex // of what follows, and of reading
	families []*ledger
	failing  map[model.Family]bool
	begun    bool
	next     time.Time
}

var _ prometheus.Collector = (*Collector)(nil)

// New registers the metrics.
func New(cfg Config) *Collector {
	labels := []string{"service_namespace", "service_name", "service_port", "protocol", "ip_family"}
	desc := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("fairlead_service_"+name, help, append(labels[:len(labels):len(labels)], more...), nil)
	}
	c := &Collector{
		cfg:         cfg,
		connections: desc("connections_total", "Connections to a port of a Service that were led to an endpoint."),
		packets:     desc("packets_total", "Packets of connections to a port of a Service.", "direction"),
		bytes:       desc("bytes_total", "Bytes of connections to a port of a Service, with the headers of IP.", "direction"),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairlead_service_readings_failed_total", Help: "Readings of the kernel's counters for Services that failed.",
		}, []string{"ip_family"}),
		failing: map[model.Family]bool{},
	}
	cfg.Registerer.MustRegister(c, c.failures)
	return c
}

// Family adds a family, in which the ports on the roster have series of their own. What all
// others carry is one series more. What it returns has to follow the rules of it.
func (c *Collector) Family(f model.Family, source Source, roster *Roster) proxier.Follower {
	l := newLedger(f, source, roster)
	c.failures.WithLabelValues(f.String())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.families = append(c.families, l)
	return l
}

// Begin notes what the kernel has counted so far, once ready is closed and the rules of
// all families, which are known by then, have been followed; all that comes after is in
// the metrics.
func (c *Collector) Begin(ctx context.Context, ready <-chan struct{}) {
	wait := func(done <-chan struct{}) bool {
		select {
		case <-done:
		case <-ctx.Done():
		}
		return ctx.Err() == nil
	}
	if !wait(ready) {
		return
	}
	c.mu.Lock()
	families := slices.Clone(c.families)
	c.mu.Unlock()
	for _, l := range families {
		if !wait(l.followed) {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = true
	c.read(ctx)
	c.cfg.Logger.V(2).Info("What Services carry is counted from here on")
}

// read reads all counters. mu must be held.
func (c *Collector) read(ctx context.Context) {
	start := time.Now()
	for _, l := range c.families {
		err := l.read(ctx)
		if err != nil {
			c.failures.WithLabelValues(l.family.String()).Inc()
		}
		if err != nil && !c.failing[l.family] {
			c.cfg.Logger.Error(err, "Cannot read what Services carry, the metrics stand still", "ipFamily", l.family)
		}
		c.failing[l.family] = err != nil
	}
	c.next = time.Now().Add(max(leastPause, share*time.Since(start)))
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.connections
	if len(c.cfg.Directions) > 0 {
		out <- c.packets
		out <- c.bytes
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the interface has none
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun && !time.Now().Before(c.next) {
		c.read(ctx)
	}
	for _, l := range c.families {
		l.each(func(name model.ServicePortName, sum Counts) {
			labels := []string{name.Service.Namespace, name.Service.Name, name.Port, string(name.Protocol), l.family.String()}
			tell := func(d *prometheus.Desc, n uint64, more ...string) {
				out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append(labels[:len(labels):len(labels)], more...)...)
			}
			tell(c.connections, sum.Connections)
			for _, d := range c.cfg.Directions {
				packets, bytes := sum.PacketsIn, sum.BytesIn
				if d == "out" {
					packets, bytes = sum.PacketsOut, sum.BytesOut
				}
				tell(c.packets, packets, d)
				tell(c.bytes, bytes, d)
			}
		})
	}
}
