// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// ConntrackConfig says how connections are to be tracked. Its fields are
// kube-proxy's flags --conntrack-….
type ConntrackConfig struct {
	// MaxPerCore is how many connections can be tracked for each CPU, with Min
	// as the least for the node. 0 leaves the limit as it is, whatever Min says.
	MaxPerCore, Min int
	// The timeouts of connections; 0 leaves them as they are.
	TCPEstablishedTimeout, TCPCloseWaitTimeout, UDPTimeout, UDPStreamTimeout time.Duration
	// TCPBeLiberal makes the kernel track TCP packets outside the window, which
	// it takes for invalid otherwise. False leaves that as it is.
	TCPBeLiberal bool
}

// DefaultConntrack returns kube-proxy's defaults.
func DefaultConntrack() ConntrackConfig {
	return ConntrackConfig{
		MaxPerCore: 32 << 10, Min: 128 << 10,
		TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour,
	}
}

// maxScaled bounds what MaxPerCore comes to: the table takes memory of the
// kernel's.
const maxScaled = 1 << 20

// limit is how many connections the node is to track, 0 for as many as it does.
func (c ConntrackConfig) limit(cpus int) int {
	if c.MaxPerCore <= 0 {
		return 0
	}
	return max(min(c.MaxPerCore*cpus, maxScaled), c.Min)
}

const (
	conntrackMax = "net/netfilter/nf_conntrack_max"
	buckets      = "net/netfilter/nf_conntrack_buckets"
	beLiberal    = "net/netfilter/nf_conntrack_tcp_be_liberal"
	hashsize     = "sys/module/nf_conntrack/parameters/hashsize"
	cpusOnline   = "sys/devices/system/cpu/online"
)

// Conntrack makes the kernel track connections as cfg says.
func (s *Settings) Conntrack(ctx context.Context, cfg ConntrackConfig) (problems []*Problem) {
	add := func(more []*Problem) { problems = append(problems, more...) }
	if n := cfg.limit(s.cpus()); n > 0 {
		add(s.want(ctx, sysctlFile(conntrackMax), strconv.Itoa(n),
			"the node tracks as many connections as the host lets it, and drops packets of more",
			fmt.Sprintf("set it to %d on the host, or leave it alone with --conntrack-max-per-core=0", n)))
		add(s.raiseHashsize(ctx, n/4))
	}
	add(s.timeout(ctx, "tcp_timeout_established", "tcp-timeout-established", cfg.TCPEstablishedTimeout, "TCP connections without traffic"))
	add(s.timeout(ctx, "tcp_timeout_close_wait", "tcp-timeout-close-wait", cfg.TCPCloseWaitTimeout, "TCP connections that one side has closed"))
	add(s.timeout(ctx, "udp_timeout", "udp-timeout", cfg.UDPTimeout, "unanswered UDP flows"))
	add(s.timeout(ctx, "udp_timeout_stream", "udp-timeout-stream", cfg.UDPStreamTimeout, "UDP flows"))
	if cfg.TCPBeLiberal {
		add(s.want(ctx, sysctlFile(beLiberal), "1",
			"TCP packets outside the window are taken for invalid and dropped",
			"set it to 1 on the host"))
	}
	return problems
}

// timeout sets one of the timeouts, in seconds.
func (s *Settings) timeout(ctx context.Context, setting, flag string, d time.Duration, what string) []*Problem {
	if d <= 0 {
		return nil
	}
	seconds := strconv.Itoa(max(int(d/time.Second), 1))
	return s.want(ctx, sysctlFile("net/netfilter/nf_conntrack_"+setting), seconds,
		what+" are forgotten after the host's time, not after "+d.String(),
		fmt.Sprintf("set it to %s on the host, or leave it alone with --conntrack-%s=0", seconds, flag))
}

// raiseHashsize gives the table of connections at least n buckets. The kernel
// takes that only from the initial network namespace, in either of two places,
// of which a container may have one read-only.
func (s *Settings) raiseHashsize(ctx context.Context, n int) []*Problem {
	have, err := s.readInt(hashsize)
	if err == nil && have >= n {
		return nil
	}
	if err == nil {
		if err = s.set(ctx, hashsize, strconv.Itoa(n)); err == nil {
			return nil
		}
	}
	if have, e := s.readInt(sysctlFile(buckets)); e == nil && (have >= n || s.set(ctx, sysctlFile(buckets), strconv.Itoa(n)) == nil) {
		return nil
	}
	return []*Problem{{
		Setting: name(hashsize), Err: err,
		Effect: "finding a connection takes longer the more there are",
		Remedy: fmt.Sprintf("set it to %d on the host", n),
	}}
}

// BeLiberal tells whether the kernel tracks TCP packets outside the window. If
// it does not, answers with such packets would pass untranslated unless what is
// invalid is dropped.
func (s *Settings) BeLiberal() bool {
	value, err := s.read(sysctlFile(beLiberal))
	return err == nil && value != "0"
}

// cpus counts the CPUs of the machine. What Go counts are those that this
// process may run on.
func (s *Settings) cpus() int {
	text, err := s.read(cpusOnline)
	n := countCPUs(text)
	if err != nil || n == 0 {
		return runtime.NumCPU()
	}
	return n
}

// countCPUs counts what a list like "0-3,8" has, 0 if it is not such a list.
func countCPUs(list string) (n int) {
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || last < first {
			return 0
		}
		n += last - first + 1
	}
	return n
}
