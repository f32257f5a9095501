// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
)

const (
	// atOnce is how many cells are asked at the same time. Most of those that
	// take long wait for a timeout.
	atOnce = 40
	// enoughRefusals end a cell: what refuses has nothing else to choose.
	enoughRefusals = 6
	// leastRequests are made of a cell in any case.
	leastRequests = 8
	// patience is how long the first requests are waited for before more are made, of
	// a cell that may be dropped: answers come sooner, if they come at all. Not so on
	// a machine that is slow or busy: what is to answer is waited for, as more
	// requests would only make it slower.
	patience = 100 * time.Millisecond
	// httpTimeout is like that of a probe.
	httpTimeout = 900 * time.Millisecond
)

// askAll asks every cell of a scenario and returns the outcomes by cell. Cells
// that could disturb each other are asked one after the other. What is expected, if
// anything is known, only tells which requests keep nobody busy.
func askAll(ctx context.Context, topo *topology, s scenario, want outcomes) (outcomes, error) {
	var mu sync.Mutex
	out := outcomes{}
	seen := map[string]bool{}
	busy := newLoad()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, lane := range s.lanes() {
		g.Go(func() error {
			for _, c := range lane {
				outcome, servers := ask(ctx, topo, busy, s, c, want[c])
				mu.Lock()
				out[c] = outcome
				for _, server := range servers {
					seen[server] = true
				}
				mu.Unlock()
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if s.sticky {
		out[together] = strings.Join(slices.Sorted(maps.Keys(seen)), ", ")
	}
	return out, nil
}

// dropped is the outcome of requests that nothing came back of.
const dropped = "dropped"

// together stands for all cells of a sticky scenario: its outcome is who
// answered any of them. Clients stay with their endpoints, but not all with the
// same.
var together = cell{place: place{target: "all"}, from: "all"}

// lanes groups the cells that have to be asked one after the other: of a sticky
// scenario, those whose first connections would race for the choice of the
// endpoint.
func (s scenario) lanes() [][]cell {
	type client struct {
		from string
		flow flow
	}
	index := map[client]int{}
	var out [][]cell
	for _, c := range s.cells() {
		if !s.sticky {
			out = append(out, []cell{c})
			continue
		}
		k := client{c.from, c.flow}
		i, ok := index[k]
		if !ok {
			i = len(out)
			index[k], out = i, append(out, nil)
		}
		out[i] = append(out[i], c)
	}
	return out
}

// ask asks one cell, and returns its outcome in words and who answered.
func ask(ctx context.Context, topo *topology, busy load, s scenario, c cell, want string) (outcome string, servers []string) {
	if c.place.target == toHealthCheck {
		return askHealth(ctx, topo.hosts[c.from].Dial, c.place.addr(topo, c.flow.family)), nil
	}
	p := lab.Probe{From: topo.hosts[c.from], Network: c.flow.network, To: c.place.addr(topo, c.flow.family)}
	p.Ports = topo.portsOf(c.from, c.flow, p.To.Addr())
	t := tally{from: c.from, to: virtualAddr(c, p.To), answers: map[answer]int{}}
	wait := patience
	if want != "" && !strings.Contains(want, dropped) {
		wait = httpTimeout
	}
	first := make(chan []lab.Result, 1)
	busy.enter(leastRequests)
	go func() { first <- p.Batch(ctx, leastRequests) }()
	var results []lab.Result
	select {
	case results = <-first:
	case <-time.After(wait):
	}
	busy.leave(leastRequests)
	for _, r := range results {
		t.add(topo, r)
	}
	if more := s.requests() - leastRequests; more > 0 && !t.suffices(s) {
		busy.enter(more)
		free := time.AfterFunc(wait, func() { busy.leave(more) })
		for _, r := range p.Batch(ctx, more) {
			t.add(topo, r)
		}
		if free.Stop() {
			busy.leave(more)
		}
	}
	if results == nil {
		for _, r := range <-first {
			t.add(topo, r)
		}
	}
	return t.outcome(s.sticky), t.servers()
}

// load bounds the requests that keep the machine busy. One that gets no answer
// within patience does not: it just waits.
type load struct{ *semaphore.Weighted }

// newLoad allows for so many requests that a machine answers each long before a
// client gives up.
func newLoad() load { return load{semaphore.NewWeighted(maxLoad())} }

func maxLoad() int64 { return int64(64 * runtime.NumCPU()) }

func (l load) enter(n int) { _ = l.Acquire(context.Background(), min(int64(n), maxLoad())) } // fails only with its context

func (l load) leave(n int) { l.Release(min(int64(n), maxLoad())) }

// answer is who answered, and whom it saw.
type answer struct{ server, saw string }

// tally is what several requests of one cell came to.
type tally struct {
	// from is who asked, and to whom, if that is no node's own address.
	from               string
	to                 netip.Addr
	answers            map[answer]int
	refusals, timeouts int
	failures           []string
}

func (t *tally) add(topo *topology, r lab.Result) {
	switch r.Outcome {
	case lab.Answered:
		saw := "own" // the address that the client has itself
		if r.Source.Addr() != r.Local.Addr() && !t.own(topo, r) {
			saw = topo.name(r.Source.Addr())
		}
		t.answers[answer{r.Server, saw}]++
	case lab.Refused:
		t.refusals++
	case lab.TimedOut:
		t.timeouts++
	default:
		t.failures = append(t.failures, reason(r.Err))
	}
}

// own tells whether what a server saw is the asker's own address although it is
// not the socket's: in IPVS mode a Service's address is one of the node, and so is
// what the node's own requests to it come from, until they leave.
func (t *tally) own(topo *topology, r lab.Result) bool {
	return t.to.IsValid() && r.Local.Addr() == t.to && topo.name(r.Source.Addr()) == t.from
}

// virtualAddr returns the address that is asked, unless a node has it by itself.
func virtualAddr(c cell, to netip.AddrPort) netip.Addr {
	switch c.place.target {
	case toClusterIP, toLoadBalancer, toExternalIP:
		return to.Addr()
	}
	return netip.Addr{}
}

// reason is what does not change with the port of a client.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// suffices tells whether nothing else is to be expected of more requests: what
// refuses has nothing else to choose, nor has what has chosen every endpoint.
func (t *tally) suffices(s scenario) bool {
	n := 0
	for _, count := range t.answers {
		n += count
	}
	if t.refusals >= enoughRefusals {
		return true
	}
	if n < leastRequests || t.refusals+t.timeouts+len(t.failures) > 0 {
		return false
	}
	seen := t.servers()
	for _, svc := range s.services {
		for _, e := range svc.endpoints {
			if !slices.Contains(seen, e.at) {
				return false
			}
		}
	}
	return true
}

func (t *tally) servers() []string {
	var out []string
	for a := range t.answers {
		out = append(out, a.server)
	}
	return out
}

// outcome is the tally without counts, so that it is the same every time.
func (t *tally) outcome(sticky bool) string {
	var parts []string
	for a := range t.answers {
		server := a.server
		if sticky && len(t.answers) == 1 && server != outside {
			server = "one endpoint"
		}
		parts = append(parts, server+" saw "+a.saw)
	}
	if t.refusals > 0 {
		parts = append(parts, "refused")
	}
	if t.timeouts > 0 {
		parts = append(parts, dropped)
	}
	for _, f := range t.failures {
		parts = append(parts, "failed: "+f)
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ", ")
}

// askHealth asks a health check port and returns what of the answer counts.
func askHealth(ctx context.Context, dial dialer, at netip.AddrPort) string {
	resp, body, err := get(ctx, dial, at)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, context.DeadlineExceeded):
		return dropped
	case err != nil:
		return "failed: " + reason(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, body); err != nil {
		return fmt.Sprintf("failed: %v in %q", err, body)
	}
	return fmt.Sprintf("%d, %s, %s, weight %s, %s", resp.StatusCode,
		resp.Header.Get("Content-Type"), resp.Header.Get("X-Content-Type-Options"),
		resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), &compact)
}

// dialer connects from somewhere.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// get fetches a page. A timeout is a context.DeadlineExceeded.
func get(ctx context.Context, dial dialer, at netip.AddrPort) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       dial,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/", nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}
