// SPDX-License-Identifier: Apache-2.0

package subject

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Names of metrics that all subjects have, from kube-proxy.
const (
	// LastSync is when the last sync ended, in seconds since 1970, by family.
	LastSync = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
	// SyncSeconds is how long all syncs took together, by family.
	SyncSeconds = "kubeproxy_sync_proxy_rules_duration_seconds_sum"
	// syncs is how many there were, by family.
	syncs = "kubeproxy_sync_proxy_rules_duration_seconds_count"
	// RulesWritten is how many rules the last sync has written, by family and
	// table.
	RulesWritten = "kubeproxy_sync_proxy_rules_iptables_last"
)

// Metrics is what a process tells of itself: the value of each series by its
// name with labels.
type Metrics map[string]float64

// Sum adds up the series of a name whose labels have label in them; an empty
// one is in all.
func (m Metrics) Sum(name, label string) float64 {
	var sum float64
	for series, v := range m {
		base, labels, _ := strings.Cut(series, "{")
		if base == name && strings.Contains(labels, label) {
			sum += v
		}
	}
	return sum
}

// Metrics asks the process.
func (p *Process) Metrics(ctx context.Context) (Metrics, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return p.node.Dial(ctx, network, addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s for metrics: %w", p.name, err)
	}
	defer resp.Body.Close()
	return parseMetrics(resp.Body)
}

// parseMetrics reads Prometheus' text format, of which it needs little: a line
// for each series, and no times.
func parseMetrics(r io.Reader) (Metrics, error) {
	m := Metrics{}
	for s := bufio.NewScanner(r); ; {
		if !s.Scan() {
			return m, s.Err()
		}
		at := strings.LastIndexByte(s.Text(), ' ')
		if at < 0 || s.Text()[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(s.Text()[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("read metric %q: %w", s.Text(), err)
		}
		m[s.Text()[:at]] = v
	}
}

// WaitSynced waits for the end of the process's first sync for IPv4, by its own
// account, and returns when that was and its metrics then.
func (p *Process) WaitSynced(ctx context.Context) (time.Time, Metrics, error) {
	for {
		m, err := p.Metrics(ctx)
		const family = `ip_family="IPv4"`
		if at := m.Sum(LastSync, family); err == nil && at > 0 && m.Sum(syncs, family) > 0 {
			return time.Unix(0, int64(at*1e9)), m, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, nil, errors.Join(fmt.Errorf("wait for the first sync of %s: %w", p.name, context.Cause(ctx)), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// MeanSync is how long a sync for IPv4 took on average between two times at which the
// process was asked; 0 if there was none.
func MeanSync(before, after Metrics) time.Duration {
	const family = `ip_family="IPv4"`
	n := after.Sum(syncs, family) - before.Sum(syncs, family)
	if n == 0 {
		return 0
	}
	took := after.Sum(SyncSeconds, family) - before.Sum(SyncSeconds, family)
	return time.Duration(took / n * float64(time.Second))
}

// Memory is how much of a process is in memory, in bytes: now, and at most so
// far.
type Memory struct{ Resident, Peak int64 }

// Memory asks the kernel. What the process has started is not in it.
func (p *Process) Memory() (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory of %s: %w", p.name, err)
	}
	return parseStatus(string(text))
}

func parseStatus(text string) (m Memory, err error) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		to := map[string]*int64{"VmRSS": &m.Resident, "VmHWM": &m.Peak}[name]
		if to == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, fmt.Errorf("read %s: %w", strings.TrimSpace(line), err)
		}
		*to = kib << 10
	}
	if m.Resident == 0 || m.Peak == 0 {
		return m, errors.New("read memory of process: it has no VmRSS and VmHWM")
	}
	return m, nil
}

// tick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every
// architecture that Go knows.
const tick = 10 * time.Millisecond

// CPU is the time that the process has used so far, and what it has started and
// waited for; in user space and in the kernel.
func (p *Process) CPU() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time of %s: %w", p.name, err)
	}
	return parseStat(string(text))
}

// parseStat adds up utime, stime, cutime and cstime, fields 14 to 17 of
// proc_pid_stat(5). The second field, in parentheses, may have anything in it.
func parseStat(text string) (time.Duration, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const first = 14 - 3
	if len(fields) < first+4 {
		return 0, fmt.Errorf("read CPU time: %q has too few fields", text)
	}
	var ticks int64
	for _, f := range fields[first : first+4] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}
