// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

const (
	// requests is how many each client makes: enough that three endpoints
	// chosen at random are all hit but once in ten billion times.
	requests = 60
	// avoided is how many connections in a row must miss an endpoint before it
	// counts as gone: by chance they would once in ten million times.
	avoided = 40
	// patience bounds the wait for any one change.
	patience = 10 * time.Second
	// atOnce is the most that a refusal may take.
	atOnce = 100 * time.Millisecond
)

func (d *demo) silent(ctx context.Context) (string, error) {
	for _, f := range model.Families() {
		p := d.probe(f)
		p.Timeout = 200 * time.Millisecond
		if r := p.Once(ctx); r.Outcome != lab.TimedOut {
			return "", fmt.Errorf("%s: %s", p, r)
		}
	}
	return "", nil
}

func (d *demo) start(ctx context.Context) (string, error) {
	if err := errors.Join(d.writeService(), d.writeEndpoints(backendCount)); err != nil {
		return "", err
	}
	started := time.Now()
	if err := d.startAgent(ctx); err != nil {
		return "", err
	}
	waiting, cancel := d.agent.whileRunning(ctx, patience)
	defer cancel()
	for _, f := range model.Families() {
		if _, err := d.probe(f).WaitUntil(waiting, lab.Answered); err != nil {
			return "", d.agent.explain(err)
		}
	}
	return "after " + ms(time.Since(started)), nil
}

func (d *demo) showRules(ctx context.Context) (string, error) {
	lines, err := d.servicePath(ctx)
	for _, line := range lines {
		d.out.line("%s", line)
	}
	return "", err
}

