// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/fake"
)

func faults() map[string]fake.Fault {
	return map[string]fake.Fault{
		"before": fake.FailBefore, "between tables": fake.FailBetween, "after": fake.FailAfter, "busy": fake.Busy,
	}
}

// TestOneFault: a restore fails once, for no fault of the input. Apply brings
// about what is wanted, or says that it has not and does so the next time; it
// blames no unit.
func TestOneFault(t *testing.T) {
	steps := map[string][2]services{
		"first sync":     {services{}, someServices()},
		"one changes":    {someServices(), someServices().with("WEB", service{"10.96.0.10", []string{"10.244.0.7"}})},
		"one comes":      {someServices(), someServices().with("NEW", service{"10.96.0.13", []string{"10.244.0.7"}})},
		"one goes":       {someServices(), someServices().without("DNS")},
		"one goes quiet": {someServices(), someServices().with("DNS", service{"10.96.0.11", nil})},
	}
	for name, fault := range faults() {
		for step, s := range steps {
			t.Run(name+", "+step, func(t *testing.T) {
				h := newHost(t)
				h.variant = ruleset.Legacy
				h.restart()
				h.want(s[0])
				h.prune()
				h.want(s[1])
				failing := true
				h.kernel.Fault = func() fake.Fault {
					defer func() { failing = false }()
					if failing {
						return fault
					}
					return fake.NoFault
				}
				res, err := h.engine.Apply(context.Background(), ruleset.Options{Prune: true})
				if res.Failures == 0 {
					t.Errorf("Apply().Failures = 0, want the failed restore counted")
				}
				if fault == fake.Busy && err == nil {
					t.Errorf("Apply() = nil without the lock, want an error")
				}
				if err == nil {
					h.checkOurs(s[1])
				}
				if res := h.prune(); len(res.Refused) > 0 {
					t.Errorf("Refused = %v, want none", res.Refused)
				}
				h.checkOurs(s[1])
				h.checkQuiet()
			})
		}
	}
}

// TestLastingFault: every restore fails, whatever it says. That is an error,
// not a refusal of each unit, and all is well soon after it has passed.
func TestLastingFault(t *testing.T) {
	for name, fault := range faults() {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d services", name, n), func(t *testing.T) {
				h := newHost(t)
				h.want(someServices())
				h.prune()
				later := someServices()
				for i := range n {
					later = later.with(fmt.Sprintf("NEW%d", i), service{fmt.Sprintf("10.96.0.%d", 20+i), []string{"10.244.0.7"}})
				}
				h.want(later)
				h.kernel.Fault = func() fake.Fault { return fault }
				for range 2 {
					res, err := h.engine.Apply(context.Background(), ruleset.Options{Prune: true})
					var ce *ruleset.CommandError
					nothing := fault == fake.FailBefore || fault == fake.Busy
					if nothing && !errors.As(err, &ce) {
						t.Errorf("Apply() = %v, want the command's error", err)
					}
					if len(res.Refused) > 0 {
						t.Errorf("Apply().Refused = %v, want none: no unit is at fault", res.Refused)
					}
				}
				h.kernel.Fault = nil
				h.prune()
				h.checkOurs(later)
				h.checkQuiet()
			})
		}
	}
}

// TestSaveFails: nothing is written while it is not known what is there.
func TestSaveFails(t *testing.T) {
	h := newHost(t)
	h.want(someServices())
	h.prune()
	h.exec = failingSave{h.kernel}
	h.restart()
	h.want(services{})
	got := h.restores(func() {
		if _, err := h.engine.Apply(context.Background(), ruleset.Options{Prune: true}); err == nil {
			t.Errorf("Apply() = nil, want the save command's error")
		}
		if _, err := h.engine.Clean(context.Background()); err == nil {
			t.Errorf("Clean() = nil, want the save command's error")
		}
	})
	if len(got) > 0 {
		t.Errorf("%d restores, want none", len(got))
	}
}

type failingSave struct{ *fake.Kernel }

func (f failingSave) Run(ctx context.Context, c ruleset.Command) error {
	if c.Name == "iptables-save" {
		_ = f.Kernel.Run(ctx, c)
		return &ruleset.CommandError{Name: c.Name, ExitCode: 1, Stderr: "cut off"}
	}
	return f.Kernel.Run(ctx, c)
}
