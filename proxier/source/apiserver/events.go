// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// What the Events about refused values have in common.
const (
	eventController = "fairlead"
	eventReason     = "FairleadRefused"
)

// Bounds of the texts of an Event in the API group events.k8s.io (v1.36), in
// bytes, which the core group takes, too.
const (
	maxEventNote     = 1024
	maxEventInstance = 128
)

const (
	// maxEvents bounds the Events about one version of one object.
	maxEvents = 3
	// eventBurst and eventsPerSecond bound the Events of the agent, as many
	// agents see the same object, and whoever may write one could have them
	// write Events without end. The burst is what the client sends at once by default, so
	// Events hold up its lists and watches by two seconds at most.
	eventBurst      = rest.DefaultBurst
	eventsPerSecond = 0.1
	// objectBurst and objectEventsPerSecond bound those about one object, which
	// may change every second and be refused as before.
	objectBurst           = 2 * maxEvents
	objectEventsPerSecond = 1. / 300
)

// subject is an object that Events can be about.
type subject struct {
	kind, apiVersion string
	key              model.ObjectKey
	uid              types.UID
	// version is the one that its refusals have been the same since.
	version string
}

// eventWriter writes Events about refused values. It works in the background,
// and drops what is too much: the log has every refusal.
type eventWriter struct {
	ctx         context.Context // of the broadcaster, which takes none with an Event
	client      *Client
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	limit       flowcontrol.PassiveRateLimiter
}

// startEvents returns an eventWriter that works until ctx is done. It is to be
// stopped then.
func startEvents(ctx context.Context, client *Client, nodeName string) *eventWriter {
	// The sink tells of errors; the broadcaster would with every single one.
	broadcaster := record.NewBroadcaster(record.WithContext(klog.NewContext(ctx, klog.Logger{})),
		record.WithCorrelatorOptions(record.CorrelatorOptions{BurstSize: objectBurst, QPS: objectEventsPerSecond}))
	broadcaster.StartRecordingToSink(&eventSink{ctx: ctx, client: client.events, now: time.Now})
	// The references to objects are complete, so that no scheme is asked for.
	recorder := broadcaster.NewRecorder(runtime.NewScheme(), corev1.EventSource{
		Component: eventController, Host: nodeName[:min(len(nodeName), maxEventInstance)],
	})
	return &eventWriter{
		ctx: ctx, client: client, broadcaster: broadcaster, recorder: recorder,
		limit: flowcontrol.NewTokenBucketPassiveRateLimiter(eventsPerSecond, eventBurst),
	}
}

func (w *eventWriter) stop() { w.broadcaster.Shutdown() }

// refused writes Events about what is refused of an object. Two with the same
// text count as one that happened twice.
func (w *eventWriter) refused(s subject, refusals []source.Refusal) {
	for i, refusal := range refusals[:min(len(refusals), maxEvents)] {
		if !w.limit.TryAccept() {
			return
		}
		more := ""
		if rest := len(refusals) - maxEvents; i == maxEvents-1 && rest > 0 {
			more = fmt.Sprintf(" (and %d more of this object)", rest)
		}
		w.recorder.Event(&corev1.ObjectReference{
			Kind: s.kind, APIVersion: s.apiVersion, Namespace: s.key.Namespace, Name: s.key.Name,
			UID: s.uid, ResourceVersion: s.version, FieldPath: refusal.Field,
		}, corev1.EventTypeWarning, eventReason, note(refusal.String(), more))
	}
}

// lookupTimeout bounds the request for an object's identity.
const lookupTimeout = 10 * time.Second

// warn writes one Event about a Service. Its identity, by which kubectl
// describe finds its Events, is asked for by a list, which needs no permission
// that the agent does not have anyway.
func (w *eventWriter) warn(key model.ObjectKey, warning model.Warning) {
	ctx, cancel := context.WithTimeout(w.ctx, lookupTimeout)
	defer cancel()
	about := &corev1.ObjectReference{
		Kind: source.KindService, APIVersion: "v1", Namespace: key.Namespace, Name: key.Name, FieldPath: warning.Field,
	}
	found, err := w.client.services(key.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, key.Name).String(), Limit: 1,
	})
	if err == nil && len(found.Items) == 1 {
		about.UID, about.ResourceVersion = found.Items[0].UID, found.Items[0].ResourceVersion
	}
	if w.ctx.Err() == nil {
		w.recorder.Event(about, corev1.EventTypeWarning, warning.Reason, note(warning.Message, ""))
	}
}

// note returns the text of an Event, bounded. It is ASCII.
func note(line, more string) string {
	const dots = "..."
	if limit := maxEventNote - len(more); len(line) > limit {
		line = line[:limit-len(dots)] + dots
	}
	return line + more
}

// eventClient writes the Events of a namespace.
type eventClient interface {
	Create(ctx context.Context, event *corev1.Event, opts metav1.CreateOptions) (*corev1.Event, error)
	Patch(ctx context.Context, name string, kind types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*corev1.Event, error)
}

// eventSink sends Events to the API server.
type eventSink struct {
	ctx    context.Context // of the broadcaster
	client func(namespace string) eventClient
	now    func() time.Time

	mu sync.Mutex
	// told is when the log was last told of an error.
	told time.Time
}

var _ record.EventSink = (*eventSink)(nil)

// Create creates the Event.
func (s *eventSink) Create(event *corev1.Event) (*corev1.Event, error) {
	created, err := s.client(event.Namespace).Create(s.ctx, event, metav1.CreateOptions{})
	s.tell(err)
	return created, err
}

// Update is not needed: the broadcaster patches.
func (s *eventSink) Update(event *corev1.Event) (*corev1.Event, error) {
	return nil, fmt.Errorf("update event %s: not supported", event.Name)
}

// Patch makes the Event one that happened more than once.
func (s *eventSink) Patch(event *corev1.Event, data []byte) (*corev1.Event, error) {
	patched, err := s.client(event.Namespace).Patch(s.ctx, event.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
	s.tell(err)
	return patched, err
}

// tell logs an error, one a minute.
func (s *eventSink) tell(err error) {
	if err == nil || s.ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	now := s.now()
	tell := now.Sub(s.told) >= remindAfter
	if tell {
		s.told = now
	}
	s.mu.Unlock()
	if tell {
		klog.FromContext(s.ctx).Error(nil, "Cannot write an Event about a refused value, only the log has it; let the agent create and patch events",
			"reason", reasonOf(err))
	}
}
