// SPDX-License-Identifier: Apache-2.0

package sourcetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"fairlead/proxier/model"
)

// patience bounds the wait for something that will not come. Nothing waits
// that long unless a test fails.
const patience = 20 * time.Second

// State is what the steps of a source amount to.
type State struct {
	Services       map[model.ObjectKey]*model.Service
	EndpointSlices map[model.ObjectKey]*model.EndpointSlice
	ServiceCIDRs   map[model.ObjectKey]*model.ServiceCIDR
	Pods           map[model.ObjectKey]*model.Pod
	// Node is what the last step with a NodeChange told, nil before.
	Node   *model.NodeChange
	Status model.SourceStatus
	// Steps is the number of steps.
	Steps int
}

// Recorder is a sink that applies the steps of a source one after the other,
// checks every one, and lets a test wait for a state.
type Recorder struct {
	t testing.TB

	mu      sync.Mutex
	state   State
	steps   []model.Changes
	changed chan struct{} // closed and replaced at every step
}

// NewRecorder returns a Recorder for one test.
func NewRecorder(t testing.TB) *Recorder {
	return &Recorder{
		t: t,
		state: State{
			Services:       map[model.ObjectKey]*model.Service{},
			EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{},
			ServiceCIDRs:   map[model.ObjectKey]*model.ServiceCIDR{},
			Pods:           map[model.ObjectKey]*model.Pod{},
		},
		changed: make(chan struct{}),
	}
}

// Update takes a step. A step that breaks an invariant fails the test.
func (r *Recorder) Update(c model.Changes) {
	if err := CheckChanges(c); err != nil {
		r.t.Errorf("the source delivered an invalid value: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, c)
	r.state.Steps++
	apply(r.state.Services, c.Services)
	apply(r.state.EndpointSlices, c.EndpointSlices)
	apply(r.state.ServiceCIDRs, c.ServiceCIDRs)
	apply(r.state.Pods, c.Pods)
	if c.Node != nil {
		r.state.Node = c.Node
	}
	if c.Status != nil {
		r.state.Status = *c.Status
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Steps returns the steps so far.
func (r *Recorder) Steps() []model.Changes {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]model.Changes(nil), r.steps...)
}

// WaitFor returns once the condition holds, and fails the test where it does
// not within a generous time. The condition must not keep the state.
func (r *Recorder) WaitFor(what string, condition func(*State) bool) {
	r.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		ok, changed, now := condition(&r.state), r.changed, r.state.String()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			r.t.Fatalf("waited in vain for %s; the state is %s", what, now)
		}
	}
}

// String returns what the state holds, in short.
func (s *State) String() string {
	out := fmt.Sprintf("status %+v, %d steps, services", s.Status, s.Steps)
	for key, svc := range s.Services {
		out += fmt.Sprintf(" %v=%v", key, svc.ClusterIPs)
	}
	out += ", slices"
	for key, slice := range s.EndpointSlices {
		out += fmt.Sprintf(" %v=%d", key, len(slice.Endpoints))
	}
	out += ", service CIDRs"
	for key, cidr := range s.ServiceCIDRs {
		out += fmt.Sprintf(" %v=%v", key.Name, cidr.CIDRs)
	}
	out += ", pods"
	for key, pod := range s.Pods {
		out += fmt.Sprintf(" %v=%v", key, pod.IPs)
	}
	return out
}

func apply[T any](state, changes map[model.ObjectKey]*T) {
	for key, object := range changes {
		if object == nil {
			delete(state, key)
		} else {
			state[key] = object
		}
	}
}
