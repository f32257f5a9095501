// SPDX-License-Identifier: Apache-2.0

// Package health answers over HTTP whether the node's rules keep up with what
// the sources say, and serves the agent's metrics. Its addresses, paths, status
// codes and bodies are those of kube-proxy, so that the health checks of cloud
// load balancers, probes and scripts work unchanged.
package health

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead/proxier/model"
)

// DefaultTimeout is how old a queued update may become before the agent counts
// as unhealthy: twice kube-proxy's default sync period.
const DefaultTimeout = 60 * time.Second

// Config is what a State is made of.
type Config struct {
	// Timeout is how old a queued update may become before its family counts as
	// unhealthy; DefaultTimeout if zero.
	Timeout time.Duration
	// Families are those that must have been synced before the agent is ready.
	Families []model.Family
	// Stale returns what cannot be read of the source, and since when; nil if there is
	// nothing to tell. It changes no status: the rules are as good as they can be, and
	// neither a restart nor another node would know more.
	Stale func() map[string]time.Time
	// Registerer receives the counters of answered probes. If it is nil they are
	// counted all the same, and nobody can read them.
	Registerer prometheus.Registerer
}

// State is what is known of the agent's health. Its methods may be called at
// any time from any goroutine.
type State struct {
	timeout  time.Duration
	counters counters
	stale    func() map[string]time.Time

	mu           sync.Mutex
	nodeEligible bool
	families     map[model.Family]*familyState
	// awaited are the families that have not been synced yet, and ready is closed once
	// there are none.
	awaited []model.Family
	ready   chan struct{}
}

type familyState struct {
	// lastUpdated is when Synced was last called, zero if never.
	lastUpdated time.Time
	backlog     backlog
}

// New returns the State of an agent that has just started: nothing is queued
// and the node is eligible until SetNodeEligible says otherwise, so it is
// healthy.
func New(cfg Config) (*State, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("check health timeout %v: negative", cfg.Timeout)
	}
	if cfg.Stale == nil {
		cfg.Stale = func() map[string]time.Time { return nil }
	}
	c := newCounters()
	if cfg.Registerer != nil {
		if err := errors.Join(c.register(cfg.Registerer), cfg.Registerer.Register(newStaleSince(cfg.Stale))); err != nil {
			return nil, err
		}
	}
	s := &State{
		timeout:      cfg.Timeout,
		counters:     c,
		stale:        cfg.Stale,
		nodeEligible: true,
		families:     map[model.Family]*familyState{},
		awaited:      slices.Clone(cfg.Families),
		ready:        make(chan struct{}),
	}
	if len(s.awaited) == 0 {
		close(s.ready)
	}
	return s, nil
}

// Queued says that at t something changed which family f's rules have yet to
// follow.
func (s *State) Queued(f model.Family, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.familyLocked(f).backlog.add(t)
}

// Synced says that everything queued for family f up to and including t is now
// in the kernel. The caller reads t before it takes the state that it writes;
// what was queued later stays queued.
func (s *State) Synced(f model.Family, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fs := s.familyLocked(f)
	fs.lastUpdated = time.Now()
	fs.backlog.done(t)
	if i := slices.Index(s.awaited, f); i >= 0 {
		if s.awaited = slices.Delete(s.awaited, i, i+1); len(s.awaited) == 0 {
			close(s.ready)
		}
	}
}

// Ready returns a channel that is closed once every family has been synced.
func (s *State) Ready() <-chan struct{} { return s.ready }

// notReady returns the families that have not been synced yet.
func (s *State) notReady() []model.Family {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.awaited)
}

// SetNodeEligible says whether load balancers may send new connections to this
// node. It fails /healthz and leaves /livez alone, so that a node about to be
// removed drains and its agent is not restarted for it.
func (s *State) SetNodeEligible(eligible bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodeEligible = eligible
}

// Healthy tells whether every family's rules keep up, whether the node is
// eligible or not.
func (s *State) Healthy() bool {
	r, _ := s.report(time.Now())
	return r.Healthy
}

// familyLocked returns the state of f, a new one if f was not heard of yet; mu
// must be held.
func (s *State) familyLocked(f model.Family) *familyState {
	fs, ok := s.families[f]
	if !ok {
		fs = &familyState{backlog: backlog{step: s.timeout / 64}}
		s.families[f] = fs
	}
	return fs
}

// report describes the health at now, without the node's eligibility.
func (s *State) report(now time.Time) (r report, nodeEligible bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r = report{CurrentTime: now, Healthy: true, Status: map[string]familyReport{}, Stale: s.stale()}
	for f, fs := range s.families {
		oldest, queued := fs.backlog.oldest()
		healthy := !queued || now.Sub(oldest) < s.timeout
		r.Status[f.String()] = familyReport{LastUpdated: fs.lastUpdated, Healthy: healthy}
		r.Healthy = r.Healthy && healthy
		if fs.lastUpdated.After(r.LastUpdated) {
			r.LastUpdated = fs.lastUpdated
		}
	}
	return r, s.nodeEligible
}

// counters count the answered probes by status code.
type counters struct{ healthz, livez *prometheus.CounterVec }

func newCounters() counters {
	vec := func(probe string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubeproxy_proxy_" + probe + "_total",
			Help: "Answers to /" + probe + " by HTTP status code.",
		}, []string{"code"})
		for _, code := range []string{"200", "503"} {
			v.WithLabelValues(code)
		}
		return v
	}
	return counters{healthz: vec("healthz"), livez: vec("livez")}
}

func (c counters) register(reg prometheus.Registerer) error {
	if err := errors.Join(reg.Register(c.healthz), reg.Register(c.livez)); err != nil {
		return fmt.Errorf("register probe counters: %w", err)
	}
	return nil
}
