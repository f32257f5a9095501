// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// What the Events about refused values have in common.
const (
	eventController = "fairlead"
	eventReason     = "FairleadRefused"
	eventAction     = "Refuse"
)

// Bounds of the texts of an Event in the API (v1.36), in bytes.
const (
	maxEventNote     = 1024
	maxEventInstance = 128
)

const (
	// maxEvents bounds the Events about one version of one object.
	maxEvents = 3
	// eventBurst and eventsPerSecond bound the Events of the agent, as many
	// agents see the same object, and whoever may write one could have them
	// write Events without end. The burst is what the client sends at once, so
	// Events hold up its lists and watches by two seconds at most.
	eventBurst      = burst
	eventsPerSecond = 0.1
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
	broadcaster events.EventBroadcaster
	recorder    events.EventRecorder
	limit       flowcontrol.PassiveRateLimiter
}

// startEvents returns an eventWriter that works until ctx is done. It is to be
// stopped then.
func startEvents(ctx context.Context, client kubernetes.Interface, nodeName string) (*eventWriter, error) {
	broadcaster := events.NewBroadcaster(&eventSink{
		EventSinkImpl: events.EventSinkImpl{Interface: client.EventsV1()},
		instance:      nodeName[:min(len(nodeName), maxEventInstance)],
		logger:        klog.FromContext(ctx),
		now:           time.Now,
	})
	// The sink tells of errors; the broadcaster would with every single one.
	if err := broadcaster.StartRecordingToSinkWithContext(klog.NewContext(ctx, klog.Logger{})); err != nil {
		broadcaster.Shutdown()
		return nil, fmt.Errorf("start to write events: %w", err)
	}
	return &eventWriter{
		ctx:         ctx,
		broadcaster: broadcaster,
		recorder:    broadcaster.NewRecorder(scheme.Scheme, eventController),
		limit:       flowcontrol.NewTokenBucketPassiveRateLimiter(eventsPerSecond, eventBurst),
	}, nil
}

func (w *eventWriter) stop() { w.broadcaster.Shutdown() }

// refused writes Events about what is refused of an object. Two with the same
// field and version count as one that happened twice; so a new version with the
// same refusals costs the API server next to nothing.
func (w *eventWriter) refused(s subject, refusals []source.Refusal) {
	for i, refusal := range refusals[:min(len(refusals), maxEvents)] {
		if !w.limit.TryAccept() {
			return
		}
		more := ""
		if rest := len(refusals) - maxEvents; i == maxEvents-1 && rest > 0 {
			more = fmt.Sprintf(" (and %d more of this object)", rest)
		}
		w.recorder.Eventf(&corev1.ObjectReference{
			Kind: s.kind, APIVersion: s.apiVersion, Namespace: s.key.Namespace, Name: s.key.Name,
			UID: s.uid, ResourceVersion: s.version, FieldPath: refusal.Field,
		}, nil, corev1.EventTypeWarning, eventReason, eventAction, "%s", note(refusal.String(), more))
	}
}

// lookupTimeout bounds the request for an object's identity.
const lookupTimeout = 10 * time.Second

// warn writes one Event about a Service. Its identity, by which kubectl
// describe finds its Events, is asked for by a list, which needs no permission
// that the agent does not have anyway.
func (w *eventWriter) warn(client kubernetes.Interface, key model.ObjectKey, warning model.Warning) {
	ctx, cancel := context.WithTimeout(w.ctx, lookupTimeout)
	defer cancel()
	about := &corev1.ObjectReference{
		Kind: source.KindService, APIVersion: "v1", Namespace: key.Namespace, Name: key.Name, FieldPath: warning.Field,
	}
	found, err := client.CoreV1().Services(key.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, key.Name).String(), Limit: 1,
	})
	if err == nil && len(found.Items) == 1 {
		about.UID, about.ResourceVersion = found.Items[0].UID, found.Items[0].ResourceVersion
	}
	if w.ctx.Err() == nil {
		w.recorder.Eventf(about, nil, corev1.EventTypeWarning, warning.Reason, eventAction, "%s", note(warning.Message, ""))
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

// eventSink sends Events to the API server, under the node's name: the recorder
// knows only the host's, which may be another.
type eventSink struct {
	events.EventSinkImpl
	instance string
	logger   klog.Logger
	now      func() time.Time

	mu sync.Mutex
	// told is when the log was last told of an error.
	told time.Time
}

var _ events.EventSink = (*eventSink)(nil)

// Create creates the Event.
func (s *eventSink) Create(ctx context.Context, event *eventsv1.Event) (*eventsv1.Event, error) {
	// The broadcaster finds Events by what it has put into them.
	event = event.DeepCopy()
	event.ReportingInstance = s.instance
	created, err := s.EventSinkImpl.Create(ctx, event)
	s.tell(ctx, err)
	return created, err
}

// Patch makes the Event one that happened more than once.
func (s *eventSink) Patch(ctx context.Context, event *eventsv1.Event, data []byte) (*eventsv1.Event, error) {
	patched, err := s.EventSinkImpl.Patch(ctx, event, data)
	s.tell(ctx, err)
	return patched, err
}

// tell logs an error, one a minute.
func (s *eventSink) tell(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
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
		s.logger.Error(nil, "Cannot write an Event about a refused value, only the log has it; let the agent create and patch events of events.k8s.io",
			"reason", reasonOf(err))
	}
}