// spread lets every kind of client make requests, and checks who answered and
// which address the backends saw. A pod's own address reaches them; clients
// that are no pods appear as the node, on the pods' network.
func (d *demo) spread(ctx context.Context) (string, error) {
	d.out.line("%-19s%-12s%-12s%-12s%s", "60 requests from", backendName(0), backendName(1), backendName(2), "seen as")
	clients := []struct {
		name string
		from *lab.NS
	}{{"client pod", d.clientPod()}, {"node", d.node().NS}, {"outside", d.lab.Client}}
	for _, c := range clients {
		for _, f := range model.Families() {
			want := d.node().PodCIDR(f).Addr().Next()
			if c.from == d.clientPod() {
				want = c.from.Addr(f)
			}
			if err := d.spreadFrom(ctx, c.name, c.from, f, want); err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

func (d *demo) spreadFrom(ctx context.Context, name string, from *lab.NS, f model.Family, want netip.Addr) error {
	t := lab.Probe{From: from, Network: "tcp", To: vip(f)}.Spread(ctx, requests)
	bars := ""
	for i := range backendCount {
		bars += d.out.pad(d.out.bar(t.Servers[backendName(i)]), 12)
	}
	d.out.line("%-12s%-7s%s%s", name, f, bars, want)
	switch {
	case t.Refused+t.TimedOut+t.Failed > 0:
		return fmt.Errorf("%s, %s: %d refused, %d timed out, %d failed", name, f, t.Refused, t.TimedOut, t.Failed)
	case len(t.Servers) != backendCount:
		return fmt.Errorf("%s, %s: only %d of %d endpoints were reached", name, f, len(t.Servers), backendCount)
	case t.Sources[want] != requests:
		return fmt.Errorf("%s, %s: the backends saw %v, not only %s", name, f, t.Sources, want)
	}
	return nil
}

// remove takes the last endpoint away. The time is that of the last connection
// that still reached it.
func (d *demo) remove(ctx context.Context) (string, error) {
	gone := backendName(backendCount - 1)
	var last time.Duration
	misses := 0
	err := d.rewriteUnderLoad(ctx, backendCount-1, func(r lab.Result, since time.Duration) bool {
		misses++
		if r.Server == gone {
			last, misses = since, 0
		}
		return misses >= avoided
	})
	return fmt.Sprintf("last reached after %s, then not by %d connections", ms(last), avoided), err
}

// add brings the endpoint back. The time is that of the first connection that
// reaches it.
func (d *demo) add(ctx context.Context) (string, error) {
	back := backendName(backendCount - 1)
	var first time.Duration
	err := d.rewriteUnderLoad(ctx, backendCount, func(r lab.Result, since time.Duration) bool {
		first = since
		return r.Server == back
	})
	return "after " + ms(first), err
}

// rewriteUnderLoad rewrites the endpoints while it makes one connection after
// the other, each of which must be answered, until one satisfies enough. That
// is told when each was opened, counted from before the rewrite.
func (d *demo) rewriteUnderLoad(ctx context.Context, count int, enough func(lab.Result, time.Duration) bool) error {
	ctx, cancel := d.agent.whileRunning(ctx, patience)
	defer cancel()
	begun := time.Now()
	written := make(chan error, 1)
	go func() { written <- d.writeEndpoints(count) }()
	for total := 1; ; total++ {
		r := d.probe(model.IPv4).Once(ctx)
		if r.Outcome != lab.Answered {
			return d.agent.explain(fmt.Errorf("connection %d since the change: %s", total, r))
		}
		if enough(r, r.Started.Sub(begun)) {
			return <-written
		}
	}
}

// change rewrites the endpoints and waits until a connection has the outcome in
// both families.
func (d *demo) change(ctx context.Context, count int, want lab.Outcome) (time.Duration, error) {
	ctx, cancel := d.agent.whileRunning(ctx, patience)
	defer cancel()
	changed := time.Now()
	if err := d.writeEndpoints(count); err != nil {
		return 0, err
	}
	for _, f := range model.Families() {
		if _, err := d.probe(f).WaitUntil(ctx, want); err != nil {
			return 0, d.agent.explain(err)
		}
	}
	return time.Since(changed), nil
}

func (d *demo) scaleToZero(ctx context.Context) (string, error) {
	took, err := d.change(ctx, 0, lab.Refused)
	if err != nil {
		return "", err
	}
	var slowest time.Duration
	for _, f := range model.Families() {
		p := d.probe(f)
		r := p.Once(ctx)
		if r.Outcome != lab.Refused || r.Took > atOnce {
			return "", fmt.Errorf("%s: %s after %s", p, r, ms(r.Took))
		}
		slowest = max(slowest, r.Took)
	}
	return fmt.Sprintf("after %s, and each within %s", ms(took), ms(slowest)), nil
}

func (d *demo) scaleUp(ctx context.Context) (string, error) {
	took, err := d.change(ctx, backendCount, lab.Answered)
	return "after " + ms(took), err
}

// stop ends the agent with a connection open, and uses both that and new ones.
func (d *demo) stop(ctx context.Context) (string, error) {
	var err error
	if d.held, err = d.probe(model.IPv4).Hold(ctx); err != nil {
		return "", err
	}
	if err := d.agent.stop(ctx); err != nil {
		return "", err
	}
	for _, f := range model.Families() {
		if t := d.probe(f).Spread(ctx, requests); len(t.Servers) != backendCount || t.Refused+t.TimedOut+t.Failed > 0 {
			return "", fmt.Errorf("%s: %+v", f, t)
		}
	}
	if r := d.held.Ping(ctx); r.Outcome != lab.Answered {
		return "", fmt.Errorf("connection opened before: %s", r)
	}
	return fmt.Sprintf("%d new connections, and one opened before", 2*requests), nil
}

func (d *demo) cleanup(ctx context.Context) (string, error) {
	before, err := d.kubeLines(ctx)
	if err != nil {
		return "", err
	}
	if _, err := d.node().Run(ctx, d.binary, "cleanup"); err != nil {
		return "", err
	}
	after, err := d.kubeLines(ctx)
	if err != nil {
		return "", err
	}
	if before == 0 || after != 0 {
		return "", fmt.Errorf("lines that name KUBE-: %d before, %d after", before, after)
	}
	return fmt.Sprintf("%d lines before, none after", before), nil
}
