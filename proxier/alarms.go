// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"time"
)

const (
	// settlePause is how long what Desired.Settle is for may wait. It is much
	// more than it takes, so that it takes little in the long run.
	settlePause = 5 * time.Second
	// foreignPause is the least time between two looks at what others change.
	// A look takes some milliseconds, and others may change things all the time.
	foreignPause = 500 * time.Millisecond
)

// request is what a sync is to do besides what has changed.
type request struct{ verify, settle bool }

// alarms are the reasons for a sync.
type alarms struct {
	wake    <-chan struct{}
	foreign <-chan struct{} // nil where nobody tells
	table   <-chan struct{} // the same of a second source
	period  *time.Ticker
	// settle is nil unless there is something to settle.
	settle <-chan time.Time
	// pause is not nil while foreign waits.
	pause <-chan time.Time
}

// settleLater sets the alarm for what is to settle, where there is something and
// the alarm is not set.
func (a *alarms) settleLater(unsettled bool) {
	if !unsettled {
		a.settle = nil
	} else if a.settle == nil {
		a.settle = time.After(settlePause)
	}
}

// wait waits for an alarm, and notes in ask what it is for. It returns false if
// ctx ends first.
func (a *alarms) wait(ctx context.Context, ask *request) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-a.pause:
			a.pause = nil
			continue
		case <-a.wake:
		case <-a.period.C:
			ask.verify = true
		case <-a.unlessPaused(a.foreign):
			a.lookAt(ask)
		case <-a.unlessPaused(a.table):
			a.lookAt(ask)
		case <-a.settle:
			ask.settle, a.settle = true, nil
		}
		return true
	}
}

// collect notes in ask what all alarms that have gone off are for. Tracker.Take
// answers wake.
func (a *alarms) collect(ask *request) {
	if received(a.pause) {
		a.pause = nil
	}
	ask.verify = received(a.period.C) || ask.verify
	if received(a.unlessPaused(a.foreign)) || received(a.unlessPaused(a.table)) {
		a.lookAt(ask)
	}
	if received(a.settle) {
		ask.settle, a.settle = true, nil
	}
}

// unlessPaused returns a source of foreign changes, nil while they wait.
func (a *alarms) unlessPaused(source <-chan struct{}) <-chan struct{} {
	if a.pause != nil {
		return nil
	}
	return source
}

func (a *alarms) lookAt(ask *request) {
	ask.verify, a.pause = true, time.After(foreignPause)
}

// received tells whether there was something in c to take.
func received[T any](c <-chan T) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
