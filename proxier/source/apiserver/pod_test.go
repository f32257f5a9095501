// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

var podKey = model.ObjectKey{Namespace: "shop", Name: "web-0"}

func podObject(version, uid, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: podKey.Namespace, Name: podKey.Name, ResourceVersion: version, UID: types.UID(uid)},
		Spec: corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP},
		}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

// podStep is a step after which the Pod is this one, or means nothing.
func podStep(uid, ip string) []model.Changes {
	var p *model.Pod
	if uid != "" {
		p = &model.Pod{Key: podKey, UID: uid, IPs: []netip.Addr{netip.MustParseAddr(ip)}, HostPorts: []model.HostPort{
			{Protocol: model.TCP, HostPort: 8080, ContainerPort: 80},
		}}
	}
	return []model.Changes{{Pods: map[model.ObjectKey]*model.Pod{podKey: p}}}
}

// TestPods: what becomes of a Pod is delivered as it happens, also if another takes
// its name; and only the node's own are asked for, if any.
func TestPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFake(ownNodeObject("1"), podObject("1", "a", "10.244.0.1")), Config{Pods: true})
		steps := r.Steps()
		for i, step := range steps {
			if (step.Status != nil) != (i == len(steps)-1) {
				t.Errorf("step %d of %d has the status %v", i, len(steps), step.Status)
			}
		}
		for _, action := range r.client.Actions() {
			if list, ok := action.(kubetesting.ListAction); ok && action.GetResource().Resource == "pods" {
				if got := list.GetListRestrictions().Fields.String(); got != "spec.nodeName="+nodeName {
					t.Errorf("pods are listed with %q", got)
				}
			}
		}
		ctx, pods := t.Context(), r.client.CoreV1().Pods(podKey.Namespace)
		put := func(o *corev1.Pod) { must[any](t)(pods.Update(ctx, o, metav1.UpdateOptions{})) }
		ended := podObject("5", "b", "10.244.0.2")
		ended.Status.Phase = corev1.PodFailed
		for _, step := range []struct {
			name string
			do   func()
			want []model.Changes
		}{
			{"nothing that matters", func() { put(podObject("2", "a", "10.244.0.1")) }, nil},
			{"another of its name", func() { put(podObject("3", "b", "10.244.0.1")) }, podStep("b", "10.244.0.1")},
			{"another address", func() { put(podObject("4", "b", "10.244.0.2")) }, podStep("b", "10.244.0.2")},
			{"ended", func() { put(ended) }, podStep("", "")},
			{"gone", func() { must[any](t)(nil, pods.Delete(ctx, podKey.Name, metav1.DeleteOptions{})) }, podStep("", "")},
		} {
			before := len(r.Steps())
			step.do()
			got := r.since(before)
			if len(got) == 0 {
				got = nil
			}
			if diff := cmp.Diff(step.want, got, compareAddr); diff != "" {
				t.Errorf("%s: steps (-want +got):\n%s", step.name, diff)
			}
		}
		r = start(t, newFake(podObject("1", "a", "10.244.0.1")), Config{})
		for _, action := range r.client.Actions() {
			if action.GetResource().Resource == "pods" {
				t.Errorf("not wanted, and yet: %v", action)
			}
		}
	})
}

// TestPodsCannotBeRead: Pods that are not shown hold up nothing. While it is not known
// which there are, nothing is removed.
func TestPodsCannotBeRead(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		// listed is when the status comes at the latest, and complete whether it is that
		// then. What is forbidden is asked for a second time.
		listed   time.Duration
		complete bool
	}{
		{"forbidden", forbidden("pods"), 2 * time.Second, true},
		{"out of order", errors.New("not today"), restPatience, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mended atomic.Bool
				client := newFake(web(), ownNodeObject("1"), podObject("1", "a", "10.244.0.1"))
				client.PrependReactor("list", "pods", func(kubetesting.Action) (bool, runtime.Object, error) {
					return !mended.Load(), nil, tt.err
				})
				begin := time.Now()
				r := start(t, client, Config{Pods: true})
				complete := false
				r.WaitFor("the status", func(s *sourcetest.State) bool {
					complete = s.Status.Complete
					return s.Status.Listed
				})
				if took := time.Since(begin); took > tt.listed || complete != tt.complete {
					t.Errorf("listed after %v, complete %v; want %v, %v", took, complete, tt.listed, tt.complete)
				}
				mended.Store(true)
				r.WaitFor("the Pod", func(s *sourcetest.State) bool { return s.Pods[podKey] != nil && s.Status.Complete })
			})
		})
	}
}

func forbidden(resource string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no"))
}

// TestPodsForbiddenAtFirst: an API server that has just started forbids everything for a
// moment, as it does not know roles yet. That Pods are among it says nothing.
func TestPodsForbiddenAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var knows atomic.Bool
		begin := time.Now()
		client := newFake(web(), ownNodeObject("1"), podObject("1", "a", "10.244.0.1"))
		for _, resource := range []string{"services", "endpointslices", "pods"} {
			client.PrependReactor("list", resource, func(kubetesting.Action) (bool, runtime.Object, error) {
				if !knows.Load() {
					return true, nil, forbidden(resource)
				}
				late := resource == "pods" && time.Since(begin) < time.Minute // after the others in any case
				return late, nil, errors.New("not today")
			})
		}
		r := start(t, client, Config{Pods: true})
		time.Sleep(5 * time.Second)
		knows.Store(true)
		time.Sleep(30 * time.Second) // client-go waits between attempts
		r.WaitFor("all but Pods", func(s *sourcetest.State) bool {
			if s.Status.Complete {
				t.Error("the status is complete before there are Pods")
			}
			return s.Status.Listed
		})
		time.Sleep(2 * time.Minute)
		r.WaitFor("Pods", func(s *sourcetest.State) bool { return s.Status.Complete && s.Pods[podKey] != nil })
	})
}

// TestWarnPod: what is found out of a Pod after the source is an Event on it.
func TestWarnPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake()
		log := recordEvents(client)
		s, err := New(Config{Client: clientOf(client), NodeName: nodeName})
		if err != nil {
			t.Fatal(err)
		}
		pod := &model.Pod{Key: podKey, UID: "u"}
		s.WarnPod(pod, model.Warning{Field: "f", Reason: "Odd", Message: "before Run"})
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), sourcetest.NewLog(t).Logger()))
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, sourcetest.NewRecorder(t)) }()
		synctest.Wait()
		s.WarnPod(pod, model.Warning{Field: "f", Reason: "Odd", Message: "note"})
		synctest.Wait()
		created, _ := log.take()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(created) != 1 {
			t.Fatalf("%d Events, want 1", len(created))
		}
		want := corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: podKey.Namespace, Name: podKey.Name, UID: "u", FieldPath: "f"}
		if got := created[0]; got.InvolvedObject != want || got.Message != "note" || got.Reason != "Odd" || got.Namespace != podKey.Namespace {
			t.Errorf("got the Event %+v", got)
		}
	})
}
