// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
)

// optional is the link of a resource that the agent can do without: an API
// server that is too old does not have it, and one that was set up for an older
// agent does not show it. That is told once, and is no trouble of the link.
type optional struct {
	*link
	// message says what it means that the resource cannot be read.
	message string
	// absent is closed once the API server has said that there is nothing to
	// read.
	absent chan struct{}

	mu sync.Mutex
	// told is set while the operator knows, and closed once absent is.
	told, closed bool
	// granted is set once the API server has shown what the agent cannot do without.
	// Before, that something is forbidden says nothing: an API server that has just
	// started knows roles and bindings only a moment later.
	granted bool
}

func newOptional(link *link, message string) *optional {
	return &optional{link: link, message: message, absent: make(chan struct{})}
}

// failed takes the error of a request for the resource.
func (o *optional) failed(ctx context.Context, resource string, err error) {
	if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		o.link.failed(ctx, resource, err)
		return
	}
	o.link.watching(ctx, resource) // it has answered
	o.mu.Lock()
	final := o.granted || apierrors.IsNotFound(err)
	tell := final && !o.told
	o.told = o.told || final
	if final && !o.closed {
		o.closed = true
		close(o.absent)
	}
	o.mu.Unlock()
	if tell {
		klog.FromContext(ctx).Info(o.message, "reason", reasonOf(err))
	}
}

// grant takes note that the API server shows the agent what it cannot do without.
func (o *optional) grant() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.granted = true
}

// watching takes note that a watch of the resource stands.
func (o *optional) watching(ctx context.Context, resource string) {
	o.link.watching(ctx, resource)
	o.mu.Lock()
	tell := o.told
	o.told = false
	o.mu.Unlock()
	if tell {
		klog.FromContext(ctx).Info("The API server shows the resource now", "resource", resource)
	}
}
