// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/klog/v2"

	"fairlead/internal/dirwatch"
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

// Follow calls deliver whenever the file says something else than before, until ctx
// is done. Read has been called before, and is not called beside it.
func (f *File) Follow(ctx context.Context, deliver func(Config)) {
	signs := dirwatch.New(f.path)
	defer signs.Close()
	for ctx.Err() == nil {
		if config, changed, err := f.Read(ctx); err == nil && changed {
			deliver(config)
		}
		signs.Await(ctx, f.config.Resync)
	}
}
