// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"

	"fairlead/proxier/source/sourcetest"
)

// refusedConnection is the error of a request to a server that is down, as
// net/http makes it.
func refusedConnection(path string, localPort int) error {
	return &url.Error{Op: "Get", URL: "https://10.0.0.1:6443" + path, Err: &net.OpError{
		Op: "dial", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: localPort},
		Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 6443}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
	}}
}

func newTestLink(t *testing.T) (context.Context, *link, *sourcetest.Log, *time.Time) {
	now := time.Unix(1_700_000_000, 0)
	logs := sourcetest.NewLog(t)
	l := newLink("", func() time.Time { return now })
	return klog.NewContext(t.Context(), logs.Logger()), l, logs, &now
}

func TestLinkTellsOnceWhatAllResourcesHaveInCommon(t *testing.T) {
	ctx, l, logs, now := newTestLink(t)
	for i := range 100 {
		l.failed(ctx, "services", refusedConnection("/api/v1/services?limit=500", 40000+i))
		l.failed(ctx, "endpointslices", refusedConnection("/apis/discovery.k8s.io/v1/endpointslices", 50000+i))
		*now = now.Add(100 * time.Millisecond)
	}
	want := `Cannot read from the API server, what is programmed stays as it is server="https://10.0.0.1:6443" ` +
		`resource="services" reason="dial tcp 10.0.0.1:6443: connect: connection refused" for=0s`
	if got := logs.Lines(); len(got) != 1 || got[0] != want {
		t.Fatalf("logged %q, want once %q", got, want)
	}

	*now = now.Add(remindAfter)
	l.failed(ctx, "services", refusedConnection("/api/v1/services", 1))
	l.failed(ctx, "services", refusedConnection("/api/v1/services", 2))
	if got := logs.Lines(); len(got) != 2 || !strings.HasSuffix(got[1], "for=1m10s") {
		t.Fatalf("a minute later logged %q, want one reminder with its duration", got)
	}
	l.failed(ctx, "services", errors.New("x509: certificate signed by unknown authority"))
	if got := logs.Matching("unknown authority"); len(got) != 1 {
		t.Fatalf("another reason is told %d times, want once", len(got))
	}

	l.watching(ctx, "services")
	if got := logs.Matching("can be read again"); len(got) != 0 {
		t.Fatalf("told of the recovery while endpointslices fail: %q", got)
	}
	l.watching(ctx, "endpointslices")
	l.watching(ctx, "endpointslices")
	if got := logs.Matching("can be read again", "after=1m10s"); len(got) != 1 {
		t.Fatalf("recovery is told %d times, want once: %q", len(got), logs.Lines())
	}
	l.failed(ctx, "services", refusedConnection("/api/v1/services", 3))
	if got := logs.Matching("connection refused", "for=0s"); len(got) != 2 {
		t.Fatalf("the next failure is not told: %q", logs.Lines())
	}
}

func TestLinkBoundsReasonsThatDifferEveryTime(t *testing.T) {
	ctx, l, logs, _ := newTestLink(t)
	for i := range 100 {
		l.failed(ctx, "services", fmt.Errorf("certificate has expired: current time is %d\n%s", i, strings.Repeat("x", 1000)))
	}
	lines := logs.Lines()
	if len(lines) != maxReasons {
		t.Errorf("%d lines, want %d", len(lines), maxReasons)
	}
	for _, line := range lines {
		if len(line) > maxReason+200 || strings.Contains(line, "\n") {
			t.Errorf("line %q is not one bounded line", line)
		}
	}
}

func TestLinkTakesAnswersForNoFailure(t *testing.T) {
	ctx, l, logs, _ := newTestLink(t)
	l.failed(ctx, "services", apierrors.NewResourceExpired("too old"))
	l.failed(ctx, "services", apierrors.NewGone("gone"))
	l.failed(ctx, "services", apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
	tooLarge := apierrors.NewTimeoutError("Too large resource version", 1)
	tooLarge.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge}}
	l.failed(ctx, "services", tooLarge)
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	l.failed(stopped, "services", context.Canceled)
	l.watching(ctx, "services")
	if got := logs.Lines(); len(got) != 0 {
		t.Errorf("logged %q, want nothing", got)
	}
}

// While the server is away nothing is delivered, neither changes nor another status, and
// the log stays readable; it is asked once in a second or two for all resources together.
// What is stale is told. Once the server is back it is asked for what has changed alone.
func TestServerGoesAwayAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newFake(web(), webSlice("1", "10.244.1.5"), ownNodeObject("1"))
		var away atomic.Bool
		var tries, lists atomic.Int32
		down := refusedConnection("/api/v1/services", 1)
		client.PrependReactor("list", "*", func(kubetesting.Action) (bool, runtime.Object, error) {
			lists.Add(1)
			return away.Load(), nil, down
		})
		watches := make(chan *watch.FakeWatcher, 4)
		client.PrependWatchReactor("*", func(kubetesting.Action) (bool, watch.Interface, error) {
			if away.Load() {
				tries.Add(1)
				return true, nil, down
			}
			w := watch.NewFake()
			select {
			case watches <- w:
				return true, w, nil
			default:
				return false, nil, nil
			}
		})
		r := startSource(t, client, nil)
		before := len(r.Steps())
		if got := r.source.Stale(); len(got) > 0 {
			t.Errorf("stale before the server goes away: %v", got)
		}

		time.Sleep(time.Minute) // client-go lists anew after a watch that was very short
		gone := time.Now()
		away.Store(true)
		lists.Store(0)
		for range 4 {
			(<-watches).Stop()
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if got := r.since(before); len(got) > 0 {
			t.Errorf("steps while the server is away: %+v", got)
		}
		lines := r.logs.Matching("Cannot read from the API server", `reason="dial tcp 10.0.0.1:6443: connect: connection refused"`)
		if len(lines) < 4 || len(lines) > 6 {
			t.Errorf("%d lines in five minutes, want about one a minute: %q", len(lines), lines)
		}
		if got := tries.Load(); got < 150 || got > 310 {
			t.Errorf("%d requests in five minutes, want one in a second or two", got)
		}
		stale := r.source.Stale()
		for _, resource := range []string{"services", "endpointslices", "servicecidrs", "nodes"} {
			if since, ok := stale[resource]; !ok || since.Sub(gone) > time.Second {
				t.Errorf("%s are stale since %v (%t), want %v", resource, since, ok, gone)
			}
		}

		away.Store(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := r.since(before); len(got) > 0 {
			t.Errorf("steps although nothing has changed: %+v", got)
		}
		if got := r.logs.Matching("can be read again"); len(got) != 1 {
			t.Errorf("within two seconds recovery is told %d times, want once", len(got))
		}
		if got := lists.Load(); got > 0 {
			t.Errorf("%d lists, want none: watches go on from where they were", got)
		}
		if got := r.source.Stale(); len(got) > 0 {
			t.Errorf("stale although the server is back: %v", got)
		}
	})
}
