// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

// TestWarn: what is found out after the source is an Event on the Service as it
// is then, one for each text, and nothing happens while no source runs.
func TestWarn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake(web(version("4"), uid("service-uid")))
		log := recordEvents(client)
		s, err := New(Config{Client: clientOf(client), NodeName: nodeName})
		if err != nil {
			t.Fatal(err)
		}
		warn := func(namespace, field, message string) {
			s.Warn(model.ObjectKey{Namespace: namespace, Name: "web"}, model.Warning{Field: field, Reason: "Odd", Message: message})
			synctest.Wait()
		}
		warn("shop", "spec.a", "before Run")
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), sourcetest.NewLog(t).Logger()))
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, sourcetest.NewRecorder(t)) }()
		synctest.Wait()
		warn("shop", "spec.a", "1 first")
		warn("shop", "spec.b", "2 another field")
		warn("shop", "spec.b", "3 the same field")
		warn("shop", "spec.b", "3 the same field")
		warn("empty", "spec.a", "4 a Service that is gone")

		about := func(namespace, field string) corev1.ObjectReference {
			return corev1.ObjectReference{Kind: "Service", APIVersion: "v1", Namespace: namespace, Name: "web", FieldPath: field}
		}
		known := func(field string) corev1.ObjectReference {
			o := about("shop", field)
			o.UID, o.ResourceVersion = "service-uid", "4"
			return o
		}
		type event struct {
			Note      string
			Regarding corev1.ObjectReference
		}
		want := []event{{"1 first", known("spec.a")}, {"2 another field", known("spec.b")}, {"3 the same field", known("spec.b")}, {"4 a Service that is gone", about("empty", "spec.a")}}
		created, patches := log.take()
		var got []event
		for _, e := range created {
			if e.Reason != "Odd" || e.Type != corev1.EventTypeWarning || e.ReportingInstance != nodeName {
				t.Errorf("got the Event %+v", e)
			}
			got = append(got, event{e.Message, e.InvolvedObject})
		}
		if diff := cmp.Diff(want, got); diff != "" || len(patches) != 1 {
			t.Errorf("%d patches, want 1; Events (-want +got):\n%s", len(patches), diff)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		warn("shop", "spec.a", "after Run")
		if created, patches := log.take(); len(created)+len(patches) > 0 {
			t.Errorf("after Run got %d Events and %d patches", len(created), len(patches))
		}
	})
}
