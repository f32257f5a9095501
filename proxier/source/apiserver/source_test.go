// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	kubetesting "k8s.io/client-go/testing"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

func TestStatusComesAfterTheLastObjectOfTheFirstList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startSource(t, newFake(web(), webSlice("1", "10.244.1.5"), ownNodeObject("1")), nil)
		services, slices := 0, 0
		for _, step := range r.Steps() {
			services += len(step.Services)
			slices += len(step.EndpointSlices)
			if step.Status == nil {
				continue
			}
			if want := (model.SourceStatus{Listed: true, Complete: true}); *step.Status != want {
				t.Errorf("status %+v, want %+v", *step.Status, want)
			}
			if services != 1 || slices != 1 {
				t.Errorf("status came after %d Services and %d EndpointSlices", services, slices)
			}
		}
		r.WaitFor("all that is there", func(s *sourcetest.State) bool {
			return s.Status.Listed && s.Services[webKey] != nil && s.EndpointSlices[sliceKey] != nil &&
				s.Node != nil && s.Node.Node != nil && s.Steps == 4
		})
	})
}

func TestStatusWaitsForBothKinds(t *testing.T) {
	for _, missing := range []string{"services", "endpointslices"} {
		t.Run(missing, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := newFake(web(), webSlice("1", "10.244.1.5"))
				client.PrependReactor("list", missing, func(kubetesting.Action) (bool, runtime.Object, error) {
					return true, nil, errors.New("not today")
				})
				r := startSource(t, client, nil)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				for _, step := range r.Steps() {
					if step.Status != nil {
						t.Fatalf("status %+v without %s", *step.Status, missing)
					}
				}
			})
		})
	}
}

func TestUpdatesAndDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startSource(t, newFake(web(), webSlice("1", "10.244.1.5")), nil)
		ctx, services, slices := t.Context(), r.client.CoreV1().Services("shop"), r.client.DiscoveryV1().EndpointSlices("shop")
		for _, step := range []struct {
			name string
			do   func()
			want model.Changes
		}{
			{
				name: "an endpoint is added",
				do: func() {
					must[*discoveryv1.EndpointSlice](t)(slices.Update(ctx, webSlice("2", "10.244.1.5", "10.244.1.6"), metav1.UpdateOptions{}))
				},
				want: model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{sliceKey: translate(t, webSlice("2", "10.244.1.5", "10.244.1.6"))}},
			},
			{
				name: "the status of the Service changes, which means nothing here",
				do: func() {
					must[*corev1.Service](t)(services.Update(ctx, web(version("2"), func(s *corev1.Service) {
						s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "x"}}
					}), metav1.UpdateOptions{}))
				},
			},
			{
				name: "the Service becomes ExternalName in place",
				do: func() {
					must[*corev1.Service](t)(services.Update(ctx, web(version("3"), func(s *corev1.Service) {
						s.Spec.Type = corev1.ServiceTypeExternalName
					}), metav1.UpdateOptions{}))
				},
				want: model.Changes{Services: map[model.ObjectKey]*model.Service{webKey: nil}},
			},
			{
				name: "its addresses are refused, so nothing changes",
				do: func() {
					must[*corev1.Service](t)(services.Update(ctx, web(version("4"), func(s *corev1.Service) {
						s.Spec.ClusterIP, s.Spec.ClusterIPs = "127.0.0.1", nil
					}), metav1.UpdateOptions{}))
				},
			},
			{
				name: "it is as it was",
				do: func() {
					must[*corev1.Service](t)(services.Update(ctx, web(version("5")), metav1.UpdateOptions{}))
				},
				want: model.Changes{Services: map[model.ObjectKey]*model.Service{webKey: translateService(t, web())}},
			},
			{
				name: "it gets the label for another proxy",
				do: func() {
					must[*corev1.Service](t)(services.Update(ctx, web(version("6"), func(s *corev1.Service) {
						s.Labels = map[string]string{source.LabelServiceProxyName: "other"}
					}), metav1.UpdateOptions{}))
				},
				want: model.Changes{Services: map[model.ObjectKey]*model.Service{webKey: nil}},
			},
			{
				name: "it loses the label",
				do: func() {
					must[*corev1.Service](t)(services.Update(ctx, web(version("7")), metav1.UpdateOptions{}))
				},
				want: model.Changes{Services: map[model.ObjectKey]*model.Service{webKey: translateService(t, web())}},
			},
			{
				name: "it is deleted",
				do:   func() { must[any](t)(nil, services.Delete(ctx, "web", metav1.DeleteOptions{})) },
				want: model.Changes{Services: map[model.ObjectKey]*model.Service{webKey: nil}},
			},
			{
				name: "the slice is deleted",
				do:   func() { must[any](t)(nil, slices.Delete(ctx, "web-1", metav1.DeleteOptions{})) },
				want: model.Changes{EndpointSlices: map[model.ObjectKey]*model.EndpointSlice{sliceKey: nil}},
			},
		} {
			before := len(r.Steps())
			step.do()
			var want []model.Changes
			if step.want.Services != nil || step.want.EndpointSlices != nil {
				want = append(want, step.want)
			}
			if diff := cmp.Diff(want, r.since(before), compareAddr, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: steps (-want +got):\n%s", step.name, diff)
			}
		}
	})
}

func TestNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startSource(t, newFake(), nil)
		nodes := r.client.CoreV1().Nodes()
		told := func(what string, want *model.NodeChange) {
			t.Helper()
			r.WaitFor(what, func(s *sourcetest.State) bool {
				return cmp.Equal(want, s.Node)
			})
		}
		told("no Node", &model.NodeChange{})
		must[*corev1.Node](t)(nodes.Create(t.Context(), ownNodeObject("1"), metav1.CreateOptions{}))
		told("a Node", &model.NodeChange{Node: &model.Node{Name: nodeName}})
		must[*corev1.Node](t)(nodes.Update(t.Context(), ownNodeObject("2", corev1.Taint{Key: source.TaintToBeDeleted}), metav1.UpdateOptions{}))
		told("its taint", &model.NodeChange{Node: &model.Node{Name: nodeName, ToBeDeleted: true}})

		// Nodes report their status all the time; that is no step.
		before := len(r.Steps())
		busy := ownNodeObject("3", corev1.Taint{Key: source.TaintToBeDeleted})
		busy.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
		must[*corev1.Node](t)(nodes.Update(t.Context(), busy, metav1.UpdateOptions{}))
		if got := r.since(before); len(got) > 0 {
			t.Errorf("a change of the node's status is a step: %+v", got)
		}
		must[any](t)(nil, nodes.Delete(t.Context(), nodeName, metav1.DeleteOptions{}))
		told("no Node any more", &model.NodeChange{})
	})
}

// TestStatusWaitsForTheNode, which rules depend on, but not for long.
func TestStatusWaitsForTheNode(t *testing.T) {
	for _, tt := range []struct {
		name string
		// refused is for how long the Node cannot be read.
		refused time.Duration
		known   bool
	}{
		{"late", restPatience / 10, true},
		{"never", 10 * time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				client := newFake(web(), webSlice("1", "10.244.1.5"), ownNodeObject("1"))
				refuse := func(kubetesting.Action) (bool, runtime.Object, error) {
					return time.Since(began) < tt.refused, nil, errors.New("not today")
				}
				client.PrependReactor("list", "nodes", refuse)
				client.PrependWatchReactor("nodes", func(a kubetesting.Action) (bool, watch.Interface, error) {
					handled, _, err := refuse(a)
					return handled, nil, err
				})
				r := startSource(t, client, nil)
				r.WaitFor("the status", func(s *sourcetest.State) bool {
					if s.Status.Listed && (s.Node != nil) != tt.known {
						t.Errorf("listed with the Node %v, want it known: %t", s.Node, tt.known)
					}
					return s.Status.Listed
				})
				if took := time.Since(began); took < min(tt.refused, restPatience) || took > restPatience {
					t.Errorf("listed after %s, want it within %s", took, restPatience)
				}
				if !tt.known {
					r.logs.WaitFor("Cannot read the Node", "going on without")
				}
			})
		})
	}
}

