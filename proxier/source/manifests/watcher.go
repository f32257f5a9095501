// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// watcher watches directories for changes, by path: where another directory
// takes a path over, it is watched from then on.
type watcher struct {
	dir string
	fs  *fsnotify.Watcher
	// watched holds the directories behind the paths.
	watched map[string]fs.FileInfo
	// targets are the directories that symbolic links lead to.
	targets map[string]struct{}
	// failed is why the directory cannot be watched, empty while it is.
	failed string
}

// newWatcher returns a watcher for the directory. Where the kernel does not let
// it watch anything it is still of use, but blind.
func newWatcher(ctx context.Context, dir string) *watcher {
	w := &watcher{dir: dir, watched: map[string]fs.FileInfo{}}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.tell(ctx, err)
		return w
	}
	w.fs = notify
	return w
}

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close()
	}
}

// events and errors return the watcher's channels; nil where it is blind.
func (w *watcher) events() <-chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

func (w *watcher) errors() <-chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

// isBlind reports whether changes may come without an event.
func (w *watcher) isBlind() bool { return w.fs == nil || w.failed != "" }

// sync makes the watched paths those that matter now: the directory, what is
// above it as far as it is there, and the directories that symbolic links among
// the files lead to. It returns whether there is one among them that was not
// watched before: what happened in it until then came without an event.
func (w *watcher) sync(ctx context.Context, targets map[string]struct{}) (added bool) {
	if w.fs == nil {
		return false
	}
	w.targets = targets
	want := w.above()
	maps.Copy(want, targets)
	for path := range w.watched {
		if _, ok := want[path]; !ok {
			_ = w.fs.Remove(path)
			delete(w.watched, path)
		}
	}
	// The kernel ends a watch with the directory.
	alive := map[string]struct{}{}
	for _, path := range w.fs.WatchList() {
		alive[path] = struct{}{}
	}
	for path := range want {
		_, ok := alive[path]
		if w.watch(ctx, path, ok) {
			added = true
		}
	}
	return added
}

// above returns the directory and those above it, up to the first that exists.
func (w *watcher) above() map[string]struct{} {
	paths := map[string]struct{}{w.dir: {}}
	for path := filepath.Dir(w.dir); ; path = filepath.Dir(path) {
		paths[path] = struct{}{}
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return paths
		}
	}
}

// watch makes sure that the directory which is at the path now is watched.
func (w *watcher) watch(ctx context.Context, path string, alive bool) (added bool) {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	if old, ok := w.watched[path]; ok {
		if alive && os.SameFile(old, info) {
			return false
		}
		_ = w.fs.Remove(path)
		delete(w.watched, path)
	}
	err = w.fs.Add(path)
	if path == w.dir {
		w.tell(ctx, err)
	}
	if err != nil {
		return false
	}
	w.watched[path] = info
	return true
}

// tell logs that the directory cannot be watched, once, and forgets it once it
// can.
func (w *watcher) tell(ctx context.Context, err error) {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		w.failed = ""
		return
	}
	if w.failed == err.Error() {
		return
	}
	w.failed = err.Error()
	klog.FromContext(ctx).Error(err, "Cannot watch the directory of manifests, looking for changes every second; raise fs.inotify.max_user_instances and fs.inotify.max_user_watches if they are used up",
		"dir", w.dir)
}

// relevance tells what an event is about.
type relevance int

const (
	nothing  relevance = iota
	oneFile            // the file of the name
	anything           // any file, or the directory itself
)

// relevant returns what is to be read because of an event at the path.
func (w *watcher) relevant(path string) (r relevance, name string) {
	parent, name := filepath.Split(path)
	parent = filepath.Clean(parent)
	if parent == w.dir && isManifest(name) {
		return oneFile, name
	}
	_, target := w.targets[parent]
	switch {
	case target:
		return anything, ""
	case parent == w.dir && strings.HasPrefix(name, ".."):
		// The kubelet replaces all files of a ConfigMap by renaming "..data".
		return anything, ""
	case path == w.dir || strings.HasPrefix(w.dir, strings.TrimSuffix(path, "/")+"/"):
		return anything, ""
	}
	return nothing, ""
}
