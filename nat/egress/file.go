// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// DefaultPath is where ip-masq-agent has its file.
const DefaultPath = "/etc/config/ip-masq-agent"

// File is ip-masq-agent's file, which need not be there.
type File struct {
	path     string
	defaults Config
	config   Config
	// text is what was read last, nil for no file.
	text []byte
	// read is set once the file has been looked at, and known once it has made
	// sense or was not there.
	read, known bool
}

// NewFile returns a file that is not read yet. Defaults hold while it is not
// there, and for what it does not say.
func NewFile(path string, defaults Config) *File {
	return &File{path: path, defaults: defaults, config: defaults}
}

// Read looks at the file and returns what is to hold: what it says, if it makes
// sense, and otherwise what it said when it last did. The error is ErrUnknown
// where it never did. Changed is set where that is not what the last Read returned.
func (f *File) Read(ctx context.Context) (_ Config, changed bool, err error) {
	text, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f.bad(ctx, err)
	}
	if f.read && bytes.Equal(text, f.text) && (text == nil) == (f.text == nil) {
		return f.result(false)
	}
	config := f.defaults
	if text != nil {
		if config, err = Parse(text, f.defaults); err != nil {
			f.text, f.read = text, true
			return f.bad(ctx, err)
		}
	}
	if text != nil || f.text != nil {
		klog.FromContext(ctx).Info("Read what to masquerade of what pods send", "file", f.path, "there", text != nil, "nonMasqueradeCIDRs", len(config.NonMasquerade))
	}
	f.text, f.read, f.known, f.config = text, true, true, config
	return f.result(true)
}

// bad tells of a file that makes no sense.
func (f *File) bad(ctx context.Context, err error) (Config, bool, error) {
	effect := "what it said before holds"
	if !f.known {
		effect = "what is masqueraded stays as it is"
	}
	klog.FromContext(ctx).Error(err, "Refused the file that says what to masquerade", "file", f.path, "effect", effect)
	return f.result(false)
}

func (f *File) result(changed bool) (Config, bool, error) {
	if !f.known {
		return Config{}, false, fmt.Errorf("%s: %w", f.path, ErrUnknown)
	}
	return f.config, changed, nil
}

// settle is how long to wait after a sign of a change: who replaces a file does it
// in steps.
const settle = 50 * time.Millisecond

// Follow calls deliver whenever the file says something else than before, until ctx
// is done. Read has been called before, and is not called beside it.
func (f *File) Follow(ctx context.Context, deliver func(Config)) {
	signs := newSigns(filepath.Dir(f.path))
	defer signs.close()
	for ctx.Err() == nil {
		if config, changed, err := f.Read(ctx); err == nil && changed {
			deliver(config)
		}
		signs.await(ctx, f.config.Resync)
	}
}

// signs are of changes in a directory, of which there are none while it cannot be
// watched.
type signs struct {
	dir     string
	watcher *fsnotify.Watcher
}

func newSigns(dir string) *signs {
	s := &signs{dir: dir}
	s.watcher, _ = fsnotify.NewWatcher()
	s.watch()
	return s
}

// watch watches the directory, if it is there and not watched.
func (s *signs) watch() {
	if s.watcher != nil {
		_ = s.watcher.Add(s.dir)
	}
}

// await returns once there was a sign and no other for a moment, after at most d, or
// when ctx ends.
func (s *signs) await(ctx context.Context, d time.Duration) {
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

func (s *signs) events() <-chan fsnotify.Event {
	if s.watcher == nil {
		return nil
	}
	return s.watcher.Events
}

func (s *signs) close() {
	if s.watcher != nil {
		_ = s.watcher.Close()
	}
}
