// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// informer is an informer with one handler.
type informer struct {
	cache.SharedIndexInformer
	// delivered is done once the handler has had every object of the first
	// list.
	delivered cache.DoneChecker
}

// newInformer returns an informer that is not running yet. It does not hand the
// handler every object anew from time to time, which would find nothing.
func newInformer(example runtime.Object, lw cache.ListerWatcher, transform cache.TransformFunc, handler cache.ResourceEventHandler) (informer, error) {
	i := cache.NewSharedIndexInformerWithOptions(lw, example, cache.SharedIndexInformerOptions{})
	if err := i.SetTransform(transform); err != nil {
		return informer{}, fmt.Errorf("set transform: %w", err)
	}
	if err := i.SetWatchErrorHandlerWithContext(quietly); err != nil {
		return informer{}, fmt.Errorf("set error handler: %w", err)
	}
	registration, err := i.AddEventHandler(handler)
	if err != nil {
		return informer{}, fmt.Errorf("add handler: %w", err)
	}
	return informer{SharedIndexInformer: i, delivered: registration.HasSyncedChecker()}, nil
}

// quietly takes the errors that end a watch. The link has told of those that
// matter.
func quietly(ctx context.Context, _ *cache.Reflector, err error) {
	klog.FromContext(ctx).V(4).Info("Watch ended, starting another", "reason", oneLine(err))
}

// teller tells the operator what is refused of the objects of one kind: with
// the log and the metrics by the Reporter, and with Events on the object.
type teller struct {
	reporter         *source.Reporter
	events           *eventWriter
	kind, apiVersion string
}

// tell takes one version of an object. used is whether any of it is.
func (t *teller) tell(ctx context.Context, key model.ObjectKey, version string, used bool, what *trouble) {
	outcome := source.Outcome{Kind: t.kind, Key: key, Version: version, Used: used}
	if what != nil {
		outcome.Refused = what.refused
	}
	if fresh, since := t.reporter.Report(ctx, outcome); fresh {
		t.events.refused(subject{kind: t.kind, apiVersion: t.apiVersion, key: key, uid: what.uid, version: since}, what.refused)
	}
}

func (t *teller) forget(key model.ObjectKey) { t.reporter.Forget(t.kind, key) }

// handler returns the handler of an informer whose cache holds items. It
// delivers the items that mean something else than before, nil where one means
// nothing any more. An informer calls it for one object at a time.
func handler[T any](ctx context.Context, teller *teller, same func(a, b *T) bool, deliver func(model.ObjectKey, *T)) cache.ResourceEventHandler {
	update := func(before, after *item[T]) {
		var old *T
		if before != nil {
			old = before.value
		}
		if before == nil || before.version != after.version {
			teller.tell(ctx, after.key, after.version, after.value != nil, after.trouble)
		}
		if same(old, after.value) {
			// The sink keeps the old value; so that there are not two, the
			// cache does too.
			after.value = old
			return
		}
		deliver(after.key, after.value)
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(after any) { update(nil, after.(*item[T])) },
		UpdateFunc: func(before, after any) { update(before.(*item[T]), after.(*item[T])) },
		DeleteFunc: func(last any) {
			if gone, ok := last.(cache.DeletedFinalStateUnknown); ok {
				last = gone.Obj
			}
			// Its last state need not be the one delivered last, so whether
			// that was nothing already is not to be seen from here.
			key := last.(*item[T]).key
			teller.forget(key)
			deliver(key, nil)
		},
	}
}

// ownNode delivers what becomes of the agent's own Node.
type ownNode struct {
	sink source.Sink

	// mu keeps the steps in order: listed runs beside the handler.
	mu   sync.Mutex
	told bool
}

func (n *ownNode) deliver(node *model.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deliverLocked(node)
}

// listed delivers that there is no Node, unless something was delivered.
func (n *ownNode) listed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.told {
		n.deliverLocked(nil)
	}
}

func (n *ownNode) deliverLocked(node *model.Node) {
	n.told = true
	n.sink.Update(model.Changes{Node: &model.NodeChange{Node: node}})
}
