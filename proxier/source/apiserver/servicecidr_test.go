// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	kubetesting "k8s.io/client-go/testing"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

var defaultCIDR = model.ObjectKey{Name: "kubernetes"}

func serviceCIDRObject(version string, cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: defaultCIDR.Name, ResourceVersion: version},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: cidrs},
	}
}

// cidrsStep is a step after which the ServiceCIDR has these ranges, or is gone.
func cidrsStep(cidrs ...string) []model.Changes {
	var c *model.ServiceCIDR
	if len(cidrs) > 0 {
		c = &model.ServiceCIDR{Key: defaultCIDR}
	}
	for _, cidr := range cidrs {
		c.CIDRs = append(c.CIDRs, netip.MustParsePrefix(cidr))
	}
	return []model.Changes{{ServiceCIDRs: map[model.ObjectKey]*model.ServiceCIDR{defaultCIDR: c}}}
}

var comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestServiceCIDRs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startSource(t, newFake(ownNodeObject("1"), serviceCIDRObject("1", "10.96.0.0/16")), nil)
		steps := r.Steps()
		last := len(steps) - 1
		for i, step := range steps {
			if (step.Status != nil) != (i == last) {
				t.Errorf("step %d of %d has the status %v", i, len(steps), step.Status)
			}
		}
		ctx, cidrs := t.Context(), r.client.NetworkingV1().ServiceCIDRs()
		put := func(o *networkingv1.ServiceCIDR) { must[any](t)(cidrs.Update(ctx, o, metav1.UpdateOptions{})) }
		for _, step := range []struct {
			name string
			do   func()
			want []model.Changes
		}{
			{"another range", func() { put(serviceCIDRObject("2", "10.96.0.0/16", "fd00::/112")) }, cidrsStep("10.96.0.0/16", "fd00::/112")},
			{"a status", func() { put(serviceCIDRObject("3", "10.96.0.0/16", "fd00::/112")) }, nil},
			{"gone", func() { must[any](t)(nil, cidrs.Delete(ctx, defaultCIDR.Name, metav1.DeleteOptions{})) }, cidrsStep()},
			{"back", func() {
				must[any](t)(cidrs.Create(ctx, serviceCIDRObject("4", "10.97.0.0/16"), metav1.CreateOptions{}))
			}, cidrsStep("10.97.0.0/16")},
		} {
			before := len(r.Steps())
			step.do()
			if diff := cmp.Diff(step.want, r.since(before), comparePrefix, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: steps (-want +got):\n%s", step.name, diff)
			}
		}
	})
}

// An API server that does not have the resource, or does not show it, holds up
// nothing, and the log has one line about it. Once it can be read it is.
func TestServiceCIDRsCannotBeRead(t *testing.T) {
	resource := schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}
	for _, tt := range []struct {
		name string
		err  error
		// listed is when the status comes.
		listed time.Duration
		line   string
	}{
		{"not served", apierrors.NewNotFound(resource, ""), 0, "Cannot read ServiceCIDRs"},
		{"forbidden", apierrors.NewForbidden(resource, "", errors.New("no")), 0, "Cannot read ServiceCIDRs"},
		{"out of order", errors.New("not today"), restPatience, "Cannot read from the API server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mended atomic.Bool
				client := newFake(web(), webSlice("1", "10.244.1.5"), ownNodeObject("1"), serviceCIDRObject("1", "10.96.0.0/16"))
				client.PrependReactor("list", resource.Resource, func(kubetesting.Action) (bool, runtime.Object, error) {
					return !mended.Load(), nil, tt.err
				})
				client.PrependWatchReactor(resource.Resource, func(kubetesting.Action) (bool, watch.Interface, error) {
					return !mended.Load(), nil, tt.err
				})
				begin := time.Now()
				r := startSource(t, client, nil)
				r.WaitFor("the status", func(s *sourcetest.State) bool { return s.Status.Listed })
				if took := time.Since(begin); took != tt.listed {
					t.Errorf("listed after %v, want %v", took, tt.listed)
				}
				time.Sleep(50 * time.Second) // within the minute of the link's reminder
				synctest.Wait()
				if got := r.logs.Matching("Cannot read"); len(got) != 1 || !strings.Contains(got[0], tt.line) {
					t.Errorf("the log has %q, want one line with %q", got, tt.line)
				}
				before := len(r.Steps())
				mended.Store(true)
				time.Sleep(2 * time.Minute) // client-go waits up to one between attempts
				synctest.Wait()
				if diff := cmp.Diff(cidrsStep("10.96.0.0/16"), r.since(before), comparePrefix, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("steps once they can be read (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// Where the permission is taken away, what was known stays, and the link is not
// in trouble.
func TestServiceCIDRsForbiddenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake(serviceCIDRObject("1", "10.96.0.0/16"))
		var forbidden atomic.Bool
		err := apierrors.NewForbidden(schema.GroupResource{Resource: "servicecidrs"}, "", errors.New("no"))
		first := watch.NewFake()
		client.PrependReactor("list", "servicecidrs", func(kubetesting.Action) (bool, runtime.Object, error) { return forbidden.Load(), nil, err })
		client.PrependWatchReactor("servicecidrs", func(kubetesting.Action) (bool, watch.Interface, error) { return forbidden.Load(), nil, err })
		client.PrependWatchReactor("servicecidrs", once(func(kubetesting.Action) (bool, watch.Interface, error) { return true, first, nil }))
		r := startSource(t, client, nil)
		before := len(r.Steps())
		forbidden.Store(true)
		first.Stop()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := r.since(before); len(got) > 0 {
			t.Errorf("steps: %+v", got)
		}
		forbidden.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		for _, line := range []string{"Cannot read ServiceCIDRs", `shows the resource now resource="servicecidrs"`} {
			if got := r.logs.Matching(line); len(got) != 1 {
				t.Errorf("the log has %d lines with %q, want 1: %q", len(got), line, r.logs.Lines())
			}
		}
		if got := r.logs.Matching("from the API server"); len(got) > 0 {
			t.Errorf("the log has %q", got)
		}
	})
}
