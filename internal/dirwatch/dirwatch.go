// SPDX-License-Identifier: Apache-2.0

// Package dirwatch tells that a file may have changed, by whatever happens in its
// directory: files of ConfigMaps change by a link beside them.
package dirwatch

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long to wait after a sign of a change: who replaces a file does it
// in steps.
const settle = 50 * time.Millisecond

// Signs are of changes in a directory, of which there are none while it cannot be
// watched.
type Signs struct {
	dir     string
	watcher *fsnotify.Watcher
}

// New returns the signs of a file, which need not be there.
func New(file string) *Signs {
	s := &Signs{dir: filepath.Dir(file)}
	s.watcher, _ = fsnotify.NewWatcher()
	s.watch()
	return s
}

// watch watches the directory, if it is there and not watched.
func (s *Signs) watch() {
	if s.watcher != nil {
		_ = s.watcher.Add(s.dir)
	}
}

// Await returns once there was a sign and no other for a moment, after at most d, or
// when ctx ends.
func (s *Signs) Await(ctx context.Context, d time.Duration) {
	wait := time.NewTimer(d)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.events():
			wait.Reset(settle)
		case <-wait.C:
			s.watch() // it may have come to be, or another have taken its place
			return
		}
	}
}

func (s *Signs) events() <-chan fsnotify.Event {
	if s.watcher == nil {
		return nil
	}
	return s.watcher.Events
}

// Close ends the watch.
func (s *Signs) Close() {
	if s.watcher != nil {
		_ = s.watcher.Close()
	}
}