func TestSelectors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startSource(t, newFake(), nil)
		type selectors struct{ Labels, Fields string }
		want := map[string]selectors{
			"services":       {Labels: "!service.kubernetes.io/service-proxy-name", Fields: "spec.clusterIP!=None"},
			"endpointslices": {Labels: "!service.kubernetes.io/headless"},
			"servicecidrs":   {},
			"nodes":          {Fields: "metadata.name=" + nodeName},
		}
		seen := map[string]int{}
		for _, action := range r.client.Actions() {
			var restrictions kubetesting.ListRestrictions
			switch action := action.(type) {
			case kubetesting.ListAction:
				restrictions = action.GetListRestrictions()
			case kubetesting.WatchAction:
				w := action.GetWatchRestrictions()
				restrictions = kubetesting.ListRestrictions{Labels: w.Labels, Fields: w.Fields}
			default:
				t.Fatalf("unexpected request %v", action)
			}
			resource := action.GetResource().Resource
			seen[resource+" "+action.GetVerb()]++
			got := selectors{restrictions.Labels.String(), restrictions.Fields.String()}
			if got != want[resource] {
				t.Errorf("%s %s with %+v, want %+v", action.GetVerb(), resource, got, want[resource])
			}
		}
		for resource := range want {
			if seen[resource+" list"] != 1 || seen[resource+" watch"] != 1 {
				t.Errorf("requests %v, want one list and one watch of %s", seen, resource)
			}
		}
	})
}

// A watch that breaks is followed by a list. What vanished in between comes as
// a deletion, what stayed the same not at all.
func TestWhatVanishedWhileNotWatchingIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake(web())
		broken := watch.NewFake()
		client.PrependWatchReactor("services", once(func(kubetesting.Action) (bool, watch.Interface, error) {
			return true, broken, nil
		}))
		other := web(func(s *corev1.Service) { s.Name = "other" })
		if err := client.Tracker().Add(other); err != nil {
			t.Fatal(err)
		}
		r := startSource(t, client, nil)
		r.WaitFor("both Services", func(s *sourcetest.State) bool { return len(s.Services) == 2 })
		before := len(r.Steps())
		must[any](t)(nil, client.CoreV1().Services("shop").Delete(t.Context(), "web", metav1.DeleteOptions{}))
		if got := r.since(before); len(got) > 0 {
			t.Fatalf("the deletion was seen: %+v", got)
		}
		broken.Error(&metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: 410})
		r.WaitFor("the deletion", func(s *sourcetest.State) bool { return len(s.Services) == 1 })
		synctest.Wait()
		want := []model.Changes{{Services: map[model.ObjectKey]*model.Service{webKey: nil}}}
		if diff := cmp.Diff(want, r.since(before), compareAddr, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("steps after the list (-want +got):\n%s", diff)
		}
		if got := r.logs.Lines(); len(got) != 1 { // Listed Services and EndpointSlices
			t.Errorf("an expired watch is worth a log line: %q", got)
		}
	})
}

func TestRefusalsAreToldOncePerVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewPedanticRegistry()
		r := startSource(t, newFake(webSlice("1", "127.0.0.1", "10.244.1.5")), source.NewMetrics(reg))
		time.Sleep(time.Hour)
		synctest.Wait()
		refused := r.logs.Matching("Refused")
		want := []string{`Refused a part of an object, the rest of it is used refusal=` +
			strconv.Quote(`EndpointSlice "shop/web-1": endpoints[0].addresses[0] "127.0.0.1": is a loopback address`)}
		if diff := cmp.Diff(want, refused); diff != "" {
			t.Errorf("log lines (-want +got):\n%s", diff)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP fairlead_objects_refused_total Versions of objects that were refused, as a whole or in part, because they hold values that cannot be programmed safely.
# TYPE fairlead_objects_refused_total counter
fairlead_objects_refused_total{kind="EndpointSlice"} 1
fairlead_objects_refused_total{kind="Node"} 0
fairlead_objects_refused_total{kind="Pod"} 0
fairlead_objects_refused_total{kind="Service"} 0
fairlead_objects_refused_total{kind="ServiceCIDR"} 0
`)); err != nil {
			t.Error(err)
		}
	})
}

func TestPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := web(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.96.0.99", "192.0.2.1"} })
		r := start(t, newFake(svc), Config{Policy: source.Policy{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}})
		r.WaitFor("the address that is left", func(s *sourcetest.State) bool {
			return s.Services[webKey] != nil && slices.Equal(s.Services[webKey].ExternalIPs, []netip.Addr{netip.MustParseAddr("192.0.2.1")})
		})
		r.logs.WaitFor("Refused", "10.96.0.99", "is inside a service CIDR")
	})
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config Config
		want   string
	}{
		{"client", Config{NodeName: "n"}, "make API server source: no client"},
		{"node name", Config{Client: clientOf(newFake())}, "make API server source: no node name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.config); err == nil || err.Error() != tt.want {
				t.Errorf("New = %v, want %s", err, tt.want)
			}
		})
	}
}
