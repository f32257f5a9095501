// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/sourcetest"
)

// eventLog is what an API server has been sent of Events.
type eventLog struct {
	mu      sync.Mutex
	created []*corev1.Event
	patches []string
	// err is the answer to what is sent.
	err error
}

// recordEvents makes the client's API server take Events, and nothing of them
// but a record. Inside a bubble all have the same time, hence the same name.
func recordEvents(client *fake.Clientset) *eventLog {
	l := &eventLog{}
	client.PrependReactor("create", "events", func(action kubetesting.Action) (bool, runtime.Object, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		event := action.(kubetesting.CreateAction).GetObject().(*corev1.Event)
		l.created = append(l.created, event)
		return true, event, l.err
	})
	client.PrependReactor("patch", "events", func(action kubetesting.Action) (bool, runtime.Object, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.patches = append(l.patches, string(action.(kubetesting.PatchAction).GetPatch()))
		return true, &corev1.Event{}, l.err
	})
	return l
}

func (l *eventLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// take returns the Events created since it was last called, in the order of
// their texts, and the number of patches.
func (l *eventLog) take() (created []*corev1.Event, patches []string) {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	created, patches = l.created, l.patches
	l.created, l.patches = nil, nil
	slices.SortFunc(created, func(a, b *corev1.Event) int { return strings.Compare(a.Message, b.Message) })
	return created, patches
}

func uid(u types.UID) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.UID = u }
}

func external(ips ...string) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Spec.ExternalIPs = ips }
}

func TestEventsAboutEachKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slice := webSlice("5", "127.0.0.1")
		slice.UID = "slice-uid"
		node := ownNodeObject("6")
		node.UID, node.Labels = "node-uid", map[string]string{source.LabelZone: "a b"}
		client := newFake(web(version("4"), uid("service-uid"), external("10.96.0.10")), slice, node)
		log := recordEvents(client)
		startSource(t, client, nil)
		event := func(namespace, note string, regarding corev1.ObjectReference) *corev1.Event {
			return &corev1.Event{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace}, Count: 1,
				Source:              corev1.EventSource{Component: "fairlead", Host: nodeName},
				ReportingController: "fairlead", ReportingInstance: nodeName,
				Reason: "FairleadRefused", Type: "Warning", InvolvedObject: regarding, Message: note,
			}
		}
		want := []*corev1.Event{
			event("shop", `EndpointSlice "shop/web-1": endpoints[0].addresses[0] "127.0.0.1": is a loopback address`, corev1.ObjectReference{
				Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1", Namespace: "shop", Name: "web-1", UID: "slice-uid",
				ResourceVersion: "5", FieldPath: "endpoints[0].addresses[0]"}),
			event("default", `Node "node-1": metadata.labels["topology.kubernetes.io/zone"] "a b": `+
				`is not a label's value (1 to 63 of a-z, A-Z, 0-9, '-', '_', '.', a letter or digit at either end)`, corev1.ObjectReference{
				Kind: "Node", APIVersion: "v1", Name: "node-1", UID: "node-uid",
				ResourceVersion: "6", FieldPath: `metadata.labels["topology.kubernetes.io/zone"]`}),
			event("shop", `Service "shop/web": spec.externalIPs[0] "10.96.0.10": is a cluster IP of the same Service`, corev1.ObjectReference{
				Kind: "Service", APIVersion: "v1", Namespace: "shop", Name: "web", UID: "service-uid",
				ResourceVersion: "4", FieldPath: "spec.externalIPs[0]"}),
		}
		got, patches := log.take()
		for _, e := range got {
			if e.FirstTimestamp.IsZero() || e.LastTimestamp.IsZero() || !strings.HasPrefix(e.Name, e.InvolvedObject.Name+".") {
				t.Errorf("Event %q of %v to %v", e.Name, e.FirstTimestamp, e.LastTimestamp)
			}
			e.FirstTimestamp, e.LastTimestamp, e.Name = metav1.Time{}, metav1.Time{}, ""
		}
		if diff := cmp.Diff(want, got); diff != "" || len(patches) > 0 {
			t.Errorf("%d patches, Events (-want +got):\n%s", len(patches), diff)
		}
	})
}

func TestEventsOncePerVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake(web(external("127.0.0.1")))
		log := recordEvents(client)
		startSource(t, client, nil)
		update := func(changes ...func(*corev1.Service)) {
			must[*corev1.Service](t)(client.CoreV1().Services("shop").Update(t.Context(), web(changes...), metav1.UpdateOptions{}))
		}
		for _, step := range []struct {
			name             string
			do               func()
			created, patched int
			count            int // of the first patch
		}{
			{"the first list", func() {}, 1, 0, 0},
			{"an hour", func() { time.Sleep(time.Hour) }, 0, 0, 0},
			{"a version with another refusal", func() { update(version("2"), external("127.0.0.2")) }, 1, 0, 0},
			{"one with the same", func() { update(version("3"), external("127.0.0.2")) }, 0, 1, 2},
			{"many more with the same", func() {
				for i := range 5 {
					update(version(fmt.Sprint(i+4)), external("127.0.0.2"))
				}
			}, 0, objectBurst - 2, 3}, // all counted, and told with the next patch
			{"a good one", func() { update(version("10")) }, 0, 0, 0},
			{"one as bad as before, later", func() {
				time.Sleep(10 * time.Minute)
				update(version("11"), external("127.0.0.2"))
			}, 0, 1, 8},
		} {
			step.do()
			created, patches := log.take()
			if len(created) != step.created || len(patches) != step.patched {
				t.Errorf("%s: created %v, patched %v; want %d and %d", step.name, created, patches, step.created, step.patched)
			}
			if len(patches) > 0 && !strings.HasPrefix(patches[0], fmt.Sprintf(`{"count":%d,`, step.count)) {
				t.Errorf("%s: patched %s, want a count of %d", step.name, patches[0], step.count)
			}
		}
	})
}

