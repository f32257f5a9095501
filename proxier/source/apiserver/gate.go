// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// gate keeps requests back while the API server cannot be reached. One of them is made
// again and again, and when that is answered the others go on.
//
// By itself client-go tries for each resource, and comes to wait for half a minute to a
// minute between attempts, which cannot be set for informers; and it lists all anew where
// an attempt fails otherwise than by a refused connection. Behind the gate its
// reflectors see no failure, so they go on with a watch from where they were.
type gate struct {
	// turn has room for the one that tries.
	turn chan struct{}

	mu sync.Mutex
	// opened is closed, and nil again, when the gate opens. reason is why it is shut.
	opened chan struct{}
	reason error
}

// pauses are those between attempts: in the end one to two seconds, so that many agents
// come back one by one.
func pauses() wait.Backoff {
	return wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 3, Cap: time.Second}
}

func newGate() *gate { return &gate{turn: make(chan struct{}, 1)} }

// pass makes a request until the API server has answered, whatever it says, or ctx is
// done, and returns the last error. failed takes the error of each attempt, and of
// another's where that keeps the request back.
func (g *gate) pass(ctx context.Context, request func() error, failed func(error)) error {
	for {
		opened, reason := g.state()
		if opened == nil {
			err := request()
			if err != nil {
				failed(err)
			}
			if ctx.Err() != nil || !unreachable(err) {
				return err
			}
			g.shut(err)
			continue
		}
		failed(reason)
		select {
		case g.turn <- struct{}{}:
			if done, err := g.try(ctx, request, failed); done {
				return err
			}
		case <-opened:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// try is what the one does whose turn it is. It returns false if the gate has opened
// before.
func (g *gate) try(ctx context.Context, request func() error, failed func(error)) (done bool, _ error) {
	defer func() { <-g.turn }()
	pause := pauses()
	for {
		if opened, _ := g.state(); opened == nil {
			return false, nil
		}
		select {
		case <-time.After(pause.Step()):
		case <-ctx.Done():
			return true, ctx.Err()
		}
		err := request()
		if err != nil {
			failed(err)
		}
		switch {
		case ctx.Err() != nil:
			return true, err
		case !unreachable(err):
			g.open()
			return true, err
		}
		g.shut(err)
	}
}

func (g *gate) state() (opened <-chan struct{}, reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened, g.reason
}

func (g *gate) shut(reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reason = reason
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
	}
	g.opened, g.reason = nil, nil
}

// unreachable tells whether the API server has not answered. One whose certificate is
// refused has: asking it often would be no help, and dear.
func unreachable(err error) bool {
	var request *url.Error
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &request) && !errors.As(err, &certificate)
}
