// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Kind is what a change does.
type Kind int

// The kinds of changes.
const (
	// Replace gives a Service a new endpoint in place of one of its endpoints.
	Replace Kind = iota
	// Scale gives a Service another number of endpoints: at least one, at most
	// twice as many as planned.
	Scale
	// Add makes a Service that there was not, with its endpoints.
	Add
	// Remove removes a Service, with its endpoints.
	Remove
	kinds = iota
)

var kindNames = [kinds]string{"replace", "scale", "add", "remove"}

// String returns the name that ParseMix reads.
func (k Kind) String() string { return kindNames[k] }

// Mix is how often each kind of change occurs, relative to the others.
type Mix [kinds]int

// DefaultMix is mostly endpoints, as roll-outs make them.
func DefaultMix() Mix { return Mix{Replace: 70, Scale: 20, Add: 5, Remove: 5} }

// ParseMix reads a mix as String writes it. What it does not name does not
// occur.
func ParseMix(s string) (Mix, error) {
	var m Mix
	total := 0
	for part := range strings.SplitSeq(s, ",") {
		name, share, _ := strings.Cut(strings.TrimSpace(part), "=")
		kind := slices.Index(kindNames[:], name)
		n, err := strconv.Atoi(share)
		if kind < 0 || err != nil || n < 0 {
			return m, fmt.Errorf("mix %q: %q is none of %s with a number, as in %s", s, part, strings.Join(kindNames[:], ", "), DefaultMix())
		}
		m[kind] = n
		total += n
	}
	if total == 0 {
		return m, fmt.Errorf("mix %q has nothing in it", s)
	}
	return m, nil
}

// String returns the mix as in replace=70,scale=20,add=5,remove=5.
func (m Mix) String() string {
	var parts []string
	for k, n := range m {
		parts = append(parts, fmt.Sprintf("%s=%d", Kind(k), n))
	}
	return strings.Join(parts, ",")
}

func (m Mix) pick(r *rand.Rand) Kind {
	total := 0
	for _, n := range m {
		total += n
	}
	at := r.IntN(total)
	for k, n := range m {
		if at -= n; at < 0 {
			return Kind(k)
		}
	}
	panic("unreachable: at is below the total")
}

// Change is one step: a Service as it was and as it is then.
type Change struct {
	Kind Kind
	// Before is nil for a Service that is added, After for one that is removed.
	Before, After *Service
}

// Number is that of the Service.
func (c Change) Number() int {
	if c.After != nil {
		return c.After.Number
	}
	return c.Before.Number
}

// String is one line: "scale svc-000007: 10 -> 13 endpoints".
func (c Change) String() string {
	count := func(s *Service) string {
		if s == nil {
			return "none"
		}
		return strconv.Itoa(len(s.Endpoints))
	}
	return fmt.Sprintf("%s %s: %s -> %s endpoints", c.Kind, serviceName(c.Number()), count(c.Before), count(c.After))
}

// Churn makes changes one after the other. Equal plans, mixes and seeds make
// equal changes.
type Churn struct {
	plan Plan
	mix  Mix
	rand *rand.Rand
	// alive are the numbers of the Services that there are.
	alive []int
	// changed are those that are not as planned; nil is one that was removed.
	changed map[int]*Service
	// nextService and nextEndpoint have not been used yet.
	nextService, nextEndpoint int
}

// NewChurn returns the changes of a plan. Services that it adds have the numbers
// from plan.Services on.
func NewChurn(p Plan, mix Mix, seed uint64) *Churn {
	c := &Churn{
		plan: p, mix: mix, rand: rand.New(rand.NewPCG(seed, 0)),
		alive: make([]int, p.Services), changed: map[int]*Service{},
		nextService: p.Services, nextEndpoint: p.Services * p.Endpoints,
	}
	for i := range c.alive {
		c.alive[i] = i
	}
	return c
}

// Take is the next n changes.
func (c *Churn) Take(n int) []Change {
	out := make([]Change, n)
	for i := range out {
		out[i] = c.Next()
	}
	return out
}

// Next is the next change. A Service that has no endpoints to replace is
// scaled, and where no Service is left, or no cluster IP, one is added or
// removed instead.
func (c *Churn) Next() Change {
	kind := c.mix.pick(c.rand)
	if len(c.alive) == 0 {
		kind = Add
	} else if kind == Add && FirstVIP+c.nextService >= size(c.plan.ServiceCIDR)-1 {
		kind = Remove
	}
	if kind == Add {
		return c.add()
	}
	at := c.rand.IntN(len(c.alive))
	before := c.service(c.alive[at])
	if kind == Remove {
		c.alive[at] = c.alive[len(c.alive)-1]
		c.alive = c.alive[:len(c.alive)-1]
		c.changed[before.Number] = nil
		return Change{Kind: Remove, Before: &before}
	}
	after := Service{Number: before.Number}
	if kind == Replace && len(before.Endpoints) > 0 {
		after.Endpoints = slices.Clone(before.Endpoints)
		after.Endpoints[c.rand.IntN(len(after.Endpoints))] = c.endpoint()
	} else {
		kind = Scale
		after.Endpoints = c.scale(before.Endpoints)
	}
	c.changed[after.Number] = &after
	return Change{Kind: kind, Before: &before, After: &after}
}

func (c *Churn) add() Change {
	s := Service{Number: c.nextService}
	c.nextService++
	for range c.plan.Endpoints {
		s.Endpoints = append(s.Endpoints, c.endpoint())
	}
	c.alive = append(c.alive, s.Number)
	c.changed[s.Number] = &s
	return Change{Kind: Add, After: &s}
}

// scale returns another number of endpoints: the first ones, or all and new
// ones.
func (c *Churn) scale(old []int) []int {
	most := max(2*c.plan.Endpoints, 2)
	n := 1 + c.rand.IntN(most-1) // of 1 to most without the present number
	if n >= len(old) {
		n++
	}
	out := slices.Clone(old[:min(n, len(old))])
	for len(out) < n {
		out = append(out, c.endpoint())
	}
	return out
}

func (c *Churn) endpoint() int {
	c.nextEndpoint++
	return c.nextEndpoint - 1
}

// service is what a Service is like now.
func (c *Churn) service(number int) Service {
	if s := c.changed[number]; s != nil {
		return *s
	}
	return c.plan.Service(number)
}

// Undo are the changes that lead back to the plan. Next then goes on as if
// there had never been a change, but with other random numbers, and with
// Services and endpoints that are new.
func (c *Churn) Undo() []Change {
	var out []Change
	for number, now := range c.changed {
		planned := c.plan.Service(number)
		switch {
		case number >= c.plan.Services && now != nil:
			out = append(out, Change{Kind: Remove, Before: now})
		case number >= c.plan.Services:
		case now == nil:
			out = append(out, Change{Kind: Add, After: &planned})
		case !slices.Equal(now.Endpoints, planned.Endpoints):
			out = append(out, Change{Kind: Scale, Before: now, After: &planned})
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return a.Number() - b.Number() })
	clear(c.changed)
	c.alive = c.alive[:0]
	for i := range c.plan.Services {
		c.alive = append(c.alive, i)
	}
	return out
}