func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake()
		log := recordEvents(client)
		startSource(t, client, nil)
		slice := func(i int) *discoveryv1.EndpointSlice {
			s := webSlice("1", slices.Repeat([]string{"127.0.0.1"}, 50)...)
			s.Name = fmt.Sprintf("web-%03d", i)
			return s
		}
		create := func(i int) {
			must[*discoveryv1.EndpointSlice](t)(client.DiscoveryV1().EndpointSlices("shop").Create(t.Context(), slice(i), metav1.CreateOptions{}))
		}

		create(0)
		created, _ := log.take()
		var notes []string
		for _, e := range created {
			notes = append(notes, e.Message)
		}
		refusal := func(i int) string {
			return fmt.Sprintf(`EndpointSlice "shop/web-000": endpoints[%d].addresses[0] "127.0.0.1": is a loopback address`, i)
		}
		if diff := cmp.Diff([]string{refusal(0), refusal(1), refusal(2) + " (and 47 more of this object)"}, notes); diff != "" {
			t.Errorf("Events about one object (-want +got):\n%s", diff)
		}

		for i := range 100 {
			create(i + 1)
		}
		if created, _ := log.take(); len(created) != eventBurst-maxEvents {
			t.Errorf("%d Events about 100 objects at once, after %d, want %d in all", len(created), maxEvents, eventBurst)
		}
		time.Sleep(time.Minute)
		for i := range 100 {
			create(i + 101)
		}
		if created, _ := log.take(); len(created) != 6 {
			t.Errorf("%d Events a minute later, want 6", len(created))
		}
	})
}

func TestEventsThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake()
		log := recordEvents(client)
		log.fail(apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("no such rule")))
		r := startSource(t, client, nil)
		n := 0
		create := func() {
			n++
			svc := web(external("127.0.0.1"), func(s *corev1.Service) { s.Name = fmt.Sprintf("web-%d", n) })
			must[*corev1.Service](t)(client.CoreV1().Services("shop").Create(t.Context(), svc, metav1.CreateOptions{}))
		}
		create()
		create()
		told := func() []string { return r.logs.Matching("Cannot write an Event") }
		if got := told(); len(got) != 1 || !strings.Contains(got[0], "no such rule") || strings.Contains(got[0], "\n") {
			t.Errorf("logged %q, want one line with the reason", got)
		}
		time.Sleep(remindAfter)
		create()
		if got := told(); len(got) != 2 {
			t.Errorf("logged %q, want another line after a minute", got)
		}
		if created, _ := log.take(); len(created) != 3 {
			t.Errorf("%d attempts, want 3: what is forbidden is not tried again", len(created))
		}
		r.WaitFor("the Services nevertheless", func(s *sourcetest.State) bool { return len(s.Services) == 3 })

		// An API server that is away is tried again, for a while.
		log.fail(errors.New("connection refused"))
		create()
		time.Sleep(15 * time.Second)
		log.fail(nil)
		time.Sleep(time.Minute)
		if created, _ := log.take(); len(created) < 2 || len(created) > 4 {
			t.Errorf("%d attempts, want some until one succeeds", len(created))
		}
	})
}

// The API server takes no Event whose texts are too long.
func TestEventTextsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake()
		log := recordEvents(client)
		ctx := klog.NewContext(t.Context(), sourcetest.NewLog(t).Logger())
		w := startEvents(ctx, clientOf(client), strings.Repeat("n", 253))
		defer w.stop()
		hostile := strings.Repeat("\n\"\xff%s", 100)
		key := model.ObjectKey{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 253)}
		var refusals []source.Refusal
		for i := range maxEvents + 1 {
			refusals = append(refusals, source.Refusal{Kind: source.KindService, Key: model.ObjectKey{Namespace: hostile, Name: hostile},
				Field: fmt.Sprintf("f[%d]", i), Value: hostile, Reason: "r"})
		}
		w.refused(subject{kind: source.KindService, apiVersion: "v1", key: key}, refusals)
		created, _ := log.take()
		if len(created) != maxEvents {
			t.Errorf("%d Events, want %d", len(created), maxEvents)
		}
		for _, e := range created {
			if len(e.Message) > maxEventNote || len(e.ReportingInstance) > maxEventInstance || len(e.Name) > 253 {
				t.Errorf("note of %d, instance of %d, name of %d bytes", len(e.Message), len(e.ReportingInstance), len(e.Name))
			}
			if strings.ContainsFunc(e.Message, func(c rune) bool { return c < ' ' || c > '~' }) || strings.Contains(e.Message, "%!") {
				t.Errorf("note %q", e.Message)
			}
		}
	})
}
