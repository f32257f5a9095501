// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

const (
	// remindAfter is the time between log lines about the same trouble.
	remindAfter = time.Minute
	// maxReason bounds the text of an error in a log line, in bytes.
	maxReason = 300
	// maxReasons bounds how many different reasons are told in that time. An
	// expired certificate's reason has the time of day in it.
	maxReasons = 4
)

// link watches over the connection to the API server and tells the operator
// when it fails and when it is back: one line for all resources, and one a
// minute while it lasts. client-go by itself says nothing of a watch that
// cannot connect.
type link struct {
	server string
	now    func() time.Time

	mu sync.Mutex
	// failing holds the resources that cannot be read at the moment, and since when.
	failing map[string]time.Time
	// since is when the first of them began to.
	since time.Time
	// told holds the reasons that were told since the time window.
	told   map[string]struct{}
	window time.Time
}

func newLink(server string, now func() time.Time) *link {
	return &link{server: server, now: now, failing: map[string]time.Time{}, told: map[string]struct{}{}}
}

// failed takes the error of a request for the resource.
func (l *link) failed(ctx context.Context, resource string, err error) {
	if ctx.Err() != nil || isAnswer(err) {
		return
	}
	reason := reasonOf(err)
	l.mu.Lock()
	now := l.now()
	if len(l.failing) == 0 {
		l.since = now
	}
	if _, was := l.failing[resource]; !was {
		l.failing[resource] = now
	}
	if now.Sub(l.window) >= remindAfter {
		clear(l.told)
		l.window = now
	}
	_, known := l.told[reason]
	tell := !known && len(l.told) < maxReasons
	if tell {
		l.told[reason] = struct{}{}
	}
	since := l.since
	l.mu.Unlock()

	if tell {
		klog.FromContext(ctx).Error(nil, "Cannot read from the API server, what is programmed stays as it is",
			"server", l.serverOf(err), "resource", resource, "reason", reason, "for", now.Sub(since).Round(time.Second))
	}
}

// watching takes note that a watch of the resource stands. A list alone proves
// less: where it succeeds and the watch does not, changes go unseen.
func (l *link) watching(ctx context.Context, resource string) {
	l.mu.Lock()
	_, was := l.failing[resource]
	delete(l.failing, resource)
	back := was && len(l.failing) == 0
	if back {
		clear(l.told)
	}
	lasted := l.now().Sub(l.since)
	l.mu.Unlock()

	if back {
		klog.FromContext(ctx).Info("The API server can be read again", "server", l.server, "after", lasted.Round(time.Second))
	}
}

// stale returns the resources that cannot be read, and since when.
func (l *link) stale() map[string]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.failing)
}

// serverOf returns the server's URL, from the error where it is not known
// otherwise.
func (l *link) serverOf(err error) string {
	var request *url.Error
	if l.server == "" && errors.As(err, &request) {
		if u, err := url.Parse(request.URL); err == nil {
			return u.Scheme + "://" + u.Host
		}
	}
	return l.server
}

// isAnswer reports whether the error is part of the protocol: the version to
// start from is too old or too new, or the server cannot stream its list. The
// informers deal with those by themselves.
func isAnswer(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.IsInvalid(err) || apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// reasonOf returns the error's text without what differs from one attempt to
// the next: the request's URL and the local port.
func reasonOf(err error) string {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		stable := *op
		stable.Source = nil
		err = &stable
	}
	reason := strings.ToValidUTF8(oneLine(err), "?")
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "..."
	}
	return reason
}
