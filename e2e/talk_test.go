// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// patience is how long clients wait here: the kernel that has IPVS may itself have to
// wait for a CPU for a second. What is gone refuses, or answers never.
const patience = 5 * time.Second

// talks are connections that exchange data all the time, until they are stopped.
type talks struct {
	held []*lab.Held
	wg   sync.WaitGroup
	stop context.CancelFunc

	mu     sync.Mutex
	turns  []int
	failed map[int]lab.Result // the first failure of each
}

// talk opens connections to the Service "web" from each of the clients, in both
// families, and has them exchange a line every 20 ms.
func talk(ctx context.Context, t *testing.T, each int, clients ...*lab.NS) *talks {
	t.Helper()
	var probes []lab.Probe
	for _, from := range clients {
		for _, f := range families() {
			for range each {
				p := webProbe(from, f, "tcp")
				p.Timeout = patience
				probes = append(probes, p)
			}
		}
	}
	return talkTo(ctx, t, probes...)
}

// talkTo opens a connection for each probe, and has them exchange a line every 20 ms.
func talkTo(ctx context.Context, t *testing.T, probes ...lab.Probe) *talks {
	t.Helper()
	c := &talks{failed: map[int]lab.Result{}}
	for _, p := range probes {
		h, err := p.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		c.held = append(c.held, h)
	}
	c.turns = make([]int, len(c.held))
	ctx, c.stop = context.WithCancel(ctx)
	for i, h := range c.held {
		c.wg.Go(func() {
			for tick := time.Tick(20 * time.Millisecond); ctx.Err() == nil; <-tick {
				r := h.Ping(context.WithoutCancel(ctx))
				c.mu.Lock()
				c.turns[i]++
				if _, before := c.failed[i]; r.Outcome != lab.Answered && !before {
					c.failed[i] = r
				}
				c.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { c.stop(); c.wg.Wait() })
	return c
}

// with returns how many of the connections are with a server.
func (c *talks) with(pod *lab.NS) (n int) {
	for _, h := range c.held {
		if h.First.Server == pod.Label {
			n++
		}
	}
	return n
}

// check fails the test if a connection has failed, and forgets that.
func (c *talks) check(t *testing.T, when string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.failed {
		t.Errorf("%s: connection with %s failed after %d lines: %s", when, c.held[i].First.Server, c.turns[i], r)
	}
	clear(c.failed)
}

// failures returns how many requests of a crowd have failed, and what went wrong
// first.
func (c *crowd) failures() (made, failed int, first string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.failed, c.first
}

// check lets every client make another request, and fails the test if one has failed.
func (c *crowd) check(t *testing.T, when string) {
	t.Helper()
	c.settle()
	made, failed, first := c.failures()
	t.Logf("%s: %d requests", when, made)
	if failed > 0 {
		t.Errorf("%s: %d of %d requests failed, first %s", when, failed, made, first)
		c.mu.Lock()
		c.failed = 0
		c.mu.Unlock()
	}
}
